"""Corpora <-> datasets of streams: tar shards in, Parquet with one column per layer out."""

from .dataset import (
    CursorError,
    DamagedDataError,
    Dataset,
    DatasetError,
    Record,
    UnknownKeyError,
    open_dataset,
)

__all__ = [
    "CursorError",
    "DamagedDataError",
    "Dataset",
    "DatasetError",
    "Record",
    "UnknownKeyError",
    "open_dataset",
]
