"""What the columns of a class head mean, and by which loss they are trained."""

from enum import StrEnum

from torch import Tensor


class Head(StrEnum):
    """SOFTMAX: K + 1 columns that exclude each other, the last one no-object. SIGMOID: K columns, each a yes or no of its own.

    Its text is what files hold.

    >>> Head("softmax").columns(80), Head("sigmoid").columns(80)
    (81, 80)
    """

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"

    @property
    def has_no_object(self) -> bool:
        return self is Head.SOFTMAX

    def columns(self, classes: int) -> int:
        return classes + self.has_no_object

    def distribution(self, logits: Tensor) -> Tensor:
        """(..., C) -> (..., C), the probability of every column, no-object's among them."""
        return logits.softmax(-1) if self.has_no_object else logits.sigmoid()

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) -> (..., K), of the classes alone."""
        found = self.distribution(logits)
        return found[..., :-1] if self.has_no_object else found


class ClassLoss(StrEnum):
    """How the classes of a family's queries are trained, see `losses/class_losses.py`; cross-entropy with a softmax head."""

    CROSS_ENTROPY = "cross-entropy"
    FOCAL = "focal"
    VARIFOCAL = "varifocal"
    MATCHABILITY_AWARE = "matchability-aware"
    IOU_AWARE = "iou-aware"

    @property
    def head(self) -> Head:
        return Head.SOFTMAX if self is ClassLoss.CROSS_ENTROPY else Head.SIGMOID
