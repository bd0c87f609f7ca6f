"""OpenVINO's own file format. An ONNX file runs on OpenVINO as it is; this is for programs that want the converted one."""

from __future__ import annotations

import functools
import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import onnx

from leandetr.deployment.metadata import KEY
from leandetr.errors import UserError
from leandetr.files import writing


def convert_openvino(onnx_path: Path, xml_path: Path) -> Path:
    """Write `xml_path` and, beside it, the weights (`.bin`), in the precision of the ONNX file and with its metadata.

    Raises:
        UserError: openvino is not installed, `xml_path` does not end in .xml, or the ONNX file cannot be read.
    """
    xml_path = Path(xml_path)
    check_xml(xml_path)
    openvino = import_openvino()
    text = onnx_metadata(onnx_path)
    model = read_onnx(onnx_path)
    if text is not None:
        model.set_rt_info(text, KEY)
    with (
        writing(xml_path.with_suffix(".bin")) as weights,
        writing(xml_path) as graph,
        TemporaryDirectory(dir=xml_path.parent, prefix=".") as folder,  # OpenVINO wants the final suffixes already here
    ):
        openvino.serialize(model, f"{folder}/model.xml", f"{folder}/model.bin")
        os.replace(f"{folder}/model.bin", weights)
        os.replace(f"{folder}/model.xml", graph)
    return xml_path


def read_onnx(path: Path) -> Any:
    """The `openvino.Model` of an ONNX file, as openvino.convert_model makes it; but that reports every use to Intel, and waits
    for the network where there is none.

    OpenVINO 2026.4 loses biases before a pair of quantize and dequantize, and fails on some static graphs, unless the
    constants of what was read are folded. Raises RuntimeError where it cannot read the file.
    """
    model = core().read_model(path)
    import_module("openvino._offline_transformations").apply_moc_transformations(model, cf=True, smart_reshape=True)
    return model


def check_xml(path: Path) -> None:
    """Raises UserError where `path` is no name for an OpenVINO model."""
    if path.suffix != ".xml":
        raise UserError(f"{path}: an OpenVINO file ends in .xml; name it so")


def import_openvino() -> ModuleType:
    """Raises UserError where the package is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise UserError("this needs the package openvino; install it with: pip install 'leandetr[openvino]'") from error
    return openvino


def core() -> Any:
    """The process's one `openvino.Core`, for good.

    Every Core gives the thread that makes it a stack for signal handlers, and at its end puts back the one that was there
    before: where the first of two Cores ends first, that one is gone, and the next signal (a child process has ended) kills
    the process.

    Raises UserError where the package is not installed.
    """
    return _core(import_openvino())


@functools.cache
def _core(openvino: ModuleType) -> Any:
    return openvino.Core()


def onnx_metadata(path: Path) -> str | None:
    """The text that `export_onnx` left in an ONNX file; None where it was written by something else.

    Raises UserError where the file is missing or not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of an ONNX file") from error
    except Exception as error:  # protobuf's errors have no common class
        raise UserError(f"{path} is not an ONNX file or is truncated; export it again") from error
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
