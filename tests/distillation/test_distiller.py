"""The distiller adds weighted terms to the student's own loss, trains the student alone, and tells what each term is worth."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leandetr.detectors.reset_classifier import reset_classifier
from leandetr.distillation import Distillation, Distiller, Term, build_terms
from leandetr.distillation.distiller import GRADIENT_STEPS
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.errors import UserError
from leandetr.structures import ClassMap


class Pull(Term):
    """Pulls the last boxes to the teacher's, with a parameter of its own."""

    name = "pull"
    needs = frozenset({"boxes", "features"})

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, batch) -> dict[str, Tensor]:
        distance = (student.boxes[-1] - teacher.boxes[-1]).abs()
        return {"centre": self.gain * distance[..., :2].sum(), "size": distance[..., 2:].sum()}


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    pixel_mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": pixel_mask, "labels": labels(2, 0)}


@pytest.fixture
def pair(tiny_detector):
    student = tiny_detector("detr", dropout=0.0)
    teacher = tiny_detector("detr", dropout=0.0, decoder_layers=2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return student, teacher


def test_loss_is_the_students_own_plus_weighted_terms(pair, batch):
    student, teacher = pair
    found = Distiller(student, teacher, [(Pull(), 3.0)])(**batch)
    own, target = student(**batch), teacher(batch["pixel_values"], batch["pixel_mask"])
    term = (own.boxes[-1] - target.boxes[-1]).abs().sum()
    torch.testing.assert_close(found.loss, own.loss + 3 * term)
    torch.testing.assert_close(found.logs["detection"], own.loss)
    torch.testing.assert_close(found.logs["pull/centre"] + found.logs["pull/size"], term)
    torch.testing.assert_close(found.logs["share/pull"], 3 * term / found.loss)
    torch.testing.assert_close(found.logs["share/pull"] + found.logs["share/detection"], torch.ones(()))


def test_the_student_and_its_adapters_are_trained_and_the_teacher_never(pair, batch):
    student, teacher = pair
    distiller = Distiller(student, teacher, [(Pull(), 1.0)]).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    distiller(**batch).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    assert distiller.terms["pull"].gain.grad != 0
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "terms"}
    assert sum(p.numel() for p in distiller.parameters()) == sum(p.numel() for p in student.parameters()) + 1


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2"])
def test_logits_and_features_of_another_family_train_the_whole_student(tiny_detector, batch, family):
    student = tiny_detector(family).train()
    teacher = tiny_detector("detr", d_model=128, decoder_layers=4, num_queries=15)
    distiller = Distiller(student, teacher, build_terms("logits,features,fitnet", student, teacher)).train()
    result = distiller(**batch)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert {"logits/positive_class", "logits/negative_box", "features/imitation", "share/fitnet"} <= set(result.logs)
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


def test_detrdistill_is_its_three_terms_with_the_papers_weights(tiny_detector, batch):
    student, teacher = tiny_detector("deformable_detr").train(), tiny_detector("deformable_detr", d_model=128)
    terms = build_terms("detrdistill", student, teacher)
    assert {term.name: weight for term, weight in terms} == {"logits": 1, "features": 20, "assignment": 1}
    logs = Distiller(student, teacher, terms).train()(**batch).logs
    assert sum(logs[f"share/{name}"] for name in ("detection", "logits", "features", "assignment")) == pytest.approx(
        1, abs=1e-5
    )
    assert all(logs[f"gradient/{name}"] > 0 for name in ("detection", "logits", "features", "assignment"))


def test_gradients_are_measured_at_the_memory_in_the_first_steps(pair, batch):
    student, teacher = pair
    distiller = Distiller(student, teacher, [(Pull(), 2.0)]).train()
    first = distiller(**batch).logs
    output = student(**batch)
    term = 2 * sum(distiller.terms["pull"](output, teacher(batch["pixel_values"]), batch).values())
    (expected,) = torch.autograd.grad(term, output.memory.tokens)
    torch.testing.assert_close(first["gradient/pull"], expected.norm())
    assert first["gradient/detection"] > 0
    distiller.steps = GRADIENT_STEPS
    assert not any(name.startswith("gradient/") for name in distiller(**batch).logs)
    assert not any(value.requires_grad for value in first.values())


def test_a_term_that_the_teacher_cannot_serve_is_refused(pair, batch, monkeypatch):
    student, teacher = pair
    whole = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda *images, **asked: replace(whole(*images, **asked), features=[]))
    with pytest.raises(UserError, match="term 'pull' needs the teacher's features, and this detr teacher has none"):
        Distiller(student, teacher, [(Pull(), 1.0)])(**batch)


def test_negative_weights_and_other_classes_are_refused(pair, classes):
    student, teacher = pair
    with pytest.raises(UserError, match="weight of the distillation term 'pull' is -1"):
        Distiller(student, teacher, [(Pull(), -1.0)])
    teacher.class_map = ClassMap(("other", *classes.names[1:]), classes.dataset_ids)
    with pytest.raises(UserError, match=r"the teacher does not know disc.*leandetr train --model TEACHER"):
        Distiller(student, teacher, build_terms("logits", student, teacher))
    with pytest.raises(UserError, match="the teacher does not know disc"):
        build_terms("hard-label", student, DetectorTeacher(teacher, student))


def test_a_teacher_of_other_classes_teaches_what_needs_none(pair, batch):
    student, teacher = pair
    reset_classifier(teacher, ClassMap(("other",), (1,)))
    bound = DetectorTeacher(teacher, student)
    for method in ("fitnet", "mgd", "fgd"):
        loss = Distiller(student, bound, build_terms(method, student, bound))(**batch).loss
        assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("method", "weights", "options", "message"),
    [
        ("logit", {}, {}, "unknown distillation method 'logit': did you mean 'logits'"),
        ("logits", {"logit": 2.0}, {}, "unknown term of logits 'logit'"),
        ("logits", {}, {"logits": {"stage": "last"}}, "unknown option of the logits term 'stage': did you mean 'stages'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_before_anything_is_built(method, weights, options, message):
    with pytest.raises(UserError, match=message):
        build_terms(Distillation(method=method, weights=weights, options=options), None, None)


def test_weights_and_options_reach_their_terms(tiny_detector):
    detector = tiny_detector("detr")
    changed = Distillation(method="logits", weights={"logits": 0.5}, options={"logits": {"stages": "last"}})
    ((term, weight),) = build_terms(changed, detector, detector)
    assert (weight, term.stages) == (0.5, "last")
