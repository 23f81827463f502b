"""Corpora <-> datasets of streams: tar shards in, Parquet with one column per layer out."""

from typing import TYPE_CHECKING, Any

from .loading import KeptOriginal, StrataImages, decode_batches
from .retrieval.dataset import (
    CursorError,
    DamagedDataError,
    Dataset,
    DatasetError,
    Record,
    UnknownKeyError,
    open_dataset,
)

if TYPE_CHECKING:
    from .ray_data import RayDecoder, ray_dataset

__all__ = [
    "CursorError",
    "DamagedDataError",
    "Dataset",
    "DatasetError",
    "KeptOriginal",
    "RayDecoder",
    "Record",
    "StrataImages",
    "UnknownKeyError",
    "decode_batches",
    "open_dataset",
    "ray_dataset",
]


def __getattr__(name: str) -> Any:
    """What needs Ray Data, which takes seconds to import, is imported at its first use."""
    if name in ("RayDecoder", "ray_dataset"):
        from . import ray_data

        return getattr(ray_data, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
