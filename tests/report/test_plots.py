import random
import time
from itertools import combinations
from xml.etree import ElementTree

import pytest

from leandetr.report.plots import Box, accuracy_against_latency, accuracy_axis, latency_ticks, place_labels


def texts(svg: str, kind: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("text") if element.get("class") == kind]


def test_every_measured_row_is_a_named_point_told_in_words(results):
    svg = accuracy_against_latency(results["rows"])
    names = [row["name"] for row in results["rows"]]
    assert texts(svg, "label") == [*names, "pytorch", "onnxruntime"]
    told = [element.text for element in ElementTree.fromstring(svg).iter("title")]
    assert "distilled-static on onnxruntime: AP 0.300, 5.0 ms" in told


@pytest.mark.parametrize("changes", [{"ap": None}, {"ap": -1}, {"latency_ms": None}, {"latency_ms": 0}])
def test_rows_without_both_numbers_are_left_out(make_row, changes):
    assert accuracy_against_latency([make_row(**changes)]) == ""
    assert texts(accuracy_against_latency([make_row("other"), make_row(**changes)]), "label") == ["other", "onnxruntime"]


def test_names_are_escaped(make_row):
    svg = accuracy_against_latency([make_row("<b>&\"'")])
    assert texts(svg, "label")[0] == "<b>&\"'"


def test_faster_is_left_and_better_is_up_and_equal_speedups_are_equal_steps(make_row):
    rows = [make_row(str(i), latency_ms=ms, ap=ap) for i, (ms, ap) in enumerate([(5, 0.2), (10, 0.3), (20, 0.4)])]
    marks = ElementTree.fromstring(accuracy_against_latency(rows)).iter("g")
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, g.get("transform")[10:-1].split())) for g in marks][:3]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert x0 < x1
    assert y0 > y1 > y2


def overlap(a, b):
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


@pytest.mark.parametrize("seed", range(5))
def test_names_cover_neither_each_other_nor_a_mark(seed):
    frame = Box(40, 40, 840, 380)
    rng = random.Random(seed)
    # Two clusters, as rows of two runtimes make them.
    points = [(rng.gauss(rng.choice([200, 600]), 60), rng.gauss(200, 30)) for _ in range(14)]
    boxes = place_labels(points, ["distilled-weight-only"] * len(points), frame)
    assert not any(overlap(*pair) for pair in combinations(boxes, 2))
    assert all(box.nearest(*point) != point for box in boxes for point in points)
    assert all(box.inside(frame) for box in boxes)


def test_among_hundreds_the_fastest_of_each_accuracy_are_named_and_the_drawing_says_how_many_are_not(make_row):
    rng = random.Random(0)
    rows = [make_row(f"variant-{i}", ap=rng.uniform(0.2, 0.4), latency_ms=rng.uniform(5, 50)) for i in range(200)]
    begun = time.process_time()
    svg = accuracy_against_latency(rows)
    assert time.process_time() - begun < 5  # 13 s where each place is compared with each mark in Python
    named = set(texts(svg, "label"))
    best = {row["name"] for row in rows if not any(o["ap"] > row["ap"] and o["latency_ms"] < row["latency_ms"] for o in rows)}
    assert best <= named
    assert sum(element.text.startswith("variant") for element in ElementTree.fromstring(svg).iter("title")) == 200
    unnamed = 200 - len(named & {row["name"] for row in rows})
    assert f"no room for {unnamed} names" in svg


def test_a_name_wider_than_the_frame_is_still_placed():
    assert len(place_labels([(50, 50)], ["x" * 200], Box(0, 0, 100, 100))) == 1


@pytest.mark.parametrize("ends", [(5, 7), (4.1, 62), (0.8, 900), (19.9, 31)])
def test_latency_has_at_least_three_round_ticks_inside_its_ends(ends):
    ticks = latency_ticks(*ends)
    assert len(ticks) >= 3
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize("values", [[0.3], [0.0, 0.0], [1.0], [0.301, 0.302], [0.0, 1.0]])
def test_the_accuracy_axis_holds_the_values_and_stays_a_fraction(values):
    low, high, ticks = accuracy_axis(values)
    assert 0 <= low <= min(values)
    assert max(values) <= high <= 1
    assert low < high
    assert ticks
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
