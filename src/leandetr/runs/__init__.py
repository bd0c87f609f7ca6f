"""`compress`: one run of a recipe in its folder, which stops and goes on as it is told."""

from leandetr.runs.run import Run, compress

__all__ = ["Run", "compress"]
