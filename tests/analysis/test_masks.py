"""Maps equal their equations, and their numbers what can be counted by hand."""

import json

import pytest
import torch
from PIL import Image

from leandetr.analysis.mask_figure import Seen, extremes
from leandetr.analysis.masks import GRID, NUMBERS, compared, inside, look, masks
from leandetr.boxes import to_corners
from leandetr.data.batches import collate
from leandetr.data.coco import CocoDataset
from leandetr.data.transforms import eval_transform
from leandetr.errors import UserError

QUARTER = torch.tensor([[0.0, 0.0, 0.5, 0.5]])


def view(level, objects=(0,), quality=(1.0,)):
    """One level's map as everything a detector sees."""
    count = len(objects)
    return Seen(
        [level],
        [level],
        [level.expand(count, *level.shape)],
        torch.tensor(objects),
        torch.tensor(quality),
        QUARTER[[0] * count],
    )


@pytest.mark.parametrize("name", ["detr", "deformable_detr"])
def test_maps_equal_the_equations(build, split, name):
    detector = build(name)
    dataset = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
    seen = look(detector, dataset, 1)
    with torch.inference_mode():
        output = detector(collate([dataset[1]])["pixel_values"])
    target = dataset[1][1]
    assert len(seen.objects) == len(target["boxes"])
    for level, feature in enumerate(output.features):
        active = feature[0].abs().mean(0)
        torch.testing.assert_close(seen.active[level], (active - active.min()) / (active.max() - active.min()))
        weighted = torch.zeros_like(active)
        for i, found in enumerate(seen.found):
            query = (to_corners(output.boxes[-1, 0]) - found).abs().sum(-1).argmin()
            psi = torch.einsum("d,dhw->hw", output.hidden[-1, 0, query], feature[0])
            psi = psi / psi.abs().max()
            torch.testing.assert_close(seen.psi[level][i], psi, atol=1e-4, rtol=1e-4)
            weighted += seen.quality[i] * psi**2
        torch.testing.assert_close(seen.mask[level], weighted / weighted.max(), atol=1e-4, rtol=1e-4)


def test_a_map_inside_its_box_and_one_outside():
    level = torch.zeros(4, 4)
    level[0, 0] = 1
    (found,) = compared(view(level), view(level), QUARTER)
    numbers = dict(zip(NUMBERS, found.tolist()))
    assert numbers.pop("active_like_first") == pytest.approx(1)
    assert numbers == pytest.approx(
        {"active_inside": 1, "mask_inside": 1, "peak_inside": 1, "peak_on_object": 1, "mask_like_first": 1}
    )
    (found,) = compared(view(level.flip(0)), view(level), QUARTER)
    assert found[:4].tolist() == [0, 0, 0, 0]
    assert found[4:].tolist()[0] < 0


def test_an_even_map_has_the_boxes_share_of_the_area_and_no_correlation():
    (found,) = compared(view(torch.ones(3, 5)), view(torch.ones(3, 5)), QUARTER)
    assert found[0].item() == pytest.approx(0.25)
    assert inside(QUARTER).double().mean().item() == pytest.approx(0.25)
    assert found[4].isnan()


def test_an_image_without_objects_has_no_number_but_the_correlation():
    level = torch.rand(4, 4)
    nothing = Seen(
        [level], [torch.zeros(4, 4)], [torch.zeros(0, 4, 4)], torch.empty(0, dtype=torch.int64), torch.empty(0), QUARTER[:0]
    )
    (found,) = compared(nothing, nothing, torch.empty(0, 4))
    assert found.isnan().tolist() == [True, True, True, True, False, True]
    assert inside(torch.empty(0, 4)).shape == (GRID, GRID)


def test_a_peak_on_another_object_counts_as_on_an_object_alone():
    level = torch.zeros(4, 4)
    level[3, 3] = 1
    boxes = torch.cat([QUARTER, torch.tensor([[0.5, 0.5, 1.0, 1.0]])])
    (found,) = compared(view(level), view(level), boxes)
    assert found[2:4].tolist() == [0, 1]


def test_the_best_and_the_worst_object_are_of_those_that_all_have_matched():
    level = torch.rand(2, 2)
    views = [view(level, (0, 1, 2), (0.5, 0.9, 0.1)), view(level, (0, 2), (0.4, 0.7))]
    assert extremes(views) == {"found best": 0, "found worst": 2}
    assert extremes([view(level, (3,), (0.2,))]) == {"found best": 3}
    assert extremes([view(level, (), ())]) == {}


def test_files_and_numbers_for_detectors_of_other_strides(saved, split, tmp_path):
    models = [saved("teacher", "deformable_detr"), saved("student", "detr")]
    found = masks(models, split, tmp_path / "out", files=["000002.jpg"])
    assert json.loads((tmp_path / "out" / "masks.json").read_text()) == found
    assert found["drawn"] == ["masks-000002.png"]
    assert Image.open(tmp_path / "out" / "masks-000002.png").size[0] > 900
    assert [len(model["levels"]) for model in found["models"]] == [4, 1]
    assert found["images"] == 3
    first = found["models"][0]["levels"][0]
    assert first["active_like_first"] == pytest.approx(1)
    assert 0 < found["area_inside"] < 1
    for model in found["models"]:
        for level in model["levels"]:
            assert all(0 <= level[name] <= 1 for name in NUMBERS[:4])


def test_three_images_are_drawn_by_default(saved, split, tmp_path):
    drawn = masks([saved()], split, tmp_path / "out")["drawn"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(drawn)
    assert len(drawn) == 3


def test_an_unknown_image_is_refused(saved, split, tmp_path):
    with pytest.raises(UserError, match=r"unknown image of .*instances_val\.json '00002\.jpg': did you mean"):
        masks([saved()], split, tmp_path / "out", files=["00002.jpg"])
