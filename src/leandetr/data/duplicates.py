"""Photographs that are in two splits: the commonest cause of an accuracy that does not hold outside.

Two images count as nearly the same when their difference hashes (Krawetz, "Kind of like that", 2013: whether each pixel of a
small grey version is brighter than its left neighbour; here 16 x 16 bits) differ in at most 10 of 256 bits: re-encoded and
resized copies, and neighbouring frames of a video that stands still. Images without detail have no such hash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from leandetr.data.annotations import Split
from leandetr.data.check import image_names
from leandetr.data.faults import Fault
from leandetr.data.images import to_rgb

SIDE = 16
NEAR = 10  # bits that may differ
DETAIL = 4  # standard deviation, of 255, of a small grey version that has some detail
ROWS = 256  # compared at a time


def near_duplicates(splits: Mapping[str, Split], examples: int = 3) -> list[Fault]:
    """For every pair of splits how many images of the second are nearly the same as one of the first. Images that cannot be
    read are left out."""
    hashed = [(name, *_hashes(split)) for name, split in splits.items()]
    faults = []
    for number, (first, first_paths, first_hashes) in enumerate(hashed):
        for second, paths, hashes in hashed[number + 1 :]:
            nearest = _nearest(hashes, first_hashes)
            found = [(path, first_paths[index]) for path, index in zip(paths, nearest) if index >= 0]
            if found:
                shown = [f"{path} and {other}" for path, other in found[:examples]]
                faults.append(Fault(f"image of {second} nearly the same as one of {first}", len(found), shown))
    return faults


def difference_hash(path: Path) -> np.ndarray | None:
    """(4,) uint64: 256 bits; None for an image without detail, or one that cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (8 * SIDE, 8 * SIDE))  # JPEGs are decoded at a fraction of their size
            small = to_rgb(image).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    except Exception:  # Pillow's readers raise whatever the bytes lead them to; `check` says so
        return None
    pixels = np.asarray(small, dtype=np.int16)
    if pixels.std() < DETAIL:
        return None
    return np.packbits(pixels[:, 1:] > pixels[:, :-1]).view(np.uint64)


def _hashes(split: Split) -> tuple[list[Path], np.ndarray]:
    paths = [split.images / name for name in image_names(split)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        known = [(path, found) for path, found in zip(paths, pool.map(difference_hash, paths)) if found is not None]
    return [path for path, _ in known], np.array([found for _, found in known], dtype=np.uint64).reshape(-1, SIDE * SIDE // 64)


def _nearest(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) index of the nearest of the others, -1 where none is near."""
    result = np.full(len(hashes), -1)
    for start in range(0, len(hashes) if len(others) else 0, ROWS):
        rows = hashes[start : start + ROWS]
        apart = sum(
            np.bitwise_count(rows[:, None, word] ^ others[None, :, word]).astype(np.int16) for word in range(rows.shape[1])
        )
        best = apart.argmin(axis=1)
        near = apart[np.arange(len(rows)), best] <= NEAR
        result[start : start + ROWS][near] = best[near]
    return result
