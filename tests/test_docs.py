"""The site of docs/ builds without a warning, and what it says is there is there."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import leandetr

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "leandetr"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


class Page(HTMLParser):
    """A built page: what it links to, what it loads, its anchors, and its text."""

    def __init__(self, file):
        super().__init__()
        self.links, self.loaded, self.anchors, self.texts = [], [], set(), []
        self.feed(file.read_text(encoding="utf-8"))
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("href") and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given["href"])

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages by file."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return {file: Page(file) for file in folder.rglob("*.html") if file.name != "404.html"}


def target(file, address):
    """The file that an address on a page means."""
    path = (file.parent / unquote(urlsplit(address).path)).resolve() if urlsplit(address).path else file
    return path / "index.html" if path.is_dir() else path


def test_no_link_is_broken(site):
    broken = []
    for file, page in site.items():
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            there, anchor = target(file, link), unquote(urlsplit(link).fragment)
            if not there.exists() or (anchor and anchor not in site[there].anchors):
                broken.append(f"{file.parent.name}: {link}")
    assert not broken


def test_a_page_loads_nothing_from_elsewhere(site):
    for file, page in site.items():
        assert page.loaded
        for address in page.loaded:
            assert not urlsplit(address).netloc, address
            assert target(file, address).exists(), address


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(nav)) == [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_there_as_it_stands(site, example):
    code = example.read_text(encoding="utf-8").strip()
    assert any(code in page.text for page in site.values())


def test_every_public_name_is_in_the_reference(site):
    anchors = set().union(*(page.anchors for file, page in site.items() if "reference" in file.parts))
    assert not {f"leandetr.{name}" for name in leandetr.__all__} - anchors


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_every_file_that_is_named_exists(page):
    """By its path from the root or from src/leandetr, or by its end."""
    names = set(re.findall(r"`([\w./-]+\.(?:py|j2|md))`", page.read_text(encoding="utf-8"))) - {"report.md"}  # is written
    known = [
        path.relative_to(ROOT).as_posix() for folder in ("src", "examples", "tests") for path in (ROOT / folder).rglob("*.*")
    ]
    assert not {
        name for name in names if not (ROOT / name).exists() and not any(f"/{path}".endswith(f"/{name}") for path in known)
    }


def named():
    """(file, name) wherever the page about a step, or its picture, says `file` · `name`, `name`."""
    page = (ROOT / "docs" / "distillation-step.md").read_text(encoding="utf-8")
    picture = (ROOT / "docs" / "images" / "distillation-step.svg").read_text(encoding="utf-8")
    table = re.findall(r"`([\w/]+\.py)` · `([\w.]+)`", page)
    boxes = [
        (path, name)
        for path, names in re.findall(r"([\w/]+\.py) · ([A-Z]\w[\w.]*(?:, [A-Z]\w+)*)", picture)
        for name in names.split(", ")
    ]
    return sorted({*table, *boxes})


@pytest.mark.parametrize(("path", "name"), named(), ids=lambda value: Path(value).name)
def test_what_the_page_about_a_step_names_is_where_it_says(path, name):
    source = (SOURCE / path).read_text(encoding="utf-8")
    for part in name.split("."):
        assert re.search(rf"^\s*(?:(?:class|def) {part}\b|{part}\b.* = )", source, re.MULTILINE), part
