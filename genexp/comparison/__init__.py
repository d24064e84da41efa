"""The answer of many runs: which settings matter, and by more than the noise."""

from genexp.comparison.comparison import Comparison, compare
from genexp.comparison.run_report import write_run_report
from genexp.comparison.sweep_report import write_report
from genexp.comparison.table import print_comparison

__all__ = ["Comparison", "compare", "print_comparison", "write_report", "write_run_report"]
