"""Which detectors an analysis looks at: saved ones, and the epochs that a training kept of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import Subset

from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset, Split
from leandetr.data.transforms import eval_transform
from leandetr.detectors.checkpoints.load import load
from leandetr.detectors.detector import Detector
from leandetr.machine import chosen_device
from leandetr.structures import Batch, DetectorOutput

EPOCH = re.compile(r"epoch-(\d+)")


@dataclass(frozen=True)
class Snapshot:
    """A saved detector. name: in legends, unlike every other's. run: the name of the training that it is from. epoch: after
    which one it was kept; None for the detector that a training ended with."""

    name: str
    run: str
    path: str
    epoch: int | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        return {"name": self.name, "run": self.run, "path": self.path, "epoch": self.epoch}


def single(models: Sequence[str | Path]) -> list[Snapshot]:
    """One snapshot a model: a folder with a saved detector, or a hub id."""
    named = []
    for path in map(Path, models):
        kept = EPOCH.fullmatch(path.name)
        run = path.parents[1] if kept and path.parent.name == "training" else path.parent if kept else path
        named.append((run, int(kept[1]) if kept else None))
    names = dict(zip(dict.fromkeys(run for run, _ in named), shortest([run for run, _ in named])))
    return [Snapshot(_name(names[run], epoch), names[run], str(model), epoch) for model, (run, epoch) in zip(models, named)]


def over_training(models: Sequence[str | Path]) -> list[Snapshot]:
    """As `single`, but a training's output folder with kept epochs (`training.keep_epochs`) stands for all of them, in order,
    and for the detector that it ended with, once it has."""
    every: list[str | Path] = []
    for model in models:
        paths = (Path(model) / "training").glob("epoch-*")
        kept = [(int(found[1]), path) for path in paths if (found := EPOCH.fullmatch(path.name))]
        every += [path for _, path in sorted(kept)]
        every += [] if kept and not (Path(model) / "config.json").exists() else [model]
    return single(every)


def _name(run: str, epoch: int | None) -> str:
    return run if epoch is None else f"{run}, epoch {epoch}"


def shortest(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of some paths, each once, that tell them apart.

    >>> shortest([Path("runs/a/teacher"), Path("runs/b/teacher"), Path("runs/b/student")])
    ['a/teacher', 'b/teacher', 'student']
    """
    paths = list(dict.fromkeys(paths))
    names = []
    for path in paths:
        endings = ["/".join(path.parts[-length:]) for length in range(1, len(path.parts) + 1)] or [str(path)]
        others = [other for other in paths if other != path]
        names.append(next((e for e in endings if not any(f"/{other}".endswith(f"/{e}") for other in others)), str(path)))
    return names


def loader_of(detector: Detector, split: Split, images: int | None, batch_size: int = 8) -> Loader:
    """Batches of a split as the detector sees it: of `images` images spread evenly over it, or of all.

    Raises UserError where the split's classes are not the detector's.
    """
    dataset = CocoDataset(split, eval_transform(detector.preprocessing), detector.class_map)
    return Loader(Subset(dataset, spread(len(dataset), images)), batch_size)


def opened(path: str | Path) -> Detector:
    """A saved detector, where detectors run."""
    return load(path).to(chosen_device())


def answer(detector: Detector, batch: Batch) -> DetectorOutput:
    """All that the detector, wherever it is, says of a batch; on the CPU, where the analyses count."""
    device = next(detector.parameters()).device
    return _on_cpu(detector(batch["pixel_values"].to(device), batch["pixel_mask"].to(device)))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _on_cpu(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return {name: _on_cpu(each) for name, each in value.items()}
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def progress(steps: Iterable[Any]) -> Iterator[Any]:
    """The same steps, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    yield from track(steps, "images", console=console, disable=not console.is_terminal, transient=True)


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` indices, evenly spread; all of them where that many are not there.

    >>> spread(10, 4), spread(3, 8)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    wanted = count if wanted is None else min(wanted, count)
    return torch.linspace(0, count - 1, wanted).round().long().tolist()
