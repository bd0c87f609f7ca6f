"""The command line: a few lines a command, no logic."""

# ruff: noqa: F401, I001  (importing a file adds its commands, in the order of the help text)
from leandetr.cli import compress, training, trim, prune, quantize, artefacts, serve, analyze, data, models
from leandetr.cli.main import app, main

__all__ = ["app", "main"]
