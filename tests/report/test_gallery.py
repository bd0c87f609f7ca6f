import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from leandetr.drawing import COLOURS, draw
from leandetr.report.gallery import LONGEST, Picture, panels
from leandetr.structures import Detections


def detections(*objects: tuple[float, int, list[float]]) -> Detections:
    return Detections(
        torch.tensor([score for score, _, _ in objects]),
        torch.tensor([label for _, label, _ in objects], dtype=torch.int64),
        torch.tensor([box for _, _, box in objects]).reshape(-1, 4),
    )


@pytest.fixture
def grey_image():
    return Image.new("RGB", (100, 60), (128, 128, 128))


def test_a_box_is_drawn_in_its_class_colour_at_its_place(grey_image):
    drawn = np.asarray(draw(grey_image, detections((1.0, 1, [20, 30, 60, 50])), ["a", "b"], LONGEST)).astype(int)
    scale = LONGEST / 100
    wanted = [int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)]
    lower_edge = drawn[round(50 * scale) - 2 : round(50 * scale) + 3, round(40 * scale)]
    assert (np.abs(lower_edge - wanted).max(axis=1) < 8).any()
    assert (drawn[round(55 * scale), round(80 * scale)] == 128).all()


def test_the_best_box_is_drawn_on_top(grey_image):
    best, worse = (0.9, 0, [20, 30, 60, 50]), (0.5, 1, [20, 30, 60, 50])
    both = draw(grey_image, detections(best, worse), ["a", "b"], LONGEST, scores=True)
    alone = draw(grey_image, detections(best), ["a", "b"], LONGEST, scores=True)
    assert both.tobytes() == alone.tobytes()


def test_an_image_without_objects_is_only_resized(grey_image):
    drawn = draw(grey_image, detections(), [], LONGEST)
    assert drawn.size == (LONGEST, round(LONGEST * 0.6))
    assert set(drawn.getdata()) == {(128, 128, 128)}


def test_the_image_itself_is_left_as_it_was(grey_image):
    draw(grey_image, detections((1.0, 0, [20, 30, 60, 50])), ["a"], LONGEST)
    assert set(grey_image.getdata()) == {(128, 128, 128)}


def test_low_scores_are_not_drawn_but_every_true_object_is(grey_image):
    truth = detections((0.0, 0, [0, 0, 9, 9]), (0.0, 0, [20, 20, 29, 29]))
    found = detections((0.9, 0, [0, 0, 9, 9]), (0.5, 0, [5, 5, 9, 9]), (0.49, 0, [20, 20, 29, 29]))
    shown = panels(Picture("grey.png", grey_image, truth, {"teacher": found}), ["a"], threshold=0.5)
    assert [(panel.title, panel.boxes) for panel in shown] == [("ground truth", 2), ("teacher", 2)]


def test_a_panel_carries_its_own_image(grey_image):
    (panel,) = panels(Picture("grey.png", grey_image, detections(), {}), [], threshold=0.5)
    kind, data = panel.source.split(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert max(image.size) == LONGEST
