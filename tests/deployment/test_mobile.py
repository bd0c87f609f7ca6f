"""Files for ExecuTorch and LiteRT: PyTorch's answers, standing alone, and a sentence for what is not possible."""

import logging
import os
import subprocess
import sys
import zipfile

import pytest
import torch

import leandetr
from leandetr.deployment import executorch, litert
from leandetr.deployment.agreement import agreement
from leandetr.deployment.folding import folded_graph
from leandetr.deployment.metadata import describe
from leandetr.deployment.mobile_export import FORMATS, export_mobile
from leandetr.deployment.pytorch import PlainDetector, PyTorchRuntime
from leandetr.deployment.silence import silenced
from leandetr.errors import UserError

SUFFIX = {"executorch": ".pte", "litert": ".tflite"}  # Core ML has tests of its own
FAMILIES = [
    "conditional_detr",
    *[pytest.param(name, marks=pytest.mark.slow) for name in ("deformable_detr_refine", "rt_detr_v2", "adamixer", "d_fine")],
]


@pytest.fixture(scope="module")
def written(build, tmp_path_factory):
    """written("litert") -> (detector, the file it was exported to); skipped where the packages are not installed."""
    made = {}

    def export(engine, name="conditional_detr"):
        pytest.importorskip("executorch" if engine == "executorch" else "litert_torch", reason=f"needs leandetr[{engine}]")
        if (engine, name) not in made:
            detector = build(name)
            file = tmp_path_factory.mktemp(engine) / f"{name}{SUFFIX[engine]}"
            made[engine, name] = detector, export_mobile(detector, file, engine)
        return made[engine, name]

    return export


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("engine", SUFFIX)
def test_answers_as_pytorch_does(written, batch, engine, name):
    detector, path = written(engine, name)
    runtime, pixels = leandetr.open_runtime(path), batch(3)["pixel_values"]
    assert runtime.name == engine
    ours, theirs = PyTorchRuntime(detector).run(pixels, None), runtime.run(pixels, None)
    assert agreement(ours, theirs, detector.head, 1e-4)[0] == 1
    assert agreement(ours, (theirs[0] + 0.1, theirs[1]), detector.head, 1e-4)[0] == 0


@pytest.mark.parametrize("engine", SUFFIX)
def test_the_file_says_what_it_is_and_is_used_by_its_name(written, photograph, run, tmp_path, engine):
    detector, path = written(engine)
    runtime = leandetr.open_runtime(path)
    assert runtime.metadata == describe(detector, detector.preprocessing, packages=FORMATS[engine].packages)
    assert path.stat().st_size < 4 * runtime.parameters + 800_000
    status, _, errors = run("predict", path, photograph().parent, "--out", tmp_path / "found", "--threshold", 0)
    assert status == 0
    assert "predictions.json: 60 detections on 1 images" in errors  # 12 queries, 5 classes


def test_what_litert_knows_about_itself_is_read_without_it(written):
    _, path = written("litert")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["leandetr.json"]
    assert '"model_type": "conditional_detr"' in litert.text_of(path)


@pytest.mark.parametrize("engine", SUFFIX)
def test_a_file_of_something_else_is_a_sentence(written, tmp_path, engine, capfd):
    _, path = written(engine)
    broken = tmp_path / f"broken{SUFFIX[engine]}"
    for content in (b"", b"something else" * 99, path.read_bytes()[:999]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=rf"broken\{SUFFIX[engine]} is not an? \w+ file or is truncated; export it again"):
            leandetr.open_runtime(broken)
    with pytest.raises(UserError, match="no such file"):
        leandetr.open_runtime(tmp_path / f"missing{SUFFIX[engine]}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "package"), [("executorch", "executorch"), ("litert", "ai-edge-litert")])
def test_a_package_that_is_not_installed_is_a_sentence_before_anything_is_loaded(tmp_path, engine, package):
    """In a process of its own, where the import fails."""
    code = (
        "import sys; sys.modules.update(executorch=None, ai_edge_litert=None); from leandetr.cli import main;"
        f"sys.argv = ['leandetr', 'export', 'nothing', '--to', '{engine}', '--out', 'x{SUFFIX[engine]}']; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    needed = f"this needs the package {package}; install it with: pip install 'leandetr[{engine}]'"
    assert needed in " ".join(found.stderr.split())


@pytest.mark.parametrize(("to", "suffix", "module"), [("executorch", ".pte", executorch), ("litert", ".tflite", litert)])
def test_what_cannot_be_written_is_a_sentence(build, tmp_path, monkeypatch, to, suffix, module):
    monkeypatch.setattr(module, "_import_runtime" if to == "executorch" else "_import_interpreter", lambda: (None, None))
    detector, path = build("conditional_detr"), tmp_path / f"m{suffix}"
    with pytest.raises(UserError, match=rf"m\.onnx: an? \w+ file ends in \{suffix}"):
        export_mobile(detector, tmp_path / "m.onnx", to)
    free = build("detr", size=None, shortest_edge=96, longest_edge=160)
    with pytest.raises(UserError, match="takes photographs of one size, which this detector has not; add --image-size"):
        export_mobile(free, path, to)
    with pytest.raises(UserError, match="--half is of ONNX files; leave it out, or add --to onnx"):
        leandetr.export("anything", path, to=to, half=True)
    assert not list(tmp_path.iterdir())


class Drifting(torch.nn.Module):
    """Constants that the graph writes into, and others: masks, float64, a power of two; and a copy that it writes into."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4))

    def forward(self, pixels):
        steps = 10.0 ** torch.arange(4, dtype=torch.float64)
        written = torch.zeros(4)
        written[1:] = pixels.mean((0, 1, 2))[1:]
        kept = torch.zeros(4)
        kept[2] = 1
        copied = pixels.to(torch.float32, copy=True)
        copied[..., 0] = 0
        same = torch.dropout(pixels, 0.5, False).detach()
        summed = torch.nn.functional.linear(same, self.weight)[..., None] * pixels.new_ones(4)
        return torch.exp2(pixels * self.weight.abs()) * steps.float() + written + kept + copied + summed


def test_what_no_photograph_changes_is_computed_once_and_the_answers_stay():
    model, pixels = Drifting(), torch.randn(1, 3, 5, 4)
    graph = folded_graph(model, pixels)
    for given in (pixels, torch.randn_like(pixels), pixels):  # nothing is kept from one to the next
        torch.testing.assert_close(graph(given.clone()), model(given))
    targets = {str(node.target) for node in graph.graph.nodes}
    gone = ("arange", "abs", "exp2", "new_ones", "dropout")
    assert not {f"aten.{name}.default" for name in gone} & targets
    assert not any(
        node.meta["val"].dtype == torch.float64
        for node in graph.graph.nodes
        if node.op == "call_function" and "val" in node.meta
    )


class Attending(torch.nn.Module):
    """Attention with a mask that hides nothing, as numbers and as truths, and with one that hides a key."""

    def forward(self, x):
        some = torch.tensor([True, True, False])
        masks = (torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool), some.expand(3, 3), None)
        return sum(torch.nn.functional.scaled_dot_product_attention(x, x, x, mask) for mask in masks)


def test_attention_that_sees_everything_has_no_mask():
    model, x = Attending(), torch.randn(1, 2, 3, 4)
    graph = folded_graph(model, x)
    torch.testing.assert_close(graph(x), model(x))
    assert len([node for node in graph.graph.nodes if node.op == "get_attr"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rt_detr_v2", "swin_detr"])
def test_a_folded_detector_answers_as_before_with_less_to_compute(tiny_detector, name):
    model, pixels = PlainDetector(tiny_detector(name)).eval(), torch.randn(1, 3, 128, 128)
    graph = folded_graph(model, pixels)
    whole = torch.export.export(model, (pixels,), strict=False)
    count = [sum(node.op == "call_function" for node in nodes) for nodes in (graph.graph.nodes, whole.graph.nodes)]
    assert count[0] < count[1]
    other = torch.randn_like(pixels)
    for ours, theirs in zip(graph(other), model(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_nothing_that_a_library_prints_arrives_and_what_comes_after_does(capfd):
    handlers = list(logging.root.handlers)
    with silenced():
        print("python")
        os.write(2, b"C++")
        logging.root.addHandler(logging.StreamHandler())
        logging.getLogger("library").warning("a warning")
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert logging.root.handlers == handlers
