"""Corpora <-> datasets of streams: tar shards in, Parquet with one column per layer out."""

from .dataset import Dataset, DatasetError, Record, open_dataset

__all__ = ["Dataset", "DatasetError", "Record", "open_dataset"]
