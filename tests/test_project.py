"""The files around the package agree: versions, constraints and lowest versions, the workflow's commands, the forms."""

import importlib.util
import os
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import leandetr

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: extras that `make install` leaves out: for a GPU, for comparisons, and of hundreds of megabytes
UNLOCKED = ("gpu", "peers", "executorch", "litert", "coreml")


@pytest.fixture
def environment():
    """tools/environment.py"""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared() -> list[Requirement]:
    """What `make install` asks for: the dependencies and, from the extras, what is not the package itself."""
    extras = [entry for name, entries in PROJECT["optional-dependencies"].items() if name not in UNLOCKED for entry in entries]
    return [found for found in map(Requirement, [*PROJECT["dependencies"], *extras]) if found.name != "leandetr"]


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == leandetr.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_every_dependency_is_locked_at_a_release_that_is_allowed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []  # no path, no build of one machine
    locked = {canonicalize_name(name): version for name, version in (line.split("==") for line in pins)}
    assert len(locked) == len(pins)
    for requirement in declared():
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_lowest_versions_are_those_of_pyproject(environment):
    pins = {requirement.name: requirement.specifier for requirement in map(Requirement, environment.floors())}
    assert set(pins) == {requirement.name for requirement in declared()}
    for requirement in declared():
        (floor,) = [part.version for part in requirement.specifier if part.operator == ">="]
        assert floor in pins[requirement.name], requirement
        longer = floor.split(".") + ["0"] * (2 - floor.count("."))
        above = ".".join([*longer[:-1], "999"]) if floor.count(".") >= 2 else f"{floor.rpartition('.')[0]}999"
        assert above not in pins[requirement.name], requirement


def test_a_dependency_without_a_lowest_version_is_refused(environment):
    with pytest.raises(SystemExit, match=r"torch has no lowest version; write torch>="):
        list(environment.requirements(["torch"], {"name": "leandetr"}))


def test_the_page_of_licences_has_every_locked_package():
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (\d\S*) \| [^|]+ \|$", page, re.MULTILINE))
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert listed == dict(line.split("==") for line in lock if not line.startswith("#"))
    assert "not installed here" not in page


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """An installable package of nothing."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        file.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """pip sees the wheels of this folder alone, and installs into `tmp_path / "installed"`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder), "TARGET": str(tmp_path / "installed")}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    wheel(folder, "tool", "1.0", "part>=1", "other>=1")
    for version in ("1.0", "1.2", "1.10", "2.0"):
        wheel(folder, "part", version)
    for version in ("1.0", "1.5"):
        wheel(folder, "other", version)
    return folder


@pytest.mark.parametrize(
    ("lock", "installed", "said"),
    [
        (["tool==1.0", "part==1.2", "other==1.0"], {"part-1.2", "other-1.0"}, []),
        (
            ["tool==1.0", "part==1.3", "other==2.0", "unneeded==1.0"],
            {"part-1.10", "other-1.5"},
            ["part==1.10 for part==1.3", "other==1.5 for other==2.0"],
        ),
    ],
    ids=["all-there", "next-newer-else-next-older"],
)
def test_a_locked_release_that_is_gone_is_named_and_its_nearest_taken(
    environment, registry, tmp_path, capfd, lock, installed, said
):
    environment.install_locked(Path(sys.executable), lock, ["tool"], tmp_path / "constraints.txt")
    found = {path.name.removesuffix(".dist-info") for path in (tmp_path / "installed").glob("*.dist-info")}
    assert found == installed | {"tool-1.0"}
    complaint = capfd.readouterr().err
    assert all(sentence in complaint for sentence in said)
    assert ("nearest is installed" in complaint) == bool(said)


def test_locked_releases_that_do_not_go_together_make_way_for_the_newest(environment, registry, tmp_path, capfd):
    wheel(registry, "tool", "1.1", "part>=2", "other>=1")
    environment.install_locked(Path(sys.executable), ["tool==1.1", "part==1.2"], ["tool"], tmp_path / "constraints.txt")
    assert {path.name for path in (tmp_path / "installed").glob("*.dist-info")} == {
        "tool-1.1.dist-info", "part-2.0.dist-info", "other-1.5.dist-info"
    }  # fmt: skip
    assert "constraints.txt does not fit this machine or its package registry" in capfd.readouterr().err


def test_the_workflow_runs_targets_that_exist_with_no_more_than_reading_rights():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    rows = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {row["versions"] for row in rows} == {"oldest", "locked", "newest"}
    assert {row["python"] for row in rows} <= {entry.rpartition(" ")[2] for entry in PROJECT["classifiers"]}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = {step["run"].removeprefix("make ") for step in steps if "run" in step} - {"${{ matrix.target }}"}
    assert called | {row["target"] for row in rows} <= targets
    assert all(step["uses"].startswith("actions/") for step in steps if "uses" in step)


def test_the_hooks_run_programs_that_are_installed_and_the_linter_too():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint: install\n")[2].partition("\n\n")[0]
    for hook in hooks:
        program = Path(hook["entry"].split()[0])
        assert program.parent == Path(".venv/bin")
        assert f"$(BIN)/{program.name}" in lint


@pytest.mark.parametrize("name", ["bug", "request"])
def test_a_form_asks_for_the_version_and_a_recipe(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = {field["id"]: field for field in form["body"]}
    assert {"recipe", "versions"} <= set(fields)
    assert "leandetr --version" in fields["versions"]["attributes"]["description"]
    assert all(field["type"] in {"textarea", "input", "dropdown", "checkboxes"} for field in form["body"])
