"""What the engines promise: one answer, one interface, and a sentence for every file that they cannot run."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import leandetr
from leandetr.data.images import pixels_of
from leandetr.data.transforms import eval_transform, normalised
from leandetr.deployment.metadata import KEY, Metadata, describe
from leandetr.deployment.openvino import convert_openvino
from leandetr.deployment.pytorch import PyTorchRuntime
from leandetr.deployment.runtimes import OpenVinoRuntime, open_runtime
from leandetr.detectors.postprocess import postprocess
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.structures import Preprocessing


@pytest.fixture(scope="module")
def saved(artefact, tmp_path_factory):
    """One detector in the three forms that it can be run from."""
    detector, graph = artefact("conditional_detr")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("saved")
    detector.save(folder / "folder")
    convert_openvino(graph, folder / "model.xml")
    return detector, {"pytorch": folder / "folder", "onnxruntime": graph, "openvino": folder / "model.xml"}


def test_all_engines_answer_alike(saved, batch):
    detector, sources = saved
    given = batch(3)
    with torch.no_grad():
        expected = detector(given["pixel_values"])
    runtimes = {name: open_runtime(source) for name, source in sources.items()}
    runtimes["the same file"] = open_runtime(sources["onnxruntime"], engine="openvino")
    for name, runtime in runtimes.items():
        assert runtime.name == ("openvino" if name == "the same file" else name)
        assert (runtime.preprocessing, runtime.class_map) == (detector.preprocessing, detector.class_map)
        assert runtime.parameters == sum(parameter.numel() for parameter in detector.parameters())
        logits, boxes = runtime.run(given["pixel_values"], None)
        torch.testing.assert_close(logits, expected.logits[-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(boxes, expected.boxes[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("deformable_detr", {"d_model": 32}, "cannot answer an image of 32 32 .its coarsest map has one cell, .* at least"),
        ("rt_detr_v2", {"num_queries": 300}, "300 queries cannot be chosen among the .* cells of an image of 32 32"),
    ],
)
def test_a_size_that_pytorch_cannot_answer_is_one_sentence(tiny_detector, name, overrides, sentence):
    runtime = PyTorchRuntime(tiny_detector(name, **overrides), "runs/mine")
    with pytest.raises(UserError, match=f"runs/mine: .*{sentence}"):
        runtime.run(torch.zeros(1, 3, 32, 32), None)


def test_an_answer_is_the_raw_step_and_the_one_post_processing(saved, batch):
    detector, sources = saved
    given = batch(2)
    for source in sources.values():
        runtime = open_runtime(source)
        sizes = torch.tensor([[480, 640], [480, 640]])
        expected = postprocess(*runtime.run(given["pixel_values"], None), detector.head, sizes)
        assert all(torch.equal(mine.boxes, theirs.boxes) for mine, theirs in zip(expected, runtime(given), strict=True))


def test_one_photograph_in_any_form_has_one_answer(saved, photograph):
    """As every engine's answer to a batch, without what scores too little."""
    detector, sources = saved
    path = photograph()
    for source in (sources["onnxruntime"], sources["pytorch"]):
        runtime = leandetr.open_runtime(source)
        found = runtime.predict(path, threshold=0)
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        seen = eval_transform(detector.preprocessing)(pixels_of(Image.open(path)), torch.zeros(0, 4), torch.zeros(0), 0)[0]
        pixels = normalised(seen[None], detector.preprocessing)
        (expected,) = postprocess(*runtime.run(pixels, None), detector.head, torch.tensor([[80, 120]]))
        torch.testing.assert_close(found.boxes, expected.boxes)
        for given in (str(path), Image.open(path), np.asarray(Image.open(path))):
            assert torch.equal(runtime.predict(given, threshold=0).boxes, found.boxes)
        middle = float(found.scores[3])
        assert len(runtime.predict(path, threshold=middle).scores) == int((found.scores >= middle).sum()) < len(found.scores)
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), None):
        with pytest.raises(UserError, match="an image cannot be"):
            runtime.predict(wrong)


def test_openvino_says_that_it_stays_on_the_cpu(saved, caplog):
    _, sources = saved
    assert leandetr.open_runtime(sources["openvino"], device="cuda").device.type == "cpu"
    assert "runs on the CPU: OpenVINO computes nowhere else here" in caplog.text


def test_size_is_what_was_written(saved):
    _, sources = saved
    bytes_of = {name: open_runtime(source).size_bytes for name, source in sources.items()}
    assert bytes_of["pytorch"] == (sources["pytorch"] / "model.safetensors").stat().st_size
    assert bytes_of["onnxruntime"] == sources["onnxruntime"].stat().st_size
    assert bytes_of["openvino"] == sum(sources["openvino"].with_suffix(end).stat().st_size for end in (".xml", ".bin"))


@pytest.mark.parametrize("name", ["rt_detr_v2", "detr", "deformable_detr_refine"])
def test_metadata_survives_the_text(build, name):
    detector = build(name)
    for preprocessing in (detector.preprocessing, Preprocessing(None, 480, 640, (0.4, 0.5, 0.6), (1.0, 2.0, 3.0))):
        metadata = describe(detector, preprocessing)
        assert Metadata.from_json(metadata.to_json()) == metadata
        assert metadata.head == (Head.SOFTMAX if name == "detr" else Head.SIGMOID)
        assert metadata.scheme is None


def stranger(folder, text=None):
    """A valid ONNX file that leandetr did not write."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output]))
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, folder / "m.onnx")


@pytest.mark.parametrize(
    ("write", "name", "engine", "message"),
    [
        (lambda folder: None, "m.onnx", None, "no such file"),
        (lambda folder: None, "m.xml", None, "no such file"),
        (lambda folder: None, "./m", None, "no such folder"),
        (lambda folder: (folder / "m.onnx").write_bytes(b"\x00truncated"), "m.onnx", None, "not an ONNX file"),
        (lambda folder: (folder / "m.onnx").write_bytes(b"\x00truncated"), "m.onnx", "openvino", "not an ONNX file"),
        (stranger, "m.onnx", None, "does not say what its classes"),
        (lambda folder: stranger(folder, "{}"), "m.onnx", None, "another version of leandetr"),
        (
            lambda folder: [(folder / f"m.{end}").write_text("?") for end in ("xml", "bin")],
            "m.xml",
            None,
            "not an OpenVINO model",
        ),
        (stranger, "m.onnx", "pytorch", "runs on onnxruntime, onnxruntime-tensorrt, openvino"),
        (stranger, "m.onnx", "onnxrutime", "did you mean 'onnxruntime'"),
        (lambda folder: None, "m.xml", "onnxruntime", "it runs on openvino"),
    ],
)
def test_what_cannot_be_run(tmp_path, monkeypatch, write, name, engine, message):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        open_runtime(name, engine=engine)


def test_a_graph_that_onnx_runtime_refuses(tmp_path, artefact, capfd):
    detector, _ = artefact("conditional_detr")
    stranger(tmp_path, describe(detector, detector.preprocessing).to_json())
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"m\.onnx: ONNX Runtime refuses it"):
        open_runtime(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_without_openvino_its_extra_is_named(artefact, tmp_path, monkeypatch):
    _, graph = artefact("conditional_detr")
    monkeypatch.setitem(sys.modules, "openvino", None)
    for attempt in (lambda: OpenVinoRuntime(graph), lambda: convert_openvino(graph, tmp_path / "m.xml")):
        with pytest.raises(UserError, match=r"pip install 'leandetr\[openvino\]'"):
            attempt()
    with pytest.raises(UserError, match=r"ends in \.xml"):
        convert_openvino(graph, tmp_path / "m.bin")
    assert not list(tmp_path.iterdir())


def test_threads_are_those_asked_for(saved):
    _, sources = saved
    before = torch.get_num_threads()
    try:
        runtime = open_runtime(sources["onnxruntime"], threads=1)
        assert runtime.session.get_session_options().intra_op_num_threads == 1
        assert torch.get_num_threads() == 1
        open_runtime(sources["pytorch"], threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_metadata_is_plain_json(artefact):
    _, path = artefact("conditional_detr")
    (entry,) = onnx.load(path).metadata_props
    values = json.loads(entry.value)
    assert values["class_map"]["dataset_ids"] == [1, 3, 7, 9, 90]
    assert values["preprocessing"]["size"] == [96, 96]
    assert {"leandetr", "torch", "transformers", "source"} <= set(values["provenance"])


@pytest.mark.slow
def test_a_child_may_end_whatever_has_become_of_the_runtimes(saved):
    """Two of them, the first closed first, and a handler for a child's end, as PyTorch's loading of images sets it."""
    code = """if True:
        import signal, subprocess, sys
        from leandetr.deployment.runtimes import OpenVinoRuntime
        first, second = OpenVinoRuntime(sys.argv[1]), OpenVinoRuntime(sys.argv[1])
        del first
        del second
        signal.signal(signal.SIGCHLD, lambda *_: print("ended"))
        subprocess.run(["true"], check=True)
    """
    ran = subprocess.run([sys.executable, "-c", code, saved[1]["openvino"]], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "ended\n")
