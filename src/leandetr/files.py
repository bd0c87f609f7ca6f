"""Writing so that nothing half-written is ever found under its final name, and reading with errors that name the file."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from leandetr.errors import UserError, reason, unwritable
from leandetr.inputs import changed
from leandetr.locks import alone_in

MARKER = "leandetr.json"
UNWRITTEN = re.compile("[\0\ud800-\udfff]")
OF_TORCH_SAVE = ("inline_container", "Parent directory")  # its words for a full disk and for a folder that is gone


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name beside the file `path`; renamed to `path` when the block ends well, removed when not.

    An existing file under `path` is replaced. Raises UserError where `path` is a folder, and where the disk is full or the
    place is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder and a file is to be written; name a file in it")
    with _renamed(path) as temporary:
        yield temporary


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """As `writing`, a temporary name for a folder, which the block makes. An existing folder is replaced with all it holds:
    whether it may be, the caller has asked before."""
    with _renamed(Path(folder)) as temporary:
        yield temporary


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with errors_of_writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir() and path.is_dir():
                _replace_folder(temporary, path)
            else:
                os.replace(temporary, path)
        finally:
            _remove(temporary)


def _replace_folder(new: Path, path: Path) -> None:
    """The old one moves aside before it is removed: half-removed under its own name, it would be nobody's."""
    before = path.with_name(f".{path.name}.{os.getpid()}.before.tmp")
    os.replace(path, before)
    try:
        os.replace(new, path)
    finally:
        _remove(before)


@contextmanager
def writing_files(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` when the block ends well, the file named `last` at the end.

    Other files in `folder` stay. `last` is the file by which readers know that the rest is there.
    """
    folder = Path(folder)
    temporary = folder / f".incoming.{os.getpid()}.tmp"
    with errors_of_writing(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == last):
                os.replace(file, folder / file.name)
        finally:
            _remove(temporary)


@contextmanager
def errors_of_writing(path: Path) -> Iterator[None]:
    """A full disk or a place that cannot be written becomes a UserError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in OF_TORCH_SAVE):
            raise
        raise unwritable(path, getattr(error, "strerror", None) or error) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """An indented JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # some tools on Windows put a mark in front
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give the path of an existing JSON file") from error
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise UserError(f"{path} is not JSON ({error}); write the file again or name another") from error


def parse_yaml(text: str | bytes) -> Any:
    """Raises ValueError, with the reason in one line, for what is no YAML, and for a text that no file can be named by."""
    try:
        found = yaml.safe_load(text)
        if fault := _unwritten(found):
            raise ValueError(f"a text in it has {fault}")
        return found
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 45th of May; RecursionError: as above
        raise ValueError(reason(error)) from error


def _unwritten(found: Any) -> str:
    """What of the texts in a value no file's name, nor any UTF-8, can hold; "" where there is nothing."""
    seen, waiting = set[int](), [found]
    while waiting:  # YAML's aliases can name a list a billion times, and within itself
        value = waiting.pop()
        if isinstance(value, str) and (match := UNWRITTEN.search(value)):
            return "a NUL character" if match[0] == "\0" else "half a surrogate"
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
    return ""


def claim_folder(path: Path, made_from: Any, state: Mapping[str, str] | None = None) -> None:
    """Make `path` an output folder of ours: a marker in it says what it is made from, so that interrupted work is only ever
    continued with the same input.

    made_from: the settings. state: of what is read, see `inputs.py`, for work that is not done anew each time; a marker without
    one (of leandetr 0.1) gets it.

    Raises UserError where the folder holds files and no marker of ours, or one of other work, or of input that has changed
    since, or cannot be written.
    """
    path, marker = Path(path), Path(path) / MARKER
    made_from = json.loads(json.dumps(made_from, default=str))
    mark = {"made_by": "leandetr", "made_from": made_from} | ({} if state is None else {"state": dict(state)})
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder for the output")
    found = os.listdir(path) if path.exists() else []  # once, because every process of a distributed training comes here
    if MARKER in found:
        before = read_json(marker)
        if before.get("made_from") != made_from:
            raise UserError(f"{path} holds the result of other settings; name another folder or remove it")
        if state is not None and (what := changed(before.get("state", state), state)):
            raise UserError(f"{path} was made from other input: changed since are {what}; remove it, or name another folder")
        if before != mark:
            write_json(marker, mark)
    elif any(not name.startswith(".") for name in found):
        raise UserError(f"{path} exists and is not an output of leandetr; name another folder or empty it")
    else:
        write_json(marker, mark)


@contextmanager
def claiming(path: Path, made_from: Any, state: Mapping[str, str] | None = None) -> Iterator[None]:
    """`claim_folder` while the block runs, for this command alone; where the block meets an error before it has made anything,
    the folder is given back, so that the mended command can have it. Raises UserError where another command works there."""
    path = Path(path)
    was_there, was_ours = path.exists(), (path / MARKER).exists()
    claim_folder(path, made_from, state)
    try:
        with alone_in(path):
            yield
    except Exception:
        with suppress(OSError):  # on a disk that has become read-only; the error that is on its way says so
            if not was_ours and os.listdir(path) == [MARKER]:
                (path / MARKER).unlink(missing_ok=True)
                if not was_there:
                    path.rmdir()
        raise
