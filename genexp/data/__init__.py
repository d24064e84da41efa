"""Data sets by name, and the stream of batches drawn from them."""

from genexp.data.registry import find_dataset, load_dataset, list_datasets

__all__ = ["find_dataset", "load_dataset", "list_datasets"]
