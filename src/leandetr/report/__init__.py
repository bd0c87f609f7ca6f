"""Reports of a run: a table for the terminal, `report.md`, `report.html` and a page of images."""

from leandetr.report.gallery import Picture
from leandetr.report.markdown import render_markdown
from leandetr.report.page import write_report
from leandetr.report.rows import Row
from leandetr.report.study import study_table
from leandetr.report.table import results_table

__all__ = ["Picture", "Row", "render_markdown", "results_table", "study_table", "write_report"]
