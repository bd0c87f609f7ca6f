"""What runs into what, and where that puts grids and folds norms; on blocks small enough to say it by hand."""

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from leandetr.quantization.config import Static
from leandetr.quantization.passes.flow import watch
from leandetr.quantization.passes.fold import fold_batch_norms
from leandetr.quantization.passes.placement import place

X = torch.randn(1, 8, 6, 6)


def placed(model: nn.Module, **options):
    settings = {module: Static(**options) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    return place(model, settings, lambda: model(X))


def test_a_residual_block_is_integer_throughout():
    block = BasicBlock(8, 8).eval()  # its shortcut is added in place: what its last ReLU gets is not the convolution's output
    fold_batch_norms(block, lambda: block(X))
    plans, activations = placed(block).plans, placed(block).activations
    assert set(activations) == {block.act1}
    assert (plans[block.conv1].input, plans[block.conv1].output_bits) == ("grid", None)
    assert (plans[block.conv2].input, plans[block.conv2].output_bits) == ("given", 8)


def test_for_tensorrt_nothing_stands_between_a_convolution_and_the_shortcut():
    blocks = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)).eval()
    fold_batch_norms(blocks, lambda: blocks(X))
    placement = placed(blocks, target="tensorrt")
    assert {placement.plans[conv].output_bits for block in blocks for conv in (block.conv1, block.conv2)} == {None}
    assert set(placement.activations) == {blocks[0].act1, blocks[0].act2, blocks[1].act1}  # the shortcut is on a grid
    assert all(setting.symmetric for setting in (*placement.inputs.values(), *placement.outputs.values()))


def test_the_sum_of_a_block_is_on_a_grid_where_a_convolution_reads_it():
    blocks = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)).eval()
    fold_batch_norms(blocks, lambda: blocks(X))
    placement = placed(blocks)
    assert blocks[0].act2 in placement.activations
    assert placement.sources[blocks[1].conv1] is blocks[0].act2
    assert blocks[1].act2 not in placement.activations


def test_padding_never_stands_between_a_grid_and_a_convolution():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU6(), Conv2dSame(8, 8, 3, stride=2), nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()
    placement = placed(model)
    assert [placement.plans[model[i]].input for i in (0, 2, 4)] == ["grid", "grid", "grid"]
    assert [placement.plans[model[i]].output_bits for i in (0, 2, 4)] == [None, 8, 8]
    assert set(placement.activations) == {model[1]}


def test_a_layer_that_never_runs_gets_no_grid():
    model = nn.Sequential(nn.Conv2d(8, 8, 1)).eval()
    model[0].spare = nn.Linear(2, 2)
    assert placed(model).idle == {model[0].spare}


def test_a_module_that_runs_twice_has_no_source():
    conv, relu = nn.Conv2d(8, 8, 1), nn.ReLU()
    flow = watch([conv, relu], lambda: relu(conv(relu(conv(X)))))
    assert flow.sources[relu] == [conv, conv]
    assert flow.source(relu) is None


class Shared(nn.Module):
    """A convolution whose output goes into a norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + self.other(x)


@pytest.mark.parametrize(
    ("model", "folded"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)), 1),
        (nn.Sequential(nn.Conv2d(8, 8, 3), BatchNormAct2d(8)), 1),
        (nn.Sequential(Conv2dSame(8, 8, 3, groups=8, stride=2), nn.BatchNorm2d(8, affine=False), nn.ReLU(inplace=True)), 1),
        (nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)), 0),
        (nn.Sequential(nn.Conv2d(8, 8, 3), nn.Dropout(), nn.BatchNorm2d(8)), 1),
        (Shared(), 0),
    ],
    ids=["plain", "with activation", "depthwise", "norm first", "dropout between", "two readers"],
)
def test_folding_keeps_the_function(model, folded):
    torch.manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    model.eval()
    with torch.no_grad():
        before = model(X)
        assert len(fold_batch_norms(model, lambda: model(X))) == folded
        torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-4)
