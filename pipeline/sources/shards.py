"""Opens a shard: fetches it, proves that it is whole, and finds its samples.

A shard is a tar (``tar_members``), a Parquet file (``parquet_rows``) or a part of a folder
(``folder``).
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from ..stores import gzip_limits
from ..stores.filesystems import download, open_filesystem
from ..stores.gzip_limits import GzipLimits
from .base import AUTOMATIC, GZIP, PARQUET, Columns, Shard, ShardFile, check_version
from .folder import open_part
from .parquet_rows import unpack_rows
from .samples import Sample, group_samples
from .tar_members import ShardError, read_members

__all__ = ["Columns", "Shard", "ShardFile", "open_shard"]


@contextmanager
def open_shard(
    shard: Shard,
    scratch: Path,
    options: Mapping[str, Any] | None = None,
    limits: GzipLimits = gzip_limits.DEFAULT,
    columns: Columns = AUTOMATIC,
) -> Iterator[ShardFile]:
    """Hold ``shard`` as a local file in ``scratch``; a local tar is read in place.

    Raises ShardError if the shard is damaged or unpacks to more than ``limits``, StorageError if
    it has changed since it was listed, OSError if it could not be fetched whole. If files of a
    folder have changed, only their samples are bad.
    """
    if shard.listing:
        with open_part(shard, scratch, options) as file:
            yield file
        return
    fs, path = open_filesystem(shard.url, options)
    is_local = isinstance(fs, LocalFileSystem)
    local = Path(path)
    fetched: list[Path] = []
    try:
        if not is_local:
            local = scratch / "shard"
            fetched.append(local)
            download(fs, path, local, shard.url)
        check_version(fs, path, shard)
        if local.stat().st_size != shard.size:
            raise OSError(
                f"{shard.url}: only {local.stat().st_size} of the {shard.size} bytes that were "
                "listed have arrived"
            )
        if _begins_with(local, GZIP):
            fetched.append(scratch / "shard.tar")
            _gunzip(local, fetched[-1], shard.url, limits)
            local = fetched[-1]
        if _begins_with(local, PARQUET):
            fetched.append(scratch / "shard.fields")
            samples = unpack_rows(local, shard, fetched[-1], columns, limits)
            local = fetched[-1]
        else:
            samples = _tar_samples(local, shard.url)
        opened = ShardFile(local, shard.url, samples)
        try:
            yield opened
        finally:
            opened.close()
        if is_local:
            check_version(fs, path, shard)  # others can write to a file that is read in place
    finally:
        for leftover in fetched:
            leftover.unlink(missing_ok=True)


def _tar_samples(local: Path, url: str) -> list[Sample]:
    with open(local, "rb") as file:
        return group_samples(read_members(file, local.stat().st_size, url))


def _begins_with(local: Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes. They tell its kind; names are often wrong."""
    with open(local, "rb") as file:
        return file.read(len(magic)) == magic


def _gunzip(source: Path, target: Path, url: str, limits: GzipLimits) -> None:
    size = source.stat().st_size
    left = most = limits.most(size)
    try:
        with gzip.open(source, "rb") as packed, open(target, "wb") as out:
            while data := packed.read(min(left + 1, 1 << 20)):
                left -= len(data)
                if left < 0:
                    raise ShardError(
                        f"{url}: gzip unpacks its {size} bytes to more than {most}; if you trust "
                        f"it, raise --max-gzip-ratio ({limits.ratio:g}) or --max-unpacked-gib "
                        f"({limits.gib:g})"
                    )
                out.write(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShardError(f"{url}: damaged or cut gzip data: {error}") from error
