"""The report: figures from committed scores, as JSON, Markdown and one HTML page."""

from gencls_core.report.build import build_report
from gencls_core.report.inference import infer
from gencls_core.report.predictions import predict, write_predictions

__all__ = ["build_report", "infer", "predict", "write_predictions"]
