"""A teacher's answers to the views of a training set, in a folder: whoever sees the same views again needs no teacher.

Only what the terms read is kept, `Term.needs`. A method that reads more later has the rest added; further epochs and trainings
with the same teacher, data and views read what is there. Logits and boxes, on which assignments hang, are kept in single
precision; hidden states, features and queries in half precision, each value to 1 part in 2048, which is what a teacher on CUDA
computes them with.

    DIR/leandetr.json                                  whose answers these are
    DIR/features/view-003/images-000064.safetensors    a field, for one view of 32 images
    DIR/queries/learned.safetensors                    queries that are the same for every image

Every file appears under its name when it is whole, so that filling goes on where it was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leandetr.data.batches import Packed, pack, unpack
from leandetr.data.coco import CocoDataset
from leandetr.distillation.teacher import DetectorTeacher, Teacher
from leandetr.errors import UserError
from leandetr.files import MARKER, claim_folder, read_json, writing
from leandetr.machine import chosen_device
from leandetr.processes import gathered, is_main, say, share, wait
from leandetr.structures import ASKED, Batch, DetectorOutput, Proposals, Queries

ANSWERS = ("logits", "boxes", "hidden", "attended")  # one value a decoder layer, image and query
EXACT = ("logits", "boxes", "reference")
SHARD = 32  # images a file


class Part(NamedTuple):
    """What one file of every field holds: a view of the images from `first` to before `last`."""

    view: int
    first: int
    last: int


class TeacherCache(Teacher):
    """Answers a batch as a detector would, as far as the terms ask.

    Args:
        folder: where the answers are kept.
        teacher: whose answers.
        dataset: the training images, with a fixed number of views.
        needs: fields of the answers.

    Raises:
        UserError: views that do not come again, images of several sizes, or a folder of another teacher, data or views.
    """

    gives = frozenset({"logits", "boxes", "hidden", "attended", "features", "queries", "proposals"})

    def __init__(self, folder: Path, teacher: DetectorTeacher, dataset: CocoDataset, needs: Iterable[str]) -> None:
        self.folder, self.teacher, self.dataset, self.fields = Path(folder), teacher, dataset, sorted(needs)
        if dataset.views is None:
            raise UserError(
                "a cached teacher needs views that come again, and training.augment draws new ones in every epoch: set "
                "training.views to how many each image has (8 keeps much of the variety), or training.augment to none"
            )
        self.views = dataset.views
        if dataset.transform.preprocessing.size is None:
            raise UserError("a cached teacher needs images of one size, and this student's are not; give it a fixed image size")
        self.source, self.detector = teacher.source, teacher.detector
        self.learned = not teacher.detector.family.queries_from_encoder
        self.index = {image_id: index for index, image_id in enumerate(dataset.image_ids.tolist())}
        self._open = functools.lru_cache(maxsize=256)(_opened)
        self._claim()

    def __call__(self, batch: Batch, asked: Collection[str] = ()) -> tuple[DetectorOutput, Batch]:
        """The answer to the views that the batch's labels name, in single precision; fields that no term needs are None."""
        device = batch["pixel_values"].device
        asked = torch.stack([torch.cat([target["image_id"], target["view"]]) for target in batch["labels"]])
        places = [(self.index[image_id], view) for image_id, view in asked.tolist()]
        found = {field: self._read(field, places, device) for field in self.fields}
        layered = {field: found[field][field].transpose(0, 1) for field in ANSWERS if field in found}
        unasked: Any = None  # of fields that are always there otherwise
        answer = DetectorOutput(
            **{field: layered.get(field, unasked) for field in ANSWERS},
            queries=Queries(**found["queries"]) if "queries" in found else unasked,
            memory=unasked,
            proposals=Proposals(**found["proposals"]) if "proposals" in found else None,
            features=[found["features"][str(level)] for level in range(len(found.get("features", {})))],
        )
        return answer, batch

    def fill(self, epochs: int, batch_size: int = 8, workers: int = 0) -> None:
        """Let the teacher answer to all views that so many epochs show and that are not there yet.

        Says first how much that will write, and in the end how long a view took. Processes that were started together share the
        work, on several machines if all see the folder; a part that is there is not answered again.

        Raises UserError where the disk has no room for it.
        """
        views, device = min(self.views, epochs), chosen_device()
        missing = {part: fields for part in self._parts(views) if (fields := self._missing(part))}
        if not missing:
            say(f"teacher: its answers to {views} x {len(self.dataset)} views are in {self.folder}")
            return
        if is_main():
            say(self._announcement(views, missing, device))
        wait()  # before anyone adds to what is there
        mine, begun = share(list(missing)), time.monotonic()
        loader = DataLoader(Pieces(self.dataset, mine, batch_size), batch_size=None, num_workers=workers)
        console = Console(stderr=True, highlight=False)
        quiet = not (console.is_terminal and is_main())
        pieces: list[dict[str, dict[str, Tensor]]] = []
        for part, packed in track(loader, "the teacher answers", console=console, disable=quiet):
            pieces.append(self._asked(packed, device))
            if sum(_count(piece) for piece in pieces) == part.last - part.first:
                self._write(part, missing[part], pieces)
                pieces = []
        took = gathered(time.monotonic() - begun)
        answered = sum(part.last - part.first for part in missing)
        say(f"teacher: {answered} views answered, {1e3 * sum(took) / answered:.1f} ms of a process each, {len(took)} processes")

    def _claim(self) -> None:
        """Make the folder this cache's, or see that it is."""
        made_from = {
            "teacher": fingerprint(self.teacher),
            "classes": hashlib.sha256(json.dumps(self.teacher.columns).encode()).hexdigest(),
            "data": _data_fingerprint(self.dataset),
            "image size or augmentation": f"{asdict(self.dataset.transform.preprocessing)} {self.dataset.transform.steps}",
        }
        marker = self.folder / MARKER
        before = read_json(marker).get("made_from") if marker.exists() else None
        if isinstance(before, dict):
            other = [name for name in made_from if before.get(name) != made_from[name]]
            if other:
                raise UserError(f"{self.folder} holds answers for another {', '.join(other)}; name another folder or remove it")
        claim_folder(self.folder, made_from)

    def _parts(self, views: int) -> Iterator[Part]:
        count = len(self.dataset)
        for view in range(views):
            for first in range(0, count, SHARD):
                yield Part(view, first, min(first + SHARD, count))

    def _missing(self, part: Part) -> list[str]:
        return [field for field in self.fields if not self._file(field, part.view, part.first).exists()]

    def _file(self, field: str, view: int, index: int) -> Path:
        if field == "queries" and self.learned:
            return self.folder / "queries" / "learned.safetensors"
        return self.folder / field / f"view-{view:03}" / f"images-{index // SHARD * SHARD:06}.safetensors"

    def _asked(self, packed: Packed, device: torch.device) -> dict[str, dict[str, Tensor]]:
        """The teacher's answer to B views, taken apart: field -> name -> (B, ...) on the CPU."""
        batch = unpack(packed, self.dataset.preprocessing, device)
        answer = self.teacher.answer(batch["pixel_values"], batch["pixel_mask"], ASKED & set(self.fields), packed["padded"])
        queries = {name: getattr(answer.queries, name) for name in ("content", "position", "reference")}
        every = {
            "logits": {"logits": answer.logits.transpose(0, 1)},
            "boxes": {"boxes": answer.boxes.transpose(0, 1)},
            "hidden": {"hidden": answer.hidden[-1:].transpose(0, 1)},
            "attended": {"attended": cast(Tensor, answer.attended)[-1:].transpose(0, 1)} if "attended" in self.fields else {},
            "features": {str(level): values for level, values in enumerate(answer.features)},
            "queries": {name: values for name, values in queries.items() if values is not None},
            "proposals": {} if answer.proposals is None else vars(answer.proposals),
        }

        def kept(field: str, name: str, values: Tensor) -> Tensor:
            exact = name in EXACT or (field == "queries" and self.learned)
            return (values.float() if exact else _halved(values)).cpu()

        return {field: {name: kept(field, name, values) for name, values in every[field].items()} for field in self.fields}

    def _write(self, part: Part, fields: Sequence[str], pieces: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> None:
        for field in fields:
            learned = field == "queries" and self.learned
            file = self._file(field, part.view, part.first)
            if learned and file.exists():
                continue
            values = {name: torch.cat([piece[field][name] for piece in pieces]) for name in pieces[0][field]}
            if learned:
                values = {name: value[:1].clone() for name, value in values.items()}
            with writing(file) as temporary:
                save_file({name: value.contiguous() for name, value in values.items()}, temporary)

    def _read(self, field: str, places: Sequence[tuple[int, int]], device: torch.device) -> dict[str, Tensor]:
        rows = []
        for index, view in places:
            file = self._open(self._file(field, view, index))
            row = 0 if field == "queries" and self.learned else index % SHARD
            rows.append({name: file.get_slice(name)[row : row + 1] for name in file.keys()})  # noqa: SIM118 - no mapping
        return {name: torch.cat([row[name] for row in rows]).to(device).float() for name in rows[0]}

    def _announcement(self, views: int, missing: Mapping[Part, Sequence[str]], device: torch.device) -> str:
        """How much will be written, by the size of one view; UserError where that is more than the disk has."""
        one = self._asked(pack([self.dataset.view(0, 0)]), device)
        sizes = {field: sum(value.nbytes for value in parts.values()) for field, parts in one.items()}
        needed = sum(
            sizes[field] * (part.last - part.first)
            for part, fields in missing.items()
            for field in fields
            if not (field == "queries" and self.learned)
        )
        free = shutil.disk_usage(self.folder).free
        said = f"{needed / 1e6:.1f} MB for the teacher's answers to {views} x {len(self.dataset)} views"
        if needed > free:
            raise UserError(
                f"{self.folder} has {free / 1e6:.1f} MB free of the {said}; name a folder on another disk, or lower "
                "training.views"
            )
        return f"teacher: writing {said} ({', '.join(self.fields)}) to {self.folder}, {free / 1e6:.1f} MB are free"


class Pieces(Dataset):
    """Batches of at most `batch_size` views, none across two parts: (part, packed batch)."""

    def __init__(self, dataset: CocoDataset, parts: Sequence[Part], batch_size: int) -> None:
        self.dataset = dataset
        self.pieces = [
            (part, range(first, min(first + batch_size, part.last)))
            for part in parts
            for first in range(part.first, part.last, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> tuple[Part, Packed]:
        part, indices = self.pieces[number]
        return part, pack([self.dataset.view(index, part.view) for index in indices])


def fingerprint(teacher: DetectorTeacher) -> str:
    """Of a teacher's weights, configuration and preprocessing."""
    detector = teacher.detector
    digest = hashlib.sha256(repr(detector.preprocessing).encode())
    digest.update(detector.config.to_json_string().encode())
    for name, value in sorted(detector.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _data_fingerprint(dataset: CocoDataset) -> str:
    """Of the images' names and sizes in bytes, and of the boxes, which guide the crops."""
    known = dataset.annotations
    digest = hashlib.sha256(json.dumps([known.class_map.names, known.image_ids.tolist()]).encode())
    for values in (known.first, known.boxes, known.labels, known.crowd):
        digest.update(values.tobytes())
    for index in range(len(dataset)):
        path = dataset.path(index)
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()


def _halved(values: Tensor) -> Tensor:
    """In half precision, unless a value is beyond it."""
    half = values.half()
    return half if half.isfinite().all() else values.float()


def _count(piece: Mapping[str, Mapping[str, Tensor]]) -> int:
    return len(next(iter(next(iter(piece.values())).values())))


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} of the teacher's cache cannot be read ({error}); remove it and start again") from error
