"""Make one of the project's virtual environments, with the package (editable) and its tools; only Python itself is needed.

    python tools/environment.py locked .venv          the tested versions of constraints.txt
    python tools/environment.py newest .venv-newest   whatever the registry has today
    python tools/environment.py oldest .venv-oldest   the lowest versions that pyproject.toml allows
    python tools/environment.py lock .venv-newest     write that environment's versions to constraints.txt

Constraints bind only what is installed anyway, so that one file serves every platform and Python version.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
PROJECT = ("--editable", f"{ROOT}[dev]")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<extras>.+)\])?(>=(?P<floor>[\d.]+))?")
HEADER = """\
# The versions that all tests passed with, written by `make lock` and installed by `make install`.
"""


def main(what: str, folder: Path) -> None:
    """Carry out one line of the module's docstring. Raises SystemExit with a sentence where that fails."""
    python = folder / "bin" / "python"
    if what == "lock":
        LOCK.write_text(HEADER + "".join(f"{pin}\n" for pin in frozen(python)), encoding="utf-8")
        return
    say(f"installing into {folder} with Python {sys.version.split()[0]}; a few minutes")
    fresh = ["--clear"] if what == "newest" else []
    subprocess.run([sys.executable, "-m", "venv", *fresh, folder], check=True)
    if what == "locked":
        install_locked(python, LOCK.read_text(encoding="utf-8").splitlines(), PROJECT, folder / "constraints.txt")
    elif not install(python, floors() if what == "oldest" else [], PROJECT, folder / "constraints.txt"):
        sys.exit(f"the {what} versions cannot be installed")


def install(python: Path, pins: Iterable[str], wanted: Iterable[str], file: Path) -> bool:
    """Whether pip installed `wanted` under these constraints, which are left in `file`."""
    file.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--constraint",
        file,
        *wanted,
    ]
    return subprocess.run(command, check=False).returncode == 0


def install_locked(python: Path, lock: Iterable[str], wanted: Iterable[str], file: Path) -> None:
    """Install the locked versions; where one cannot be had (a file was withdrawn, or none is made for this machine), say so and
    take the nearest, and where those do not go together, the newest."""
    pins = [line for line in lock if "==" in line and not line.startswith("#")]
    if install(python, pins, wanted, file):
        return
    say(f"{LOCK.name} cannot be installed as it stands; looking for what is missing")
    near = dict(nearest(python, pin) for pin in pins)
    if missing := [f"{found or 'any version'} for {pin}" for pin, found in near.items() if found != pin]:
        say(f"not to be had here, so that the nearest is installed: {', '.join(missing)}")
        if install(python, filter(None, near.values()), wanted, file):
            return
    say(f"{LOCK.name} does not fit this machine or its package registry: installing the newest, which are not tested")
    if not install(python, [], wanted, file):
        sys.exit("the installation failed; pip says above why")


def nearest(python: Path, pin: str) -> tuple[str, str | None]:
    """The pin `name==version`, and the same with the version that can be had: itself, the next newer, else the next older."""
    name, version = pin.split("==")
    command: list[str | Path] = [python, "-m", "pip", "index", "versions", name, "--disable-pip-version-check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    listed = re.search(r"^Available versions: (.*)$", answer, re.MULTILINE)
    versions = {found.partition("+")[0] for found in listed[1].split(", ")} if listed else set()
    newer = [found for found in versions if _numbers(found) >= _numbers(version)]
    found = min(newer, key=_numbers) if newer else max(versions, key=_numbers, default=None)
    return pin, found and f"{name}=={found}"


def _numbers(version: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", version)]


def floors() -> list[str]:
    """pyproject.toml's lowest versions, of the dependencies and of what the `dev` extra adds, as exact pins. A floor of fewer
    than three numbers names a series, and stands for its newest release, the one that fixes were made for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [
        f"{name}=={floor}" if floor.count(".") >= 2 else f"{name}=={floor}.*"
        for name, floor in requirements([*project["dependencies"], f"{project['name']}[dev]"], project)
    ]


def requirements(entries: Iterable[str], project: dict) -> Iterator[tuple[str, str]]:
    """Name and floor of each, those of the project's own extras included. Raises SystemExit for one without a floor."""
    for entry in entries:
        found = REQUIREMENT.match(entry)
        if found is None:
            sys.exit(f"pyproject.toml: {entry!r} is no requirement")
        if found["name"] == project["name"]:
            for extra in found["extras"].split(","):
                yield from requirements(project["optional-dependencies"][extra.strip()], project)
        elif found["floor"] is None:
            sys.exit(f"pyproject.toml: {entry} has no lowest version; write {found['name']}>=...")
        else:
            yield found["name"], found["floor"]


def frozen(python: Path) -> list[str]:
    """What an environment holds, as `name==version`, without this package, pip, and which build it is."""
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "freeze",
        "--all",
        "--exclude-editable",
        "--exclude",
        "pip",
        "--disable-pip-version-check",
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    if odd := [line for line in lines if "==" not in line]:
        sys.exit(f"only releases can be locked, not {', '.join(odd)}")
    return [line.partition("+")[0] for line in lines]


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
