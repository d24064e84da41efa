"""Table of numbers as points: a CSV or Parquet file, or arrays in a NumPy file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genexp.config import require, suggest_choice
from genexp.data.dataset import Dataset, PointColumns, Split
from genexp.data.registry import register_dataset
from genexp.data.sources._array_files import ArrayFileConfig, encode_labels, load_arrays
from genexp.device import check_memory
from genexp.errors import DataError

SUFFIXES = (".csv", ".tsv", ".npy", ".npz", ".parquet")
MIN_BYTES_PER_CELL = 2  # of a CSV file: a digit and a separator
MIN_BYTES_PER_VALUE = 8  # of a column of a Parquet file, as a list
SAMPLED_CHARACTERS = 2**14  # of a CSV file, by which its separator is recognized


@register_dataset("table")
@dataclass
class TableConfig(ArrayFileConfig):
    """conf/dataset/table.yaml."""

    columns: list[str] | None  # names, or numbers from 0 where the file has none; None: all except the label
    standardize: bool  # scale each column to mean 0 and variance 1 over the training split

    def __post_init__(self) -> None:
        super().__post_init__()
        suffix = Path(str(self.file)).suffix
        require(suffix in SUFFIXES, "file", self.file, f"must end in {', '.join(SUFFIXES)}")
        rule = "must name columns, each once, or be null"
        is_valid = self.columns is None or 0 < len(self.columns) == len(set(self.columns))
        require(is_valid, "columns", self.columns, rule)

    def load(self) -> Dataset:
        """Return the streams "point", float32 (n, columns), and "label" if `label` is set. Raises DataError."""
        readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
        table = readers.get(self.path.suffix, _read_arrays)(self.path)
        labels, class_names = (None, ()) if self.label is None else encode_labels(self._select(table, self.label))
        names = self.columns or [name for name in table if name != self.label]
        points = torch.stack([self._parse_column(table, name) for name in names], dim=1)
        train, test = self.split_rows(len(points), labels)
        offset, scale = torch.zeros_like(points[0]), torch.ones_like(points[0])
        if self.standardize:
            offset, std = points[train].mean(0), points[train].std(0, correction=0)
            scale = torch.where(std > 0, std, 1)  # a constant column becomes 0
        points = (points - offset) / scale
        train_split, test_split = (
            Split({"point": points[rows].float(), **({} if labels is None else {"label": labels[rows]})})
            for rows in (train, test)
        )
        columns = PointColumns(tuple(names), offset, scale)
        return Dataset(self.name, train_split, test_split, class_names, columns=columns)

    def _select(self, table: dict[str, Any], name: str) -> Any:
        if name not in table:
            raise DataError(f"dataset.file={self.file}: no column {name}. {suggest_choice(name, table)}")
        return table[name]

    def _parse_column(self, table: dict[str, Any], name: str) -> torch.Tensor:
        """Return a column as float64. Raises DataError with the first value that is not a finite number."""
        values = self._select(table, name)
        for row, value in enumerate(values, start=1):
            if not _is_finite_number(value):
                raise DataError(
                    f"dataset.file={self.file}: {value!r} in column {name}, row {row} is not a finite number. "
                    f"Correct it, or choose other dataset.columns."
                )
        return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _is_finite_number(value: Any) -> bool:
    try:
        return abs(float(value)) < float("inf")
    except (TypeError, ValueError):
        return False


def _read_csv(path: Path) -> dict[str, Any]:
    """Return the columns of a CSV file as lists of text. Columns have numbers if the first row is all numbers.

    Raises DataError.
    """
    check_memory(path.stat().st_size * MIN_BYTES_PER_CELL, f"dataset.file={path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            sample = file.read(SAMPLED_CHARACTERS)
            file.seek(0)
            separator = max("\t;,", key=sample.partition("\n")[0].count)
            rows = [row for row in csv.reader(file, delimiter=separator) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"dataset.file={path}: not readable as CSV ({error}). Restore the file.") from None
    if not rows:
        raise DataError(f"dataset.file={path}: no rows. Use another file.")
    is_header = not all(map(_is_finite_number, rows[0]))
    names = [name.strip() for name in rows[0]] if is_header else [str(index) for index in range(len(rows[0]))]
    if len(set(names)) < len(names):
        raise DataError(f"dataset.file={path}: two columns have one name. Rename one.")
    rows = rows[1:] if is_header else rows
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(
                f"dataset.file={path}: row {number} has {len(row)} values, not {len(names)}. Correct the row."
            )
    return {name: [row[index].strip() for row in rows] for index, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, Any]:
    """Return the columns of a Parquet file as lists. Raises DataError, also where pyarrow is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"dataset.file={path}: Parquet files require pyarrow. "
            f"Run `pip install 'genexp[parquet]'`, or use a CSV file."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            num_cells = file.metadata.num_rows * file.metadata.num_columns
    except Exception as error:  # pyarrow raises any exception for damaged files
        raise _build_parquet_error(path, error) from None
    check_memory(num_cells * MIN_BYTES_PER_VALUE, f"dataset.file={path}")
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:
        raise _build_parquet_error(path, error) from None
    if not any(columns.values()):
        raise DataError(f"dataset.file={path}: no rows. Use another file.")
    return columns


def _build_parquet_error(path: Path, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"dataset.file={path}: not readable as Parquet ({reason}). Restore the file.")


def _read_arrays(path: Path) -> dict[str, Any]:
    """Return the columns of arrays: those of a two-dimensional one have numbers, of several names like x.0.

    Raises DataError.
    """
    columns: dict[str, Any] = {}
    arrays = load_arrays(path)
    for name, values in arrays.items():
        if values.ndim not in (1, 2):
            raise DataError(
                f"dataset.file={path}: {f'the array {name}'.strip()} has {values.ndim} axes. Use one or two."
            )
        if values.ndim == 1:
            columns[name or "0"] = values.tolist()
            continue
        prefix = f"{name}." if len(arrays) > 1 else ""
        columns.update({f"{prefix}{index}": column.tolist() for index, column in enumerate(values.T)})
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise DataError(f"dataset.file={path}: the arrays must have the same number of rows. Correct the file.")
    return columns
