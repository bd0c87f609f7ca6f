"""Reports of a run: a table for the terminal, `report.md`, `report.html` and a page of images."""

from leandetr.report.gallery import Picture
from leandetr.report.goals import reported
from leandetr.report.page import write_images, write_report
from leandetr.report.rows import Row, combine
from leandetr.report.tables import results_table

__all__ = ["Picture", "Row", "combine", "reported", "results_table", "write_images", "write_report"]
