"""Shards for training, wherever they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from ..sources.listing import expand_inputs
from ..stores.filesystems import open_filesystem, storage_errors


def list_shards(urls: Sequence[str], options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The shards behind paths, globs, folders and URLs, sorted. Raises StorageError."""
    return tuple(shard.url for shard in expand_inputs(urls, options)) if urls else ()


@contextmanager
def open_shard(url: str, options: Mapping[str, Any] | None = None) -> Iterator[BinaryIO]:
    """A shard to be read from its beginning. Raises StorageError, also for what is read in it."""
    fs, path = open_filesystem(url, options)
    with storage_errors(url, "cannot be read"), fs.open(path, "rb") as stream:
        yield stream
