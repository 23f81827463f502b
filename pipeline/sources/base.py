"""What all kinds of input have in common: shards, and opened shards.

``listing`` finds the shards with their sizes and versions. ``shards.open_shard`` chooses the module
of a shard's kind. That module proves that the shard is whole and makes a ``ShardFile``: a local
file with the bytes of all fields, and the samples, which say where each field lies.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from ..stores.filesystems import StorageError
from ..stores.urls import TAR_SUFFIXES, refuse_secrets, without_query
from .samples import Sample
from .tar_members import Member, ShardError

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"  # the first bytes of such a file
PARQUET_SUFFIXES = (".parquet", ".pq")
# Version tags that a store gives both in listings and for a single file.
VERSION_TAGS = ("ETag", "etag", "md5Hash", "blob_id")
# The URL of a part of a folder: the folder, the number of the list, the part's place in the list.
_PART = re.compile(r"(.*)#(\d{6})\.(\d{6})", re.DOTALL)


@dataclass(frozen=True)
class Shard:
    """One part of the input: its URL, its size in bytes, and the store's tag of its version.

    The URL of a part of a folder is made by ``part_url``. Its ``listing`` names its files, its size
    is the sum of theirs, and its tag is a hash of the listing.
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
        suffixes = (*TAR_SUFFIXES, *PARQUET_SUFFIXES)
        suffix = next((one for one in suffixes if name.lower().endswith(one)), "")
        return name[: len(name) - len(suffix)]


@dataclass(frozen=True)
class Columns:
    """The columns of a Parquet file that hold the picture and the key; None: Strata finds them."""

    image: str | None = None
    key: str | None = None


AUTOMATIC = Columns()


def part_url(root: str, number: int, place: int) -> str:
    """The URL of the part at ``place`` of list ``number`` of the folder ``root``."""
    return f"{root}#{number:06d}.{place:06d}"


def is_part(url: str) -> bool:
    """Whether ``part_url`` made this URL."""
    return _PART.fullmatch(url) is not None


def root_of(url: str) -> str:
    """The folder of a part; any other URL as it is."""
    match = _PART.fullmatch(url)
    return match[1] if match else url


def shard_of(fs: Any, path: str, info: Mapping[str, Any]) -> Shard:
    """A file of a store as a shard. ``info`` is what ``fs.info`` or a listing returns for it.

    Raises StorageError if its size is unknown, or if the server calls it a web page or an image.
    """
    if isinstance(fs, LocalFileSystem):
        facts = os.stat(path)  # follows links
        return Shard(path, facts.st_size, f"mtime {facts.st_mtime_ns}")
    size = info.get("size")
    if size is None:
        raise StorageError(f"{path}: its size is unknown, so a cut file would go unnoticed")
    if str(info.get("mimetype")).startswith(("text/html", "image/")):
        raise StorageError(f"{path}: is no tar: the server says that it is {info['mimetype']}")
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
            raise ShardError(f"{self.url}: {member.name!r} became shorter while it was read")
        return data

    def close(self) -> None:
        self._file.close()


def check_version(fs: Any, path: str, shard: Shard) -> None:
    """Raise StorageError if the store now holds another version of the shard."""
    if not shard.etag:
        return
    fs.invalidate_cache()
    try:
        now = shard_of(fs, path, fs.info(path))
    except FileNotFoundError as error:
        raise StorageError(f"{shard.url}: was removed after the job started") from error
    if (now.size, now.etag) != (shard.size, shard.etag):
        raise StorageError(
            f"{shard.url}: changed after the job started ({shard.size} bytes when it was listed, "
            f"{now.size} now): run the job again with a new output, or put the old file back"
        )
