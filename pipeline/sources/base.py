"""What every kind of input comes to: shards by name and version, and files of samples.

A kind of input lists its shards with sizes and versions (``listing``), and makes of each, when it
has proven that it is whole, a ``ShardFile``: a local file that holds the bytes of all fields, and
the samples that say which field lies where. ``shards.open_shard`` chooses among the kinds.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from ..stores.filesystems import StorageError
from ..stores.urls import SUFFIXES, refuse_secrets, without_query
from .samples import Sample
from .tar_members import Member, ShardError

GZIP = b"\x1f\x8b"  # its first bytes
# Names of version tags that listings and single look-ups have in common.
VERSION_TAGS = ("ETag", "etag", "md5Hash", "blob_id")
PARQUET = b"PAR1"  # the same of Parquet
TABLES = (".parquet", ".pq")
# What a part of a folder is called: the list that names its files, and its place in that.
_PART = re.compile(r"(.*)#(\d{6})\.(\d{6})", re.DOTALL)


@dataclass(frozen=True)
class Shard:
    """One part of the input: its URL, size in bytes, and the store's tag of its version.

    A part of a folder has a URL of ``part_url``, and ``listing`` names its files (``folder``); its
    size is theirs together, and its tag a hash of the listing.
    """

    url: str
    size: int
    etag: str
    listing: bytes = field(default=b"", repr=False)

    @property
    def stem(self) -> str:
        """The base name without its suffix, and without the URL's query."""
        if is_part(self.url):
            root, number = self.url.rsplit("#", 1)
            return f"{root.rsplit('/', 1)[-1]}-{number.replace('.', '-')}"
        name = without_query(self.url).rsplit("/", 1)[-1]
        suffix = next((one for one in (*SUFFIXES, *TABLES) if name.lower().endswith(one)), "")
        return name[: len(name) - len(suffix)]


@dataclass(frozen=True)
class Columns:
    """Which columns of a Parquet file hold the picture and the key; None: found by themselves."""

    image: str | None = None
    key: str | None = None


AUTOMATIC = Columns()


def part_url(root: str, number: int, place: int) -> str:
    """The URL of a part of the folder ``root``: the number of its list, and its place there."""
    return f"{root}#{number:06d}.{place:06d}"


def is_part(url: str) -> bool:
    """Whether a URL is one of ``part_url``."""
    return _PART.fullmatch(url) is not None


def root_of(url: str) -> str:
    """The folder of a part; any other URL as it is."""
    match = _PART.fullmatch(url)
    return match[1] if match else url


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
    """A whole shard as a local file: its samples, and the bytes of their fields.

    ``leave_out`` moves samples to ``deleted``.
    """

    def __init__(self, path: Path, url: str, samples: Sequence[Sample]) -> None:
        self.url = url
        self.samples = list(samples)
        self.deleted: list[Sample] = []
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()

    def leave_out(self, is_deleted: Callable[[str], bool]) -> None:
        """Leave out the samples whose keys are deleted."""
        samples, self.samples = self.samples, []
        for sample in samples:
            (self.deleted if is_deleted(sample.key) else self.samples).append(sample)

    def read(self, member: Member) -> bytes:
        """The member's bytes; safe from several threads at once."""
        data = os.pread(self._file.fileno(), member.size, member.offset)
        if len(data) != member.size:
            raise ShardError(f"{self.url}: {member.name!r} was cut while it was being read")
        return data

    def close(self) -> None:
        self._file.close()


def check_version(fs: Any, path: str, shard: Shard) -> None:
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
