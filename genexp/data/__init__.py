"""Data sets by name, and the stream of batches drawn from them."""

from genexp.data.registry import load_dataset, source_names

__all__ = ["load_dataset", "source_names"]
