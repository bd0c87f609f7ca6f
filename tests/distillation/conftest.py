"""Random detector outputs for the terms' tests."""

import pytest
import torch
from torch import Tensor

from leandetr.heads import Head
from leandetr.structures import DetectorOutput, Memory, Queries


@pytest.fixture
def output():
    """output(...): a random `DetectorOutput` of 2 images and 5 classes; every call draws another one.

    widths: channels of 4 x 4 feature maps, one a level. shapes: (B, D, h, w) of the maps instead. The maps' mean square is 1.
    grad: every tensor is a leaf that gathers its gradient.
    """
    torch.manual_seed(0)

    def build(
        layers: int = 3,
        images: int = 2,
        queries: int = 8,
        head: Head = Head.SIGMOID,
        widths: list[int] = [8],  # noqa: B006 - read alone
        shapes: list[tuple[int, int, int, int]] | None = None,
        grad: bool = False,
    ) -> DetectorOutput:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.requires_grad_(grad)

        maps = [torch.randn(shape) for shape in shapes or [(images, width, 4, 4) for width in widths]]
        features = [leaf(level / level.square().mean().sqrt()) for level in maps]
        images, width = features[0].shape[:2]
        centres, sizes = torch.rand(2, layers, images, queries, 2) * 0.5
        hidden = leaf(torch.randn(layers, images, queries, width))
        return DetectorOutput(
            logits=leaf(torch.randn(layers, images, queries, 5 + (head == Head.SOFTMAX))),
            boxes=leaf(torch.cat([centres + 0.25, sizes + 0.02], -1)),
            hidden=hidden,
            queries=Queries(content=hidden[0].detach()),
            memory=Memory(features[0].flatten(2).mT, [tuple(level.shape[-2:]) for level in features], {}),
            features=features,
        )

    return build
