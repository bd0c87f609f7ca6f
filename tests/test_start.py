"""What starting promises: the command line answers without the libraries that build detectors, which report errors alone when a
command imports them; transformers reads what leandetr writes once it was told to."""

import json
import subprocess
import sys

import pytest
import torchvision
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from leandetr.detectors import names
from leandetr.detectors.teachers import CLASS_HEADS
from leandetr.quantization import quantize
from leandetr.quantization.config import WeightOnly

HEAVY = {"torch", "torchvision", "transformers", "timm", "accelerate", "numpy", "scipy", "pandas", "matplotlib", "PIL", "onnx"}
HEAVY |= {"onnxruntime", "openvino", "faster_coco_eval", "supervision", "safetensors", "jinja2"}
MAIN = "from leandetr.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"


def python(code, *arguments):
    """What the code writes into `found`, after it ran in a process of its own."""
    code += "\nimport json, sys\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_import_needs_no_heavy_library():
    names, loaded = python("import leandetr, sys\nfound = [dir(leandetr), sorted(sys.modules)]")
    assert {"Detector", "train"} <= set(names)
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "models", "train --help", "analyze --help", "trian", "train --epoch 3", "quantize runs/student"],
)
def test_an_answer_needs_no_heavy_library(arguments):
    loaded = python(f"{MAIN}\nimport sys\nfound = sorted(sys.modules)", *arguments.split())
    assert "leandetr.cli.models" in loaded
    assert not HEAVY & set(loaded)


def test_libraries_that_a_command_imports_report_errors_alone():
    code = f"{MAIN}\nimport logging\nimport torch\nfrom transformers.utils import logging as theirs\nfound = ["
    code += "logging.getLogger('torch.onnx').getEffectiveLevel(), theirs.get_verbosity(), theirs.is_progress_bar_enabled()]"
    assert python(code, "--version") == [40, 40, False]


@pytest.mark.parametrize(
    "code",
    [
        "import leandetr.transformers\nfrom transformers import AutoModelForObjectDetection as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1])",
        pytest.param(
            "from leandetr.detectors.checkpoints.load import load\nmodel = load(sys.argv[1]).model", marks=pytest.mark.slow
        ),
    ],
    ids=["transformers", "load"],
)
def test_a_fresh_process_reads_a_quantized_detector_of_a_family_that_is_built_here(tiny_detector, tmp_path, code):
    quantize(tiny_detector("smca_detr", backbone="test_resnet"), WeightOnly()).save(tmp_path)
    code = f"import sys\n{code}\nfound = [type(model).__name__, len(model.config.quantization_config.layers) > 10]"
    assert python(code, str(tmp_path)) == ["SmcaDetrForObjectDetection", True]


def test_names_are_those_of_the_installed_libraries():
    assert {name for name in names.MODELS if names.missing(name)} == {
        name for name, recipe in names.MODELS.items() if recipe.model_type not in CONFIG_MAPPING
    }
    theirs = torchvision.models.list_models(module=torchvision.models.detection)
    assert list(names.TORCHVISION) == [name for name in theirs if name.partition("_")[0] in CLASS_HEADS]
