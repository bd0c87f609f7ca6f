"""Exported attention is PyTorch's, and neither it nor a reshape beside it computes a shape when it runs."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch.nn import functional as F

from leandetr.deployment.attention import attention_translations
from leandetr.deployment.rewrites import infer_free_lengths

HEADS, WIDTH = 4, 6


class Attention(torch.nn.Module):
    def __init__(self, mask, scale):
        super().__init__()
        self.mask, self.scale = mask, scale

    def forward(self, x, y):
        query, key, value = (each.view(each.shape[0], -1, HEADS, WIDTH).transpose(1, 2) for each in (x, y, y + 1))
        answer = F.scaled_dot_product_attention(query, key, value, self.mask, scale=self.scale)
        return answer.transpose(1, 2).reshape(x.shape[0], -1, HEADS * WIDTH)


MASK = torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.4


@pytest.mark.parametrize(
    "mask", [None, MASK[:1], torch.zeros(5, 7).masked_fill(MASK[0, 0], -3.0)], ids=["none", "bool", "float"]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_pytorchs_and_computes_no_shapes(mask, scale):
    model, free = Attention(mask, scale), {0: torch.export.Dim.DYNAMIC}
    sample = torch.rand(2, 5, HEADS * WIDTH), torch.rand(2, 7, HEADS * WIDTH)
    program = torch.export.export(model, sample, dynamic_shapes=(free, free))
    exported = torch.onnx.export(
        program, dynamo=True, opset_version=21, optimize=False, verbose=False, custom_translation_table=attention_translations()
    ).model
    common.InlinePass()(exported)
    fold_constants(exported)
    infer_free_lengths(exported.graph)
    common.RemoveUnusedNodesPass()(exported)
    kinds = {node.op_type for node in exported.graph}
    assert kinds.isdisjoint({"Shape", "Concat", "Slice", "Gather", "Expand"})
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(exported)
    file = torch.onnx.ONNXProgram(exported, program).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x, y = torch.randn(batch, 5, HEADS * WIDTH), torch.randn(batch, 7, HEADS * WIDTH)
        feed = dict(zip((item.name for item in session.get_inputs()), (x.numpy(), y.numpy()), strict=True))
        np.testing.assert_allclose(session.run(None, feed)[0], model(x, y), atol=1e-5)
