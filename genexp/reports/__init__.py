"""Comparison of runs, and the HTML pages of a run and of a comparison."""

from genexp.reports.comparison import Comparison, compare
from genexp.reports.run_report import write_run_report
from genexp.reports.sweep_report import write_sweep_report
from genexp.reports.table import print_comparison

__all__ = ["Comparison", "compare", "print_comparison", "write_run_report", "write_sweep_report"]
