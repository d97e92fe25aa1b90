"""The report: one HTML file that needs nothing else, and reads well by day and by night."""

from gkd_core.report.findings import ROLES, Findings
from gkd_core.report.page import render_report

__all__ = ["ROLES", "Findings", "render_report"]
