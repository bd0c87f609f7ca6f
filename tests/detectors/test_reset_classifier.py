"""Other classes for a trained detector, in every family: kept classes answer as before, new ones begin rare, and no head is
forgotten."""

import copy
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForObjectDetection

from leandetr.data.coco import CocoDataset, find_split
from leandetr.data.shapes import write_shapes
from leandetr.data.transforms import eval_transform
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.names import MODELS, missing
from leandetr.detectors.reset_classifier import reset_classifier
from leandetr.errors import UserError
from leandetr.evaluation.coco import evaluate_results, predict_dataset
from leandetr.heads import Head
from leandetr.structures import ClassMap

NAMES = [name for name in MODELS if not missing(name)]
SELECTED = ("deformable_detr_two_stage", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr")  # by their scores
PIXELS = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def trained(tiny_detector, name):
    """As after a training: every weight is its own, and no class is another's twin."""
    detector = tiny_detector(name, "resnet18" if name.startswith("rt_detr") else None)  # a smaller one's cells score alike
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for key, parameter in detector.model.named_parameters():
            if "enc_score_head" in key:
                parameter.add_(torch.randn_like(parameter))  # no two cells have nearly the same score
    return detector.eval()


def answers(detector):
    with torch.no_grad():
        output = detector(PIXELS)
    return output.logits, output.boxes


def shapes_of(model):
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_classes_change_nothing_and_permuted_ones_permute_the_logits(tiny_detector, name):
    detector = trained(tiny_detector, name)
    logits, boxes = answers(detector)
    reset_classifier(detector, ClassMap(detector.class_map.names, (11, 12, 13, 14, 15)))
    assert all(torch.equal(now, then) for now, then in zip(answers(detector), (logits, boxes), strict=True))
    assert detector.class_map.dataset_ids == (11, 12, 13, 14, 15)
    order = [3, 0, 4, 1, 2]
    reset_classifier(detector, ClassMap(tuple(detector.class_map.names[i] for i in order), tuple(range(5))))
    found, found_boxes = answers(detector)
    torch.testing.assert_close(found[..., :5], logits[..., order], rtol=0, atol=2e-6)
    torch.testing.assert_close(found[..., 5:], logits[..., 5:], rtol=0, atol=2e-6)  # of a softmax, no object
    torch.testing.assert_close(found_boxes, boxes, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "names", [("cube",), ("Star", "cube", "disc", "cone", "pen", "cup")], ids=["one new class", "six classes"]
)
def test_no_head_is_forgotten_and_new_classes_begin_as_rare_as_the_old(tiny_detector, name, names, labels):
    """The model that transformers builds for so many classes says which shapes there are."""
    detector = trained(tiny_detector, name).train()
    output = detector(PIXELS, labels=labels(2))
    before, scores = output.loss, output.logits[-1, ..., :5].sigmoid().mean()
    change = reset_classifier(detector, ClassMap(names, tuple(range(len(names)))))
    with torch.device("meta"):
        plain = AutoModelForObjectDetection.from_config(copy.deepcopy(detector.config))
    assert shapes_of(detector.model) == shapes_of(plain)
    assert detector.config.num_labels == len(names)
    assert change.kept == {name: name.casefold() for name in names if name.casefold() in ("star", "disc")}
    targets = [target | {"class_labels": target["class_labels"] % len(names)} for target in labels(2)]
    loss = detector(PIXELS, labels=targets).loss
    assert torch.isfinite(loss)
    assert loss < 2 * before
    loss.backward()
    if detector.head is Head.SIGMOID:
        assert detector(PIXELS).logits[-1, ..., names.index("cube")].sigmoid().mean() < 1.2 * scores


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_whose_shape_the_number_of_classes_decides_are_those_that_a_family_lists(tiny_detector, name):
    """Two models that transformers builds differ in nothing else, so that no head of a later version is forgotten."""
    detector = tiny_detector(name)
    config, found = detector.config, []
    for count in (5, 6):
        config.num_labels = count
        with torch.device("meta"):
            found.append(AutoModelForObjectDetection.from_config(copy.deepcopy(config)))
    few, more = map(shapes_of, found)
    assert few.keys() == more.keys()
    patterns, listed = detector.family.class_rows(config), set()
    for layer, module in found[0].named_modules(remove_duplicate=False):
        if any(fnmatchcase(layer, pattern) for pattern in patterns):
            listed |= {f"{layer}.{key}" for key, _ in module.named_parameters(recurse=False)}
    assert {key for key in few if few[key] != more[key]} == listed


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SELECTED])
def test_a_subset_of_the_classes_has_the_scores_and_boxes_that_it_had(tiny_detector, name):
    detector = trained(tiny_detector, name)
    logits, boxes = answers(detector)
    reset_classifier(detector, ClassMap(("ring", "disc"), (1, 2)))
    found, found_boxes = answers(detector)
    torch.testing.assert_close(found[..., :2], logits[..., [3, 0]], rtol=0, atol=2e-6)
    torch.testing.assert_close(found_boxes, boxes, rtol=0, atol=2e-6)
    if detector.head is Head.SOFTMAX:  # renormalised: the ratio of two classes stays
        shares = [each.softmax(-1) for each in (logits, found)]
        torch.testing.assert_close(shares[1][..., 0] / shares[1][..., 1], shares[0][..., 3] / shares[0][..., 0])


def test_classes_in_another_order_have_the_same_ap(tmp_path):
    detector = load(Path(__file__).parents[2] / "recipes" / "shapes-teacher")
    split = find_split(write_shapes(tmp_path / "shapes", 1, 8, (96, 96)), "val")

    def ap():
        val = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
        results = predict_dataset(detector.predict, val, detector.class_map, 4)
        return evaluate_results(val.ground_truth(), results).as_dict()

    before, classes = ap(), detector.class_map
    order = [5, 2, 0, 4, 1, 3]
    permuted = ClassMap(tuple(classes.names[i] for i in order), tuple(classes.dataset_ids[i] for i in order))
    reset_classifier(detector, permuted)
    assert ap() == pytest.approx(before, abs=1e-9)
    assert before["ap"] > 0.2


@pytest.mark.parametrize("name", ["detr", "deformable_detr_two_stage", "rt_detr_v2", "lw_detr"])
def test_saved_with_its_new_classes(tiny_detector, name, tmp_path):
    detector = trained(tiny_detector, name)
    reset_classifier(detector, ClassMap(("cube", "star"), (4, 8)))
    detector.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.class_map == ClassMap(("cube", "star"), (4, 8))
    state, read = detector.model.state_dict(), again.model.state_dict()
    assert state.keys() == read.keys()
    assert all(torch.equal(state[key], read[key]) for key in state)


@pytest.mark.parametrize("name", ["deformable_detr", "rt_detr"])
def test_what_was_tied_is_tied(tiny_detector, name):
    detector = trained(tiny_detector, name)
    old, model = detector.model.state_dict(), detector.model
    groups = {frozenset(k for k in old if old[k].data_ptr() == old[key].data_ptr()) for key in old if "class_embed" in key}
    reset_classifier(detector, ClassMap(("cube", "star"), (4, 8)))
    new = model.state_dict()
    assert groups == {
        frozenset(k for k in new if new[k].data_ptr() == new[key].data_ptr()) for key in new if "class_embed" in key
    }


def test_the_encoders_objectness_stays_whatever_the_classes(tiny_detector):
    detector = trained(tiny_detector, "deformable_detr_two_stage")
    before = detector.model.class_embed[3].weight[0].clone()
    assert detector.family.queries_from_encoder
    reset_classifier(detector, ClassMap(("cube", "star"), (4, 8)))
    assert torch.equal(detector.model.class_embed[3].weight[0], before)


def test_the_rows_of_a_denoising_label_move_with_it_and_padding_stays_last(tiny_detector):
    detector = trained(tiny_detector, "rt_detr")
    before = detector.model.model.denoising_class_embed.weight.clone()
    reset_classifier(detector, ClassMap(("cube", "star", "disc"), (4, 8, 9)))
    after = detector.model.model.denoising_class_embed
    assert torch.equal(after.weight[[1, 2, 3]], before[[2, 0, 5]])
    assert after.padding_idx == 3


def test_another_spelling_is_the_same_class_unless_both_are_there(tiny_detector):
    detector = tiny_detector("detr")
    detector.class_map = ClassMap(("Traffic Light", "N/A", "car", "N/A", "Car"), tuple(range(5)))
    change = reset_classifier(detector, ClassMap(("car", "CAR", "traffic_light", "n/a"), (1, 2, 3, 4)))
    assert change.kept == {"car": "car", "CAR": "Car", "traffic_light": "Traffic Light"}
    assert (change.new, change.dropped) == (("n/a",), ())
    said = "kept 3 of the classes (car, CAR from Car, traffic_light from Traffic Light), 1 new (n/a), dropped 0"
    assert str(change) == said


def test_a_quantized_detector_keeps_its_classes(tiny_detector):
    detector = tiny_detector("detr")
    detector.config.quantization_config = {"scheme": "static"}
    with pytest.raises(UserError, match="fine-tune the float detector"):
        reset_classifier(detector, ClassMap(("cube",), (1,)))
