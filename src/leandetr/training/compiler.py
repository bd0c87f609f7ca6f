"""What `torch.compile` needs on a machine."""

import os
import shutil
from importlib.util import find_spec

import torch

from leandetr.errors import UserError


def check_compiler(device: torch.device) -> None:
    """Raises UserError where what compiles kernels for the device is not there."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise UserError(
                "training.compile: the package triton is not installed; install it or set training.compile to false"
            )
    elif not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        raise UserError("training.compile: there is no C++ compiler; install g++ or set training.compile to false")
