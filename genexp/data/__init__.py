"""Data sets by name, and the stream of batches drawn from them."""

from genexp.data.registry import find_dataset, list_datasets, load_dataset

__all__ = ["find_dataset", "list_datasets", "load_dataset"]
