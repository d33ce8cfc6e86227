"""The report of a run: figures as JSON, a table for the terminal, and one HTML page."""

from glmcore.report.page import write_report
from glmcore.report.summary import format_table, summarize

__all__ = ["format_table", "summarize", "write_report"]
