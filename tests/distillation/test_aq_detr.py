"""Auxiliary query groups and layer-by-layer encoder distillation, each against its definition, in every family that has it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from leandetr.detectors.attention import encoder_attentions
from leandetr.detectors.create import create
from leandetr.distillation import Distillation, Distiller, build_terms
from leandetr.distillation.auxiliary_queries import AuxiliaryQueries
from leandetr.distillation.encoder_layers import EncoderLayers
from leandetr.errors import UserError
from leandetr.losses import SetCriterion

SMALL = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 64, "num_queries": 12}
TABLES = {
    "detr": "query_position_embeddings",
    "conditional_detr": "query_position_embeddings",
    "deformable_detr": "query_position_embeddings",
    "smca_detr": "query_position_embeddings",
    "dab_detr": "query_refpoint_embeddings",
    "adamixer": "query_content",
}


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    pixel_mask = torch.ones(2, 64, 64, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 64, 64), "pixel_mask": pixel_mask, "labels": labels(3, 0)}


@pytest.fixture
def build(classes):
    def make(name, **overrides):
        torch.manual_seed(0)
        small = SMALL | ({} if name == "adamixer" else {"encoder_layers": 1}) | overrides
        if name == "dab_detr":
            small["hidden_size"] = small.pop("d_model")
        detector = create(name, classes, (64, 64), backbone="test_resnet", overrides=small)
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return detector.eval()

    return make


@pytest.mark.parametrize("name", TABLES)
def test_a_group_of_the_students_own_rows_answers_as_the_student(build, batch, name):
    detector = build(name)
    output = detector(batch["pixel_values"], batch["pixel_mask"])
    term = AuxiliaryQueries(detector, groups=2)
    rows = getattr(detector.model.model, TABLES[name]).weight
    assert term.queries.weight.shape == (24, rows.shape[1])
    answer = detector.decode(term.group(rows, output), output.memory)
    torch.testing.assert_close(answer.logits, output.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer.boxes, output.boxes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr_v2"])
def test_loss_is_the_mean_of_the_groups_set_losses(build, batch, name):
    detector = build(name)
    output = detector(batch["pixel_values"], batch["pixel_mask"])
    term = AuxiliaryQueries(detector, groups=3)
    found = term(output, None, batch)
    criterion = SetCriterion.from_config(detector.config, detector.family.class_loss)
    total = 0
    for group in range(3):
        rows = term.queries.weight[12 * group : 12 * group + 12]
        answer = detector.decode(term.group(rows, output), output.memory)
        total = total + sum(criterion(answer.logits, answer.boxes, batch["labels"]).values())
    torch.testing.assert_close(sum(found.values()), total / 3)
    sum(found.values()).backward()
    assert (term.queries.weight.grad.abs().sum(1) > 0).any()
    assert detector.model.model.decoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_groups_are_no_part_of_the_student(build, batch):
    detector = build("detr")
    before, answers = set(detector.state_dict()), detector(batch["pixel_values"]).logits
    terms = build_terms(
        Distillation(method="auxiliary-queries", options={"auxiliary-queries": {"groups": 2}}), detector, build("detr")
    )
    distiller = Distiller(detector, build("detr"), terms)
    distiller(**batch).loss.backward()
    assert "terms.auxiliary-queries.queries.weight" in distiller.state_dict()
    assert set(detector.state_dict()) == before
    torch.testing.assert_close(detector(batch["pixel_values"]).logits, answers)


def test_groups_that_cannot_be_are_refused(build, classes):
    with pytest.raises(UserError, match="groups of the auxiliary-queries term is 0; ask for at least 1"):
        AuxiliaryQueries(build("detr"), groups=0)
    two_stage = {"d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "num_queries": 6}
    detector = create("deformable_detr_two_stage", classes, (64, 64), backbone="test_resnet", overrides=two_stage)
    with pytest.raises(UserError, match="cannot add groups to this deformable_detr student"):
        AuxiliaryQueries(detector)


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "deformable_detr", "rt_detr_v2", "smca_detr", "dab_detr"])
def test_encoder_layers_is_the_sum_of_mean_squares_of_the_attentions_answers(build, batch, name):
    student, teacher = build(name), build(name)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    answers = []
    for detector in (student, teacher):
        outputs = []
        for attention in encoder_attentions(detector.model.model):
            attention.register_forward_hook(lambda _m, _a, out, found=outputs: found.append(out[0]))
        detector(batch["pixel_values"], batch["pixel_mask"])
        answers.append(list(outputs))
    assert len(answers[0]) == 1
    want = sum((own - taught).square().mean() for own, taught in zip(*answers, strict=True))
    found = Distiller(student, teacher, build_terms("encoder-layers", student, teacher))(**batch)
    assert want > 0
    torch.testing.assert_close(found.logs["encoder-layers/attention"], want.detach(), rtol=1e-4, atol=1e-6)


def test_equal_encoders_have_no_loss_and_widths_are_adapted(build, batch):
    student, teacher = build("detr"), build("detr", d_model=64)
    same = Distiller(student, build("detr"), build_terms("aq-detr", student, student))(**batch)
    assert same.logs["encoder-layers/attention"] == 0
    terms = build_terms("encoder-layers", student, teacher)
    Distiller(student, teacher, terms)(**batch).loss.backward()
    assert terms[0][0].adapters[0].weight.grad.abs().sum() > 0
    assert isinstance(EncoderLayers(1, 8, 8).adapters[0], nn.Identity)


def test_encoders_that_do_not_pair_are_refused(build, batch):
    student = build("detr")
    with pytest.raises(UserError, match="student's encoder has 1, the teacher's 2"):
        EncoderLayers.build(student, build("detr", encoder_layers=2))
    with pytest.raises(UserError, match="student's encoder has 0"):
        EncoderLayers.build(build("adamixer"), student)
    output = student(batch["pixel_values"], asked={"encoder_attended"})
    fewer = replace(output, encoder_attended=[layer[:, :-1] for layer in output.encoder_attended])
    with pytest.raises(UserError, match="take a teacher of the same image size"):
        EncoderLayers.build(student, student)(output, fewer, batch)
