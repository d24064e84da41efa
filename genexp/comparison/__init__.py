"""The answer of many runs: which settings matter, and by more than the noise."""

from genexp.comparison.comparison import Comparison, compare
from genexp.comparison.table import print_comparison

__all__ = ["Comparison", "compare", "print_comparison"]
