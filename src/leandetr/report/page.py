"""`report.md`, `report.html` and `images.html`: pages that need nothing beside themselves and follow a light or dark theme."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from leandetr.drawing import COLOURS
from leandetr.files import write_text
from leandetr.report import columns as words
from leandetr.report.curves import ap_over_epochs
from leandetr.report.gallery import Picture, panels
from leandetr.report.goals import headline, search
from leandetr.report.numbers import duration, flat
from leandetr.report.plots import accuracy_against_latency
from leandetr.report.rows import Row
from leandetr.report.tables import row_table, text_table

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TRIED = ("tried, in order", "why", "came to", "")
CHANGES = ("row", "runtime", "against", "AP change", "95 % interval", "latency", "size")


def write_report(results: Mapping[str, Any], folder: Path, images: bool = False) -> None:
    """Write `report.md` and `report.html` into `folder`, made where missing; each file is whole or not there.

    Args:
        results: what `results.json` holds: `environment` (a mapping), `rows` (of `Row`), and, where known, `command` and
            `recipe` (text), `steps` (of `name`, `seconds`, `summary`), `epochs` that the recipe names, what is `left`, and of a
            search its `goal`.
        images: whether `images.html` is there to be linked.

    Raises UserError where the folder cannot be written.
    """
    found = contents(results)
    write_text(Path(folder) / "report.html", TEMPLATES.get_template("report.html.j2").render(found, images=images))
    write_text(Path(folder) / "report.md", markdown(found))


def write_images(gallery: Sequence[Picture], class_names: Sequence[str], folder: Path, threshold: float = 0.3) -> None:
    """Write `images.html` into `folder`.

    Args:
        gallery: validation images with the ground truth and each row's detections, in pixels of the original image.
        class_names: the name of each contiguous class id that the gallery uses.
        threshold: predicted boxes are drawn from this score on.

    Raises UserError where the folder cannot be written.
    """
    used = {
        label
        for picture in gallery
        for found in (picture.truth, *picture.predictions.values())
        for label in found.labels.tolist()
    }
    page = TEMPLATES.get_template("images.html.j2").render(
        classes=[(class_names[label], COLOURS[label % len(COLOURS)]) for label in sorted(used)],
        threshold=threshold,
        images=[(picture.title, panels(picture, class_names, threshold)) for picture in gallery],
    )
    write_text(Path(folder) / "images.html", page)


def contents(results: Mapping[str, Any]) -> dict[str, Any]:
    """What both pages show, in order. What is deployed comes first: rows on PyTorch are the last."""
    rows: list[Row] = sorted(results["rows"], key=lambda row: row["runtime"] == "pytorch")
    epochs, recipe, goal = results.get("epochs") or (), results.get("recipe") or "", results.get("goal")
    return {
        "title": title(recipe),
        "headline": headline(goal) if goal else words.headline(rows),
        "left": results.get("left") or "",
        "rows": rows,
        "columns": words.cost_columns(rows),
        "legend": words.legend(rows),
        # Drawn twice: text in a drawing shrinks with it, and a telephone's width would make it illegible.
        "latencies": [accuracy_against_latency(rows), accuracy_against_latency(rows, width=380, height=520)],
        "curves": [ap_over_epochs(rows), ap_over_epochs(rows, width=380)],
        "search": search(goal) if goal else None,
        "changes": words.changes(rows),
        "ratios": words.RATIOS,
        "accuracies": words.accuracy_columns(epochs),
        "areas": words.accuracy_legend(epochs),
        "slower": words.SLOWER,
        "steps": [(step["name"], duration(step["seconds"]), step["summary"]) for step in results.get("steps") or ()],
        "environment": flat(results["environment"]),
        "command": (results.get("command") or "").strip(),
        "recipe": recipe.strip(),
    }


def title(recipe: str) -> str:
    """What the run is of, by its recipe."""
    data = (yaml.safe_load(recipe) or {}).get("data") if recipe else None
    if data is None:
        return "What it cost"
    return f"What it cost on {Path(data['folder']).name if data.get('folder') else 'synthetic shapes'}"


def markdown(found: Mapping[str, Any]) -> str:
    """The text of `report.md` from `contents`."""
    rows = found["rows"]
    said = [escape(found[name], quote=False) for name in ("title", "headline", "left")]
    parts = [f"# {said[0]}", *said[1:], row_table(found["columns"], rows), found["legend"]]
    if found["search"]:
        tried = text_table(TRIED, found["search"]["tried"], numeric=[False] * 4)
        parts += ["## How the file was found", tried, *(escape(said, quote=False) for said in found["search"]["said"])]
    if found["changes"]:
        changes = text_table(CHANGES, found["changes"], numeric=[False] * 3 + [True, True, False, True])
        parts += ["## What each step changed", changes, found["ratios"]]
    parts += ["## Accuracy", row_table(found["accuracies"], rows), found["areas"]]
    if found["steps"]:
        parts += ["## Steps", text_table(["step", "time", "result"], found["steps"], numeric=[False, True, False])]
    parts += ["## Environment", "\n".join(f"- {key}: {escape(str(value), quote=False)}" for key, value in found["environment"])]
    for name, form in (("command", ""), ("recipe", "yaml")):
        if found[name]:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", found[name])), default=0))  # longer than any in it
            parts += [f"## {name.capitalize()}", f"{fence}{form}\n{found[name]}\n{fence}"]
    return "\n\n".join(part for part in parts if part) + "\n"
