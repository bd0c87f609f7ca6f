"""What the tests of single models share."""

import onnxruntime
import pytest
import torch
from torch import nn


class TensorsAlone(nn.Module):
    """A detection model as a function from pixel values to logits and boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        found = self.model(pixel_values)
        return found.logits, found.pred_boxes


@pytest.fixture
def agrees_in_onnx(tmp_path):
    """agrees_in_onnx(model, size): exported with a batch of two, ONNX Runtime gives the model's own logits and boxes, to 1e-4,
    for one image of this (height, width) and for three."""

    @torch.no_grad()
    def check(model: nn.Module, size: tuple[int, int]) -> None:
        path = tmp_path / "model.onnx"
        torch.onnx.export(
            TensorsAlone(model), (torch.randn(2, 3, *size),), path, dynamo=True, opset_version=21, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},), optimize=True,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            pixels = torch.randn(batch, 3, *size)
            expected = model(pixels)
            logits, boxes = session.run(None, {"pixel_values": pixels.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), expected.logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(torch.from_numpy(boxes), expected.pred_boxes, atol=1e-4, rtol=0)

    return check
