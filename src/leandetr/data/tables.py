"""The tables of a Hugging Face data set: Parquet or Arrow files, or a `metadata.jsonl` beside images; which columns hold what.

`datasets` writes `data/train-00000-of-00002.parquet`, its hub's own conversion `default/train/0000.parquet`, `save_to_disk`
`train/data-00000-of-00001.arrow`, and people who upload a folder of images `train/metadata.jsonl`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leandetr.data.labelled import is_hidden, read_text
from leandetr.data.split_names import ALL, SPLITS, split_named
from leandetr.errors import UserError
from leandetr.files import parse_yaml, read_json

IMAGE = ("image", "img", "picture", "file_name")
BOXES = ("bbox", "bboxes", "boxes", "box")
CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "class_id")
LINES = "metadata.jsonl"

Shape = dict[str, Any]  # column -> its own columns, {} where it has none


@dataclass(frozen=True)
class Columns:
    """Where a row has what. image: of the image. holder: the column with the boxes and all that is said of them, None where
    these are columns of their own. boxes, classes: their names there."""

    image: str
    holder: str | None
    boxes: str
    classes: str


def find_tables(folder: Path) -> dict[str, list[Path]]:
    """The tables of every split, or {"all": ...}; {} where there are none.

    Raises:
        UserError: there are several configurations, of which only one can be meant.
    """
    groups: dict[Path, dict[str, list[Path]]] = {}
    found = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth) if _is_table(path)]
    for file in sorted(found):
        own = split_named(file.stem)
        split = own or split_named(file.parent.name) or ALL
        group = file.parent if own or split == ALL else file.parent.parent
        groups.setdefault(group, {}).setdefault(split, []).append(file)
    if len(groups) > 1:
        named = ", ".join(str(group.relative_to(folder)) for group in groups)
        raise UserError(f"{folder} has the tables of several configurations ({named}); name one of these folders")
    tables = next(iter(groups.values()), {})
    return {split: tables[split] for split in (*SPLITS, ALL) if split in tables}


def columns_of(file: Path) -> Columns | None:
    """Which columns of a table hold the images and boxes; None where none do. Raises UserError where it cannot be read."""
    shape = _shape(file)
    image = next((name for name in IMAGE if name in shape), None)
    for holder in (*(name for name, inner in shape.items() if inner), None):
        inner = shape if holder is None else shape[holder]
        boxes = next((name for name in BOXES if name in inner), None)
        classes = next((name for name in CLASSES if name in inner), None)
        if image is not None and boxes is not None and classes is not None:
            return Columns(image, holder, boxes, classes)
    return None


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table. Raises UserError where it cannot be read."""
    if file.name == LINES:
        yield from _lines(file)
        return
    try:
        if file.suffix == ".arrow":
            import pyarrow

            with pyarrow.memory_map(str(file)) as source:
                for batch in pyarrow.ipc.open_stream(source):
                    yield from batch.to_pylist()
        else:
            from pyarrow import parquet

            with parquet.ParquetFile(file) as source:
                for batch in source.iter_batches(batch_size=32):  # images are in it
                    yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({' '.join(str(error).split())}); fetch it again") from error


def class_names(folder: Path, file: Path, columns: Columns) -> list[str] | None:
    """The names of the class numbers, as the table says them or the files beside it; None where nothing does."""
    described: list[Any] = []
    if file.name != LINES:
        said = (_schema(file).metadata or {}).get(b"huggingface", b"null")
        try:
            described.append(json.loads(said))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: what it says of its columns under 'huggingface' is not JSON; write it again") from error
    for name in ("dataset_infos.json", "dataset_info.json"):
        described += [read_json(place / name) for place in dict.fromkeys((folder, file.parent)) if (place / name).is_file()]
    if (folder / "README.md").is_file():
        described.append(_card(folder / "README.md"))
    return next((names for one in described if (names := _named(one, columns.classes))), None)


def _is_table(path: Path) -> bool:
    if is_hidden(path) or path.name.startswith("cache-"):  # what `datasets` computed from an Arrow file
        return False
    return (path.suffix in (".parquet", ".arrow") or path.name == LINES) and path.is_file()


def _schema(file: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{file.parent} has Parquet or Arrow files; run pip install 'leandetr[huggingface]' first") from error
    try:
        if file.suffix == ".parquet":
            return parquet.read_schema(file)
        with pyarrow.memory_map(str(file)) as source:
            return pyarrow.ipc.open_stream(source).schema
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({' '.join(str(error).split())}); fetch it again") from error


def _shape(file: Path) -> Shape:
    if file.name != LINES:
        schema = _schema(file)
        return {field.name: _inner(field.type) for field in schema}
    first = next(_lines(file), {})
    lists = {name: next(iter(value), None) if isinstance(value, list) else value for name, value in first.items()}
    return {name: {key: {} for key in value} if isinstance(value, dict) else {} for name, value in lists.items()}


def _inner(kind: Any) -> Shape:
    """The columns in a column, be it a struct of lists or a list of structs."""
    from pyarrow import types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return {field.name: _inner(field.type) for field in kind} if types.is_struct(kind) else {}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
            raise UserError(f"{file}, line {number} is not JSON ({error}); correct it") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number} is no JSON dictionary; write one an image")
        yield row


def _card(file: Path) -> Any:
    """The YAML in front of a README."""
    parts = read_text(file).split("---\n", 2)
    try:
        return parse_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except ValueError:
        return None


def _named(node: Any, column: str) -> list[str] | None:
    """The names of a column's classes in a description: under its own key, or beside `name: column` as cards have it."""
    if isinstance(node, list):
        return next((names for part in node if (names := _named(part, column))), None)
    if not isinstance(node, Mapping):
        return None
    here = node[column] if column in node else node if node.get("name") == column else None
    if here is not None and (names := _listed(here)):
        return names
    return next((names for part in node.values() if (names := _named(part, column))), None)


def _listed(node: Any) -> list[str] | None:
    """The first `names` in a description: a list, or in a card {"0": name, ...}."""
    if not isinstance(node, Mapping):
        return None
    names = node.get("names")
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    return next((found for part in node.values() if (found := _listed(part))), None)
