from .deployment.runtimes import open_runtime
from .detectors.checkpoints.load import load
from .detectors.create import create
from .detectors.detector import Detector
from .errors import UserError
from .recipe import Recipe, read_recipe
from .runs import compress
from .structures import ClassMap, Detections, DetectorOutput, Preprocessing, Queries
from .training.config import Training
from .verbs import benchmark, distill, evaluate, export, predict, pretrain, quantize, train

__version__: str
__all__ = [
    "ClassMap",
    "Detections",
    "Detector",
    "DetectorOutput",
    "Preprocessing",
    "Queries",
    "Recipe",
    "Training",
    "UserError",
    "benchmark",
    "compress",
    "create",
    "distill",
    "evaluate",
    "export",
    "load",
    "open_runtime",
    "predict",
    "pretrain",
    "quantize",
    "read_recipe",
    "train",
]
