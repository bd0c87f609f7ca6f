"""On a GPU, in the default precision, every family learns and every kind of distillation has gradients.

`make test-gpu` runs these where there is a GPU. Their bodies run on a CPU too, for a few families, steps and methods. The batch
has a padded image: attention gets a mask.
"""

import copy

import pytest
import torch

from leandetr.data.batches import collate
from leandetr.data.transforms import normalised
from leandetr.detectors.create import MODELS
from leandetr.distillation import Distiller, build_terms
from leandetr.distillation.methods import prepare
from leandetr.distillation.spec import Distillation
from leandetr.quantization import LowBit, quantize
from leandetr.structures import Preprocessing
from leandetr.training.config import Training
from leandetr.training.precision import keep_boxes_precise
from leandetr.training.trainer import DetectionTrainer

STEPS = 20
OWN_BACKBONE = ("swin_detr", "lw_detr", "rf_detr")
#: whose queries are the encoder's best proposals: of those that score alike half precision chooses others, and teaches those
CHOOSING = {"lw_detr", "rf_detr", "d_fine"}
METHODS = ["detrdistill", "kd-detr", "fitnet", "hard-label", "low-bit"]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use (CUDA)")]


def on_gpu(values):
    return [pytest.param("cuda", value, marks=GPU, id=f"cuda-{value}") for value in values]


def on_cpu(*values):
    return [pytest.param("cpu", value, id=f"cpu-{value}") for value in values]


def scene(number, height, width):
    """An image of noise with one plain rectangle, in 8 bits, and its target."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randn(3, height, width, generator=generator) * 0.2
    pixels[number, height // 4 : height * 3 // 4, width // 4 : width // 2] = 2.0
    return ((pixels * 0.125 + 0.5) * 255).round().to(torch.uint8), {
        "class_labels": torch.tensor([number]),
        "boxes": torch.tensor([[0.375, 0.5, 0.25, 0.5]]),
        "image_id": torch.tensor([number]),
        "orig_size": torch.tensor([height, width]),
        "size": torch.tensor([height, width]),
    }


class Scenes:
    """A data set of the scenes of some sizes."""

    preprocessing = Preprocessing(size=None, shortest_edge=96, mean=(0.5,) * 3, std=(0.125,) * 3)

    def __init__(self, *sizes):
        self.items = [scene(number, *size) for number, size in enumerate(sizes)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        pixels, target = self.items[index]
        return normalised(pixels, self.preprocessing), target

    def stored(self, index):
        return self.items[index]


@pytest.fixture
def items():
    return Scenes((128, 128), (128, 96))


class Recording(DetectionTrainer):
    """Keeps every step's loss, and whether all of its gradients were finite."""

    def __init__(self, *arguments):
        self.losses, self.finite = [], []
        super().__init__(*arguments)
        self.args.save_strategy = "no"

    def compute_loss(self, model, inputs, **named):
        loss = super().compute_loss(model, inputs, **named)
        self.losses.append(loss.item())
        return loss

    def _clip_grad_norm(self, model):
        self.finite.append(all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None))
        return super()._clip_grad_norm(model)


@pytest.fixture
def train(items, tmp_path):
    """train(module, "cuda", steps): in the default precision of a GPU, on the same batch in every step."""

    def run(module, device, steps):
        precision = "auto" if device == "cuda" else "bfloat16"
        config = Training(max_steps=steps, batch_size=2, lr=1e-3, ema=0, warmup=0, workers=0, precision=precision)
        trainer = Recording(module, items, items, config, tmp_path, [])
        assert trainer.args.bf16
        assert trainer.args.device.type == device
        trainer.train()
        assert trainer.finite == [True] * steps
        assert all(parameter.isfinite().all() for parameter in module.parameters())
        return trainer.losses

    return run


def loss_and_gradient(detector, batch, device, half):
    """A step without dropout and denoising: the loss, and the gradients of all weights in a row."""
    detector = copy.deepcopy(detector).eval().to(device)
    if half:
        keep_boxes_precise(detector)
    labels = [{name: value.to(device) for name, value in target.items()} for target in batch["labels"]]
    with torch.autocast(device, torch.bfloat16, enabled=half):
        loss = detector(batch["pixel_values"].to(device), batch["pixel_mask"].to(device), labels).loss
    loss.backward()
    gradients = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in detector.parameters()]
    return loss.item(), torch.cat([gradient.flatten().float().cpu() for gradient in gradients])


@pytest.mark.parametrize(("device", "name"), [*on_gpu(MODELS), *on_cpu("detr", "smca_detr", "rt_detr_v2", "d_fine")])
def test_half_precision_agrees_with_single_precision_on_a_cpu(tiny_detector, items, device, name):
    backbone = None if name in OWN_BACKBONE else "resnet18"  # a smaller one's features lie too near for halves to choose among
    detector, batch = tiny_detector(name, backbone), collate(items)
    assert batch["padded"]
    with torch.no_grad():
        for parameter in detector.parameters():  # the scores of new heads are all the same
            parameter.add_(0.02 * torch.randn_like(parameter))
    expected, direction = loss_and_gradient(detector, batch, "cpu", half=False)
    found, gradient = loss_and_gradient(detector, batch, device, half=True)
    assert gradient.isfinite().all()
    assert found == pytest.approx(expected, rel=0.1 if name in CHOOSING else 0.05)
    assert name in CHOOSING or torch.cosine_similarity(gradient, direction, dim=0) > 0.8


@pytest.mark.parametrize(("device", "name"), [*on_gpu(MODELS), *on_cpu("detr", "smca_detr", "rt_detr_v2")])
def test_a_family_learns(tiny_detector, train, items, device, name):
    detector = tiny_detector(name)
    losses = train(detector, device, STEPS if device == "cuda" else 2)
    assert torch.tensor(losses).isfinite().all()
    if device == "cuda":
        assert sum(losses[-5:]) < sum(losses[:5])
    for found in detector.predict(collate(items)):
        assert found.boxes.isfinite().all()
        assert found.scores.isfinite().all()


@pytest.mark.parametrize(("device", "method"), [*on_gpu(METHODS), *on_cpu("detrdistill", "low-bit")])
def test_a_distillation_takes_a_step(tiny_detector, train, items, device, method):
    student, teacher = (tiny_detector("detr", backbone="test_resnet", d_model=width) for width in (64, 96))
    distillation = Distillation(method="drd" if method == "low-bit" else method)
    if method == "low-bit":
        prepare(student, distillation)
        student = quantize(student, LowBit(calibration_images=2), [collate(items)])
    (loss,) = train(Distiller(student, teacher, build_terms(distillation, student, teacher)), device, 1)
    assert torch.tensor(loss).isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use (CUDA)")
def test_what_only_a_gpu_gains_from_is_on(tiny_detector, items, tmp_path):
    config = Training(max_steps=1, batch_size=2, workers=0, precision="float32")
    trainer, seen = DetectionTrainer(tiny_detector("rt_detr_v2"), items, items, config, tmp_path, []), []

    def look(_module, _given, named):
        layout = named["pixel_values"].is_contiguous(memory_format=torch.channels_last)
        seen.append((layout, torch.get_float32_matmul_precision()))

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.args.save_strategy = "no"
    trainer.train()
    assert seen == [(True, "high")]
    assert torch.get_float32_matmul_precision() == "highest"
    assert trainer.optimizer.optimizer.defaults["fused"]
    kernels = [weight for weight in trainer.model.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use (CUDA)")
@pytest.mark.parametrize("name", ["detr", "smca_detr", "swin_detr"])
def test_no_attention_is_cudnns(tiny_detector, items, name):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss_and_gradient(tiny_detector(name), collate(items), "cuda", half=True)
    kernels = [event.key for event in profile.key_averages() if "scaled_dot_product" in event.key]
    assert kernels
    assert not [kernel for kernel in kernels if "cudnn" in kernel]
