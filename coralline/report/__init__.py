"""Reports for people: one self-contained HTML page a pipeline run."""

from coralline.report.page import write_report
from coralline.report.record import PolicySummary, ReportInput

__all__ = ["PolicySummary", "ReportInput", "write_report"]
