"""Data sets by name, and the stream of batches drawn from them."""

from genexp.data.registry import find_source, load_dataset, source_names

__all__ = ["find_source", "load_dataset", "source_names"]
