"""Data sets by name, and the stream of batches drawn from them."""

from genexp.data.registry import bind_dataset, find_dataset, list_datasets, load_dataset

__all__ = ["bind_dataset", "find_dataset", "list_datasets", "load_dataset"]
