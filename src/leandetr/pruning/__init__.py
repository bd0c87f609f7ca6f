"""Hidden units, attention heads and inner channels of a trained detector, ranked by what they do for the loss and left out."""

from leandetr.pruning.config import Pruning
from leandetr.pruning.prune import prune_units

__all__ = ["Pruning", "prune_units"]
