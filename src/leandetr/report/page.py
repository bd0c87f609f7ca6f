"""`report.md`, `report.html` and `images.html`: pages that need nothing beside themselves and follow a light or dark theme."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from leandetr.drawing import COLOURS
from leandetr.files import write_text
from leandetr.report import rows as numbers
from leandetr.report.gallery import Picture, panels
from leandetr.report.markdown import render_markdown
from leandetr.report.plots import accuracy_against_latency

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(
    results: Mapping[str, Any],
    folder: Path,
    gallery: Sequence[Picture] = (),
    class_names: Sequence[str] = (),
    threshold: float = 0.3,
) -> None:
    """Write `report.md`, `report.html` and, with a gallery, `images.html` into `folder`; each file is whole or not there.

    Args:
        results: what `results.json` holds, as `render_markdown` takes it.
        folder: where to; made where missing.
        gallery: validation images with the ground truth and each row's detections, in pixels of the original image.
        class_names: the name of each contiguous class id that the gallery uses.
        threshold: predicted boxes are drawn from this score on.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    if gallery:
        write_text(folder / "images.html", render_images(gallery, class_names, threshold))
    write_text(folder / "report.html", render_html(results, images="images.html" if gallery else ""))
    write_text(folder / "report.md", render_markdown(results))


def render_html(results: Mapping[str, Any], images: str = "") -> str:
    """The text of `report.html`; `images` is the address of the page of images, where there is one."""
    rows = results["rows"]
    steps = [(step["name"], numbers.duration(step["seconds"]), step["summary"]) for step in results.get("steps") or ()]
    return TEMPLATES.get_template("report.html.j2").render(
        headline=numbers.headline(rows),
        tables=[cells(numbers.cost_columns(rows), rows), cells(numbers.accuracy_columns(), rows)],
        legend=numbers.LEGEND,
        areas=numbers.AREAS,
        ratios=numbers.RATIOS,
        # Drawn twice: text in a drawing shrinks with it, and a telephone's width would make it illegible.
        plots=[accuracy_against_latency(rows), accuracy_against_latency(rows, width=380, height=520)],
        changes=numbers.changes(rows),
        slower=numbers.SLOWER,
        steps=steps,
        environment=numbers.flat(results["environment"]),
        command=results.get("command") or "",
        recipe=results.get("recipe") or "",
        images=images,
    )


def cells(columns: Sequence[numbers.Column], rows: Sequence[numbers.Row]) -> dict[str, Any]:
    """Columns, and the text of the cells row by row."""
    return {"columns": columns, "rows": [[column.cell(row) for column in columns] for row in rows]}


def render_images(gallery: Sequence[Picture], class_names: Sequence[str], threshold: float) -> str:
    """The text of `images.html`."""
    used = {
        label
        for picture in gallery
        for found in (picture.truth, *picture.predictions.values())
        for label in found.labels.tolist()
    }
    return TEMPLATES.get_template("images.html.j2").render(
        classes=[(class_names[label], COLOURS[label % len(COLOURS)]) for label in sorted(used)],
        threshold=threshold,
        images=[(picture.title, panels(picture, class_names, threshold)) for picture in gallery],
    )
