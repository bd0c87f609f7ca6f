"""Writes `docs/licences.md`: the licence of every package of constraints.txt, as the installed packages say it.

.venv/bin/python tools/licences.py
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences

leandetr is under the Apache License 2.0. These are the packages of `constraints.txt`, which `make install` takes, with the
licences that they say they have; `.venv/bin/python tools/licences.py` writes this page. Packages of `nvidia-*` and `cuda-*`
come with PyTorch for Linux and are NVIDIA's own. Those of the extra `dev` (tests, linters, the site) are no part of what is
deployed.

| package | version | licence |
|---|---|---|
"""
PREFIX = "License :: "
LONGEST = 60  # characters of a licence's name; more is its text


def licence_of(said: Any) -> str:
    """The licence in a package's metadata: its expression, else the classifiers, else the free field where that is a name.

    said: what `importlib.metadata.metadata` returns.
    """
    if expression := said.get("License-Expression"):
        return str(expression)
    named = [entry for entry in said.get_all("Classifier") or [] if entry.startswith(PREFIX)]
    if classified := [entry.rpartition(" :: ")[2] for entry in named if entry != f"{PREFIX}OSI Approved"]:
        return ", ".join(classified)
    first = " ".join((said.get("License") or "").split())
    if first in ("", "UNKNOWN"):
        return "not said"
    return first if len(first) <= LONGEST else "see the package"


def rows(lock: str) -> list[tuple[str, str, str]]:
    """(package, version, licence) of every line of a lock file that is no comment."""
    found = []
    for line in lock.splitlines():
        name, equals, version = line.strip().partition("==")
        if equals and not name.startswith("#"):
            try:
                found.append((name, version, licence_of(metadata(name))))
            except PackageNotFoundError:
                found.append((name, version, "not installed here"))
    return found


def main() -> None:
    lines = [f"| {' | '.join(row)} |" for row in rows((ROOT / "constraints.txt").read_text(encoding="utf-8"))]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
