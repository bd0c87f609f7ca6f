"""`python -m long_runs`: a row a piece of work, with what it took."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from long_runs import images, large, study
from long_runs.watch import Used, command, watched

TENTHS = {"train": images.train, "predict": images.predict, "serve": images.serve}
VARIANTS = 25  # 202 rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m long_runs", description=__doc__)
    parser.add_argument("--only", default="train,predict,serve,large,study", help="of these, separated by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of images")
    parser.add_argument("--out", type=Path, help="folder for what is made; by default a temporary one that is removed")
    given = parser.parse_args()
    work, only = (given.out or Path(tempfile.mkdtemp(prefix="long-runs-"))).absolute(), given.only.split(",")
    work.mkdir(exist_ok=True)
    try:
        for name, row in TENTHS.items():
            if name in only:
                found = row(work, given.scale)
                print(f"{name:34} {found}\n{found.tenths()}", flush=True)
        for name, found in _others(work, given.scale, only):
            print(f"{name:34} {found}", flush=True)
    finally:
        if given.out is None:
            shutil.rmtree(work)


def _others(work: Path, scale: float, only: list[str]) -> Iterator[tuple[str, Used]]:
    if "large" in only:
        data = large.make(work / "large", scale)
        files = data / "annotations/instances_train.json", data / "results.json"
        split = ("--annotations", str(files[0]), "--images", str(data / "train"))
        val = ("--val-annotations", str(data / "annotations/instances_val.json"), "--val-images", str(data / "val"))
        begun = ("--max-steps", "1", "--batch-size", "2", "--set", "training.workers=0", "--out", str(work / "begun"))
        yield "data check", watched(command, "data", "check", str(data))
        yield "evaluate", watched(command, "evaluate", str(files[1]), "--annotations", str(files[0]))
        yield "a fifth by faster-coco-eval alone", watched(large.reference, *files)
        yield "a report's intervals", watched(large.intervals, *files)
        yield "a report's images", watched(large.pictures, data, work / "pictures")
        yield "train, one step", watched(command, "train", "--model", str(images.DETECTOR), *split, *val, *begun)
    if "study" in only:
        yield "a report of 202 rows", watched(study.write, work / "study", VARIANTS)
        page = work / "study/report.html"
        print(f"{'':34} {page.stat().st_size / 1e3:8.0f} kB, report.html")


if __name__ == "__main__":
    main()
