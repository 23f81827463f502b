"""A shard: one input file, held as a local file and proven whole, with its samples."""

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from ..stores import gzip_limits
from ..stores.filesystems import StorageError, download, open_filesystem
from ..stores.gzip_limits import GzipLimits
from ..stores.urls import SUFFIXES, refuse_secrets, without_query
from .samples import group_samples
from .tar_members import Member, ShardError, read_members

GZIP = b"\x1f\x8b"  # its first bytes
# Names of version tags that listings and single look-ups have in common.
VERSION_TAGS = ("ETag", "etag", "md5Hash")


@dataclass(frozen=True)
class Shard:
    """One input tar: its URL, size in bytes, and the store's tag of its version."""

    url: str
    size: int
    etag: str

    @property
    def stem(self) -> str:
        """The base name without its suffix, and without the URL's query."""
        name = without_query(self.url).rsplit("/", 1)[-1]
        suffix = next((one for one in SUFFIXES if name.lower().endswith(one)), "")
        return name[: len(name) - len(suffix)]


def shard_of(fs: Any, path: str, info: Mapping[str, Any]) -> Shard:
    """A file of a store as a shard, by what ``fs.info`` or a listing with VERSION_TAGS tells.

    Raises StorageError where its size is unknown or it is no tar by its type.
    """
    if isinstance(fs, LocalFileSystem):
        facts = os.stat(path)  # of what a link leads to
        return Shard(path, facts.st_size, f"mtime {facts.st_mtime_ns}")
    size = info.get("size")
    if size is None:
        raise StorageError(f"{path}: its size is unknown, so a cut file would go unnoticed")
    if str(info.get("mimetype")).startswith(("text/html", "image/")):
        raise StorageError(f"{path}: no tar, but {info['mimetype']}, by what the server says")
    tags = (*VERSION_TAGS, "LastModified", "mtime", "created")
    tag = next((str(info[name]) for name in tags if info.get(name)), "")
    url = fs.unstrip_protocol(path)
    refuse_secrets(url)  # a web page may list signed addresses
    return Shard(url, size, tag.strip('"'))


class ShardFile:
    """A whole shard as a local file: its samples, and the bytes of their fields."""

    def __init__(self, path: Path, url: str) -> None:
        self.url = url
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        try:
            size = os.fstat(self._file.fileno()).st_size
            self.samples = group_samples(read_members(self._file, size, url))
        except BaseException:
            self._file.close()
            raise

    def read(self, member: Member) -> bytes:
        """The member's bytes; safe from several threads at once."""
        data = os.pread(self._file.fileno(), member.size, member.offset)
        if len(data) != member.size:
            raise ShardError(f"{self.url}: {member.name!r} was cut while it was being read")
        return data

    def close(self) -> None:
        self._file.close()


@contextmanager
def open_shard(
    shard: Shard,
    scratch: Path,
    options: Mapping[str, Any] | None = None,
    limits: GzipLimits = gzip_limits.DEFAULT,
) -> Iterator[ShardFile]:
    """Hold ``shard`` as a local file in ``scratch``; a local tar is read in place.

    Raises ShardError if the shard is damaged or gzip unpacks it to more than ``limits``,
    StorageError if it has changed since it was listed, OSError if it could not be fetched whole.
    """
    fs, path = open_filesystem(shard.url, options)
    is_local = isinstance(fs, LocalFileSystem)
    local = Path(path)
    fetched: list[Path] = []
    try:
        if not is_local:
            local = scratch / "shard"
            fetched.append(local)
            download(fs, path, local, shard.url)
        _check_version(fs, path, shard)
        if local.stat().st_size != shard.size:
            raise OSError(
                f"{shard.url}: has {local.stat().st_size} bytes instead of the {shard.size} that "
                "were listed: it was cut on the way"
            )
        if _is_gzip(local):
            fetched.append(scratch / "shard.tar")
            _gunzip(local, fetched[-1], shard.url, limits)
            local = fetched[-1]
        opened = ShardFile(local, shard.url)
        try:
            yield opened
        finally:
            opened.close()
        if is_local:
            _check_version(fs, path, shard)  # it was read in place, where others can write
    finally:
        for leftover in fetched:
            leftover.unlink(missing_ok=True)


def _check_version(fs: Any, path: str, shard: Shard) -> None:
    """Raise StorageError if the store holds another version now."""
    if not shard.etag:
        return
    fs.invalidate_cache()
    try:
        now = shard_of(fs, path, fs.info(path))
    except FileNotFoundError as error:
        raise StorageError(f"{shard.url}: was removed after the job began") from error
    if (now.size, now.etag) != (shard.size, shard.etag):
        raise StorageError(
            f"{shard.url}: changed after the job began ({shard.size} bytes when it was listed, "
            f"{now.size} now): run the job again on a new output, or put the old file back"
        )


def _is_gzip(local: Path) -> bool:
    """Whether a file is gzip, by its content: names are often wrong."""
    with open(local, "rb") as file:
        return file.read(len(GZIP)) == GZIP


def _gunzip(source: Path, target: Path, url: str, limits: GzipLimits) -> None:
    size = source.stat().st_size
    left = most = limits.most(size)
    try:
        with gzip.open(source, "rb") as packed, open(target, "wb") as out:
            while data := packed.read(min(left + 1, 1 << 20)):
                left -= len(data)
                if left < 0:
                    raise ShardError(
                        f"{url}: gzip unpacks its {size} bytes to more than "
                        f"{most}; if they are to be trusted, raise --max-gzip-ratio "
                        f"({limits.ratio:g}) or --max-unpacked-gib ({limits.gib:g})"
                    )
                out.write(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShardError(f"{url}: damaged or cut gzip data: {error}") from error
