from .deployment.runtimes import open_runtime
from .detectors.checkpoints.load import load
from .detectors.create import create
from .detectors.detector import Detector
from .detectors.spec import NewBackbone, NewDetector
from .distillation import Distillation, Distiller, Teaching, Term, build_terms
from .errors import UserError
from .pruning import Pruning
from .quantization import Dynamic, LowBit, Scheme, SmoothQuant, Static, Unified, WeightOnly
from .recipe import Goal, GoalRecipe, Recipe, read_recipe
from .runs import compress
from .serving.limits import ServerLimits
from .structures import ClassMap, Detections, DetectorOutput, Preprocessing, Queries
from .training.config import Training
from .trimming import TrimGoal
from .verbs import LowBitTraining, benchmark, distill, evaluate, export, predict, pretrain, prune, quantize, serve, train, trim

__version__: str
__all__ = [
    "ClassMap",
    "Detections",
    "Detector",
    "DetectorOutput",
    "Distillation",
    "Distiller",
    "Dynamic",
    "Goal",
    "GoalRecipe",
    "LowBit",
    "LowBitTraining",
    "NewBackbone",
    "NewDetector",
    "Preprocessing",
    "Pruning",
    "Queries",
    "Recipe",
    "Scheme",
    "ServerLimits",
    "SmoothQuant",
    "Static",
    "Teaching",
    "Term",
    "Training",
    "TrimGoal",
    "Unified",
    "UserError",
    "WeightOnly",
    "benchmark",
    "build_terms",
    "compress",
    "create",
    "distill",
    "evaluate",
    "export",
    "load",
    "open_runtime",
    "predict",
    "pretrain",
    "prune",
    "quantize",
    "read_recipe",
    "serve",
    "train",
    "trim",
]
