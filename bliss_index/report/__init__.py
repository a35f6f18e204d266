"""A report that people read: one HTML file and plots, from a scores directory."""

from __future__ import annotations

from bliss_index.report.make import ReportOptions, ReportSummary, make_report

__all__ = ["ReportOptions", "ReportSummary", "make_report"]
