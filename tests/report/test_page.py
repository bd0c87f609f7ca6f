import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from leandetr.errors import UserError
from leandetr.report import Picture, write_images, write_report
from leandetr.structures import Detections

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that elements close in order; collects the text of table cells and whatever a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.cells, self.fetched, self.links, self.ids = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.open += [tag] if tag not in VOID else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "img":
            assert attributes["alt"]
        self.fetched += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []

    def handle_startendtag(self, tag, attributes):
        pass  # the shapes of a drawing

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture
def gallery():
    image = Image.new("RGB", (64, 48), "grey")
    boxes = Detections(torch.tensor([0.9]), torch.tensor([1]), torch.tensor([[5.0, 5.0, 30.0, 30.0]]))
    return [Picture("first & best.png", image, boxes, {"teacher": boxes, "distilled-static": boxes})]


def test_the_three_files_are_written_and_nothing_else(results, gallery, tmp_path):
    write_images(gallery, ["disc", "star"], tmp_path / "run")
    write_report(results, tmp_path / "run", images=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["images.html", "report.html", "report.md"]


def test_pages_need_nothing_beside_themselves(results, gallery, tmp_path):
    write_images(gallery, ["disc", "star"], tmp_path)
    write_report(results, tmp_path, images=True)
    for name, links in (("report.html", ["images.html"]), ("images.html", ["report.html"])):
        text = (tmp_path / name).read_text(encoding="utf-8")
        page = Page(text)
        assert page.links == links
        assert all(source.startswith("data:image/") for source in page.fetched)
        assert not re.search(r"https?://|@import|url\(|<script|<link", text)
        assert len(page.ids) == len(set(page.ids))


def test_the_table_of_the_page_holds_every_row(results, tmp_path):
    write_report(results, tmp_path)
    cells = [" ".join(cell.split()) for cell in Page((tmp_path / "report.html").read_text(encoding="utf-8")).cells]
    start = cells.index("distilled-weight-only")
    columns = ["0.309", "-0.001", "0.600", "12.5", "24.0", "0.80×", "3.00", "2.50", "slower than float"]
    assert cells[start : start + 11] == ["distilled-weight-only", "onnxruntime", *columns]
    assert "×1.25, slower than float" in cells


def test_images_show_the_truth_and_every_row(results, gallery, tmp_path):
    write_images(gallery, ["disc", "star"], tmp_path)
    text = (tmp_path / "images.html").read_text(encoding="utf-8")
    assert len(Page(text).fetched) == 3
    assert "first &amp; best.png, distilled-static: 1 box" in text
    assert "star" in text
    assert "disc" not in text  # no such object on any image


def test_without_a_gallery_there_is_no_page_of_images(results, tmp_path):
    write_report(results, tmp_path)
    assert not (tmp_path / "images.html").exists()
    assert "images.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_text_from_outside_cannot_become_markup(results, make_row, tmp_path):
    results["rows"].append(make_row("<script>alert(1)</script>", runtime="<img src=x>"))
    results["recipe"] = "data: {folder: '</pre><script>'}"
    write_report(results, tmp_path)
    assert not re.search("<script|<img", (tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_with_little_to_show_still_has_a_report(results, make_row, tmp_path, rows):
    nothing = dict.fromkeys(["ap", "ap50", "ap75", "ap_medium", "ap_large", "speedup", "evaluate_seconds"])
    results = {"environment": {}, "rows": [make_row(**nothing)] * rows}
    write_report(results, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.cells.count("teacher") == 2 * rows


def test_an_unwritable_folder_is_one_sentence(results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_report(results, tmp_path / "file" / "run")


def test_names_of_classes_and_files_are_text_in_the_gallery(tmp_path):
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "{{ 7 * 7 }}{% raw %}", "\u202egnp.exe", "a" * 5000]
    found = Detections(torch.ones(5), torch.arange(5), torch.tensor([[2.0, 2, 20, 20]] * 5))
    picture = Picture(hostile[0] + hostile[1] + hostile[2], Image.new("RGB", (30, 30)), found, {hostile[1]: found})
    write_images([picture], hostile, tmp_path)
    text = (tmp_path / "images.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(source.startswith("data:") for source in page.fetched)
    assert not re.search("<script|<img src=x|49", re.sub('data:[^"]*', "", text))
    assert "{{ 7 * 7 }}{% raw %}" in text
