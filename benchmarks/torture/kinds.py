"""The kinds of hostile input: what of the subjects is mutated, and the command that must bear it.

A kind takes the source of chance and a folder with copies of all subjects, changes some files there and returns the arguments
of `leandetr`, which runs in that folder and may write into `out` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import onnx
import yaml

from torture import images, mutate

Kind = Callable[[Random, Path], list[str]]


def put(file: Path, content: bytes) -> None:
    """In place of a file that other folders may link to."""
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _predict(model: str, *more: str) -> list[str]:
    return ["predict", model, "photo.jpg", "--out", "out", "--no-pictures", *more]


def config(random: Random, case: Path) -> list[str]:
    file = case / "model/config.json"
    put(file, mutate.document(random, json.loads(file.read_text())))
    if random.random() < 0.1:
        return ["train", "--model", "model", "--data", "coco", "--out", "out", "--max-steps", "1", "--epochs", "1"]
    return _predict("model")


def preprocessor(random: Random, case: Path) -> list[str]:
    file = case / "model/preprocessor_config.json"
    put(file, mutate.document(random, json.loads(file.read_text())))
    return _predict("model")


def safetensors(random: Random, case: Path) -> list[str]:
    file = case / "model/model.safetensors"
    put(file, mutate.safetensors(random, file.read_bytes()))
    return _predict("model")


def graph(random: Random, case: Path) -> list[str]:
    """An ONNX file damaged as bytes, or in its nodes, constants and outputs."""
    file = case / "model.onnx"
    if random.random() < 0.4:
        put(file, mutate.data(random, file.read_bytes()))
        return _predict("model.onnx", "--engine", "onnxruntime")
    model = onnx.load(file)
    for _ in range(random.randint(1, 3)):
        _damage(random, model.graph)
    put(file, model.SerializeToString())
    return _predict("model.onnx")


def _damage(random: Random, found: onnx.GraphProto) -> None:
    what = random.randrange(6)
    node, constant = random.choice(found.node), random.choice(found.initializer)
    if what == 0:
        found.node.remove(node)
    elif what == 1:
        node.op_type = random.choice(["Identity", "MatMul", "NoSuchOperator", "Relu", ""])
    elif what == 2 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(["", "nowhere", random.choice(found.node).output[0]])
    elif what == 3:
        del constant.dims[:]
        constant.dims.extend(random.choice([[], [-1], [2**40], [0], [1, 1, 1]]))
    elif what == 4:
        constant.data_type = random.randrange(30)
    elif random.random() < 0.5:
        random.choice(found.output).name = "nowhere"
    else:
        constant.raw_data = mutate.data(random, constant.raw_data)


def metadata(random: Random, case: Path) -> list[str]:
    """What an ONNX file says about itself."""
    file = case / "model.onnx"
    model = onnx.load(file)
    for entry in model.metadata_props:
        if entry.key == "leandetr":
            entry.value = mutate.document(random, json.loads(entry.value)).decode(errors="replace")
    put(file, model.SerializeToString())
    return _predict("model.onnx")


def results(random: Random, case: Path) -> list[str]:
    file = case / "results.json"
    put(file, mutate.document(random, json.loads(file.read_text())))
    return ["evaluate", "results.json", "--annotations", "coco/annotations/instances_val.json", "--json", "out/numbers.json"]


def _read(random: Random, folder: str) -> list[str]:
    """One of the commands that read a data set."""
    evaluate = ["evaluate", "model", "--data", folder]
    if folder in ("coco", "roboflow"):
        return random.choice([["data", "check", folder], evaluate])
    return random.choice([["data", "check", folder], ["data", "convert", folder, "--out", "out"], evaluate])


def _of_files(folder: str, *patterns: str) -> Kind:
    """A data set one or two of whose text files, as the patterns say, are mutated."""

    def kind(random: Random, case: Path) -> list[str]:
        files = sorted(file for pattern in patterns for file in (case / folder).glob(pattern))
        for file in dict.fromkeys(random.choice(files) for _ in range(random.randint(1, 2))):
            given = file.read_text()
            if file.suffix == ".json":
                put(file, mutate.document(random, json.loads(given)))
            elif file.suffix == ".yaml":
                put(file, _yaml(random, given))
            elif file.suffix == ".jsonl":
                put(file, _lines(random, given))
            else:
                put(file, mutate.text(random, _other_words(random, given)))
        return _read(random, folder)

    return kind


def _lines(random: Random, given: str) -> bytes:
    lines = [line.encode() for line in given.splitlines()]
    place = random.randrange(len(lines))
    lines[place] = mutate.document(random, json.loads(lines[place])).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


def _other_words(random: Random, given: str) -> str:
    """A text in which one piece between separators is something else."""
    marks = random.choice([",", ">", " ", "\n", "<"])
    pieces = given.split(marks)
    if random.random() < 0.7:
        pieces[random.randrange(len(pieces))] = str(random.choice(mutate.HOSTILE))
    return marks.join(pieces)


def _yaml(random: Random, given: str) -> bytes:
    if random.random() < 0.3:
        return mutate.text(random, given)
    try:
        return yaml.safe_dump(mutate.value(random, yaml.safe_load(given)), sort_keys=False).encode(errors="surrogatepass")
    except (yaml.YAMLError, ValueError):
        return mutate.text(random, given)


def photographs(random: Random, case: Path) -> list[str]:
    """Images of other kinds, damaged ones, and of an ending that is not theirs."""
    if random.random() < 0.5:
        name = f"photo{random.choice(images.ENDINGS)}"
        put(case / name, images.image(random))
        return ["predict", "model", name, "--out", "out"]
    for file in random.sample(sorted(case.glob("coco/*/*.*g")), random.randint(1, 2)):
        put(file, images.image(random))
    return _read(random, "coco")


def recipe(random: Random, case: Path) -> list[str]:
    file = case / "recipe.yaml"
    put(file, _yaml(random, file.read_text()))
    if random.random() < 0.1:
        return ["compress", "recipe.yaml", "--out", "out", "--budget-minutes", "0"]
    return ["compress", "recipe.yaml", "--out", "out", "--show"]


def settings(random: Random, case: Path) -> list[str]:
    """Values of --set."""
    given = yaml.safe_load((case / "recipe.yaml").read_text())
    keys = [
        *_keys(given),
        "seeds",
        "epochs",
        "variants",
        "student.training.lr",
        "benchmark.threads",
        "student.set.d_model",
        "x.y",
    ]
    pairs = [f"{random.choice(keys)}={_shown(random)}" for _ in range(random.randint(1, 2))]
    rest = ["--budget-minutes", "0"] if random.random() < 0.1 else ["--show"]
    return ["compress", "recipe.yaml", "--out", "out", *rest, *(part for pair in pairs for part in ("--set", pair))]


def _keys(given: object, prefix: str = "") -> list[str]:
    if not isinstance(given, dict):
        return []
    return [key for name, below in given.items() for key in (f"{prefix}{name}", *_keys(below, f"{prefix}{name}."))]


def _shown(random: Random) -> str:
    chosen = random.choice(mutate.HOSTILE)
    try:
        shown = json.dumps(chosen) if random.random() < 0.5 else str(chosen)
    except ValueError:
        shown = "1e400"
    return shown.replace("\0", "").encode(errors="replace").decode()  # a shell passes no zeros


KINDS: dict[str, Kind] = {
    "config.json": config,
    "preprocessor_config.json": preprocessor,
    "safetensors": safetensors,
    "onnx": graph,
    "onnx metadata": metadata,
    "results": results,
    "coco": _of_files("coco", "annotations/*.json"),
    "roboflow": _of_files("roboflow", "*/*.json"),
    "voc": _of_files("voc", "Annotations/*.xml", "Annotations/*.xml", "ImageSets/Main/*.txt"),
    "yolo": _of_files("yolo", "labels/*/*.txt", "data.yaml", "data.yaml", "data.yaml"),
    "csv": _of_files("csv", "*/*.csv"),
    "huggingface": _of_files("huggingface", "*/*.jsonl"),
    "images": photographs,
    "recipe": recipe,
    "settings": settings,
}


def chosen(only: Sequence[str]) -> dict[str, Kind]:
    return {name: kind for name, kind in KINDS.items() if not only or name in only}
