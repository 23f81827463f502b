"""The job that writes a dataset's map of keys (``strata index``)."""

from collections.abc import Mapping
from typing import Any

from .dataset import open_dataset
from .key_map import publish_key_map


def index_keys(
    url: str, options: Mapping[str, Any] | None = None, scratch: str | None = None
) -> str:
    """Write the map of a dataset's keys, unless a sound one exists; returns a line of text.

    ``options`` are fsspec's storage options, ``scratch`` is a folder for temporary files. Raises
    DatasetError, StorageError.
    """
    dataset = open_dataset(url, options)
    return publish_key_map(dataset.store, dataset.files, scratch)
