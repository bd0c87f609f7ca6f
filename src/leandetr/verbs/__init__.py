"""The verbs of the command line as Python functions: each reads files, does one thing, writes files and returns what it
made."""

from leandetr.verbs.artefacts import benchmark, detections_of, evaluate, evaluate_runtime, export, predict
from leandetr.verbs.data import Data, opened, split_of, state_of
from leandetr.verbs.fitting import open_teacher
from leandetr.verbs.low_bit import LowBitTraining
from leandetr.verbs.pruning import prune
from leandetr.verbs.quantization import quantize, quantize_within
from leandetr.verbs.serving import serve
from leandetr.verbs.training import distill, pretrain, train
from leandetr.verbs.trimming import trim

__all__ = [
    "Data",
    "LowBitTraining",
    "benchmark",
    "detections_of",
    "distill",
    "evaluate",
    "evaluate_runtime",
    "export",
    "open_teacher",
    "opened",
    "predict",
    "pretrain",
    "prune",
    "quantize",
    "quantize_within",
    "serve",
    "split_of",
    "state_of",
    "train",
    "trim",
]
