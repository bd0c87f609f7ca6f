"""What families promise: only known ones, queries that survive being written and read, the function of DETR left alone, and
losses whose mean over processes is the loss of the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from transformers import DetrConfig

from leandetr.detectors.create import create
from leandetr.detectors.families.registry import FAMILIES, family_of
from leandetr.errors import UserError
from leandetr.structures import ClassMap, Queries

NAMES = ["detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2"]


def test_unknown_family_is_named_with_the_nearest():
    config = DetrConfig(num_labels=3)
    config.model_type = "conditional_det"
    with pytest.raises(UserError, match="'conditional_det': did you mean 'conditional_detr'"):
        family_of(config)


@pytest.mark.parametrize("name", NAMES)
def test_queries_survive_being_written_and_read(name):
    family = FAMILIES[name]
    queries = Queries(torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.rand(2, 5, 4))
    again = family.read_queries(family.write_queries(queries))
    for field in family.arguments:
        torch.testing.assert_close(getattr(again, field), getattr(queries, field))


@pytest.mark.parametrize("name", ["detr", "conditional_detr"])
def test_asking_for_all_layers_losses_leaves_the_configuration_alone(tiny_detector, labels, name):
    found, pixels = tiny_detector(name), torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        before = found.model(pixel_values=pixels).logits
        found(pixels, labels=labels(2))
        torch.testing.assert_close(found.model(pixel_values=pixels).logits, before, rtol=0, atol=0)
    assert found.config.auxiliary_loss is False


def tiny(name):
    torch.manual_seed(0)
    small = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 84, "decoder_ffn_dim": 32}
    found = create(name, ClassMap(("a", "b", "c"), (1, 2, 3)), (64, 64), backbone="test_resnet", overrides=small).eval()
    pixels = torch.randn(4, 3, 64, 64)
    labels = [{"class_labels": torch.arange(n) % 3, "boxes": torch.rand(n, 4) * 0.3 + 0.3} for n in (1, 4, 0, 2)]
    return found, pixels, labels


def _share(rank: int, folder: str) -> None:
    """One of two processes: the loss of its half of the batch in every family, as JSON in `folder`."""
    results = {}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    PartialState(cpu=True)
    mine = slice(2 * rank, 2 * rank + 2)
    for name in NAMES:
        found, pixels, labels = tiny(name)
        with torch.no_grad():
            results[name] = found(pixels[mine], labels=labels[mine]).loss.item()
    torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_mean_over_processes_is_the_loss_of_the_whole_batch(tmp_path):
    """Five boxes in one process, two in the other: every family must divide by the number in all of them."""
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    # Fresh processes: a fork of one that has run threads, as a test's worker has, may never wake.
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    running = [subprocess.Popen(command, env=os.environ | world) for command in commands]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name in NAMES:
        found, pixels, labels = tiny(name)
        with torch.no_grad():
            whole = found(pixels, labels=labels).loss.item()
        # DETR's class loss alone is a weighted mean over a process's own queries, here 168 of 336.
        tolerance = 0.05 if name == "detr" else 1e-4
        assert (shares[0][name] + shares[1][name]) / 2 == pytest.approx(whole, rel=tolerance)


if __name__ == "__main__":
    _share(int(sys.argv[1]), sys.argv[2])
