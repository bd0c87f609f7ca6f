"""BatchNorm whose statistics are those of all processes' images, in place of each process's own."""

from __future__ import annotations

from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leandetr.errors import UserError
from leandetr.processes import processes, say


def synchronise(module: nn.Module) -> None:
    """Let the norms that train take the statistics of all processes' batches. One process has them already.

    The parameters and buffers stay the same tensors under the same names. (timm's conversion, because PyTorch's drops the
    activation that timm's backbones have fused into their norms.)

    Raises UserError on a CPU, where PyTorch has no such norm, and where no norm trains.
    """
    state = processes()
    if not any(isinstance(part, _BatchNorm) for part in module.modules()):
        raise UserError("training.sync_batchnorm: this model trains no BatchNorm (its norms are frozen); leave it out")
    if state.num_processes == 1:
        say("training.sync_batchnorm: one process has nothing to synchronise with")
        return
    if state.device.type == "cpu":
        raise UserError("training.sync_batchnorm needs GPUs: PyTorch synchronises no norms on CPUs; set it to false")
    convert_sync_batchnorm(module)
