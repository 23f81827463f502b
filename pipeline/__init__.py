"""Corpora <-> datasets of streams: tar shards in, Parquet with one column per layer out."""

import importlib
from typing import TYPE_CHECKING, Any

from .reader.dataset import (
    CursorError,
    DamagedDataError,
    Dataset,
    DatasetError,
    Record,
    UnknownKeyError,
    open_dataset,
)

if TYPE_CHECKING:
    from .loading import KeptOriginal, StrataImages, decode_batches
    from .loading.ray_data import RayDecoder, ray_dataset

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

_IMPORTED_LATER = {
    "KeptOriginal": "loading",
    "RayDecoder": "loading.ray_data",
    "StrataImages": "loading",
    "decode_batches": "loading",
    "ray_dataset": "loading.ray_data",
}


def __getattr__(name: str) -> Any:
    """What needs torch or Ray Data, which take seconds to import, is imported at its first use."""
    if name in _IMPORTED_LATER:
        return getattr(importlib.import_module(f".{_IMPORTED_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
