"""Input shards: find them by URL, hold one as a local file, see it as WebDataset samples."""

import gzip
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
from fsspec.implementations.local import LocalFileSystem

from .storage import StorageError, open_filesystem, storage_errors
from .tars import Member, ShardError, read_members

SUFFIXES = (".tar", ".tar.gz", ".tgz")
# webdataset's rule: the key is the path up to the first dot of the base name
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
IMAGE_FIELDS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"}
    | {"ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx", "avif", "heic", "heif", "jxl", "tga", "ico"}
)
MAX_FIELD_BYTES = 1 << 29  # one row group must hold a whole row in memory


@dataclass(frozen=True)
class Shard:
    """One input tar: its URL, size in bytes, and whatever tag tells its versions apart."""

    url: str
    size: int
    etag: str

    @property
    def stem(self) -> str:
        """The base name without its suffix."""
        name = self.url.rsplit("/", 1)[-1]
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
        return name.removesuffix(suffix)


@dataclass(frozen=True)
class Sample:
    """What WebDataset calls a sample: the members that share a key, in the tar's order.

    ``filtered`` says why WebDataset would skip it, ``problem`` why it cannot be trusted.
    """

    key: str
    fields: tuple[tuple[str, Member], ...]
    problem: str = ""
    filtered: str = ""

    @property
    def image_field(self) -> str | None:
        """The field to encode: the first whose whole name, or else whose ending, is a picture's."""
        names = [name for name, _ in self.fields]
        whole = (name for name in names if name.lower() in IMAGE_FIELDS)
        ending = (name for name in names if name.lower().rsplit(".", 1)[-1] in IMAGE_FIELDS)
        return next(whole, None) or next(ending, None)


def expand_inputs(patterns: Sequence[str]) -> list[Shard]:
    """The shards behind paths, globs, brace ranges, folders and URLs, sorted by URL.

    Raises StorageError for an input that matches nothing or cannot be listed.
    """
    shards: dict[str, Shard] = {}
    for pattern in patterns:
        for url in braceexpand.braceexpand(pattern) if "{" in pattern else [pattern]:
            for shard in _expand(url):
                shards[shard.url] = shard
    return [shards[url] for url in sorted(shards)]


def _expand(url: str) -> Iterator[Shard]:
    fs, path = open_filesystem(url)
    with storage_errors(url, "cannot be listed"):
        fs.invalidate_cache()
        if fs.isfile(path):
            found = [path]
        elif fs.isdir(path):
            found = [name for name in fs.find(path) if name.endswith(SUFFIXES)]
        elif any(character in path for character in "*?["):
            found = [name for name in fs.glob(path) if fs.isfile(name)]
        else:
            raise StorageError(f"{url}: there is no such file, folder or object")
        if not found:
            raise StorageError(f"{url}: no tar shard matches ({', '.join(SUFFIXES)})")
        for name in found:
            yield _shard(fs, name)


def _shard(fs: Any, path: str) -> Shard:
    info = fs.info(path)
    size = info.get("size")
    if size is None:
        raise StorageError(f"{path}: its size is unknown, so nobody could prove that it is whole")
    if isinstance(fs, LocalFileSystem):
        return Shard(path, size, f"mtime {os.stat(path).st_mtime_ns}")
    tags = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
    tag = next((str(info[name]) for name in tags if info.get(name)), "")
    return Shard(fs.unstrip_protocol(path), size, tag.strip('"'))


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
def open_shard(shard: Shard, scratch: Path) -> Iterator[ShardFile]:
    """Hold ``shard`` as a local file in ``scratch`` (a local tar is used where it lies).

    Raises ShardError when the shard is damaged, OSError when it could not be fetched whole.
    """
    fs, path = open_filesystem(shard.url)
    local = Path(path)
    fetched: list[Path] = []
    try:
        if not isinstance(fs, LocalFileSystem):
            local = scratch / "shard"
            fetched.append(local)
            fs.get_file(path, str(local))
        if local.stat().st_size != shard.size:
            raise OSError(
                f"{shard.url}: has {local.stat().st_size} bytes instead of the {shard.size} that "
                "were listed: it was cut on the way, or changed after the job began"
            )
        if shard.url.endswith((".gz", ".tgz")):
            fetched.append(scratch / "shard.tar")
            _gunzip(local, fetched[-1], shard.url)
            local = fetched[-1]
        opened = ShardFile(local, shard.url)
        try:
            yield opened
        finally:
            opened.close()
    finally:
        for leftover in fetched:
            leftover.unlink(missing_ok=True)


def _gunzip(source: Path, target: Path, url: str) -> None:
    try:
        with gzip.open(source, "rb") as packed, open(target, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShardError(f"{url}: damaged or cut gzip data: {error}") from error


def group_samples(members: Sequence[Member]) -> list[Sample]:
    """Group consecutive members by key, and mark every sample that is not one clean group."""
    groups: list[tuple[str, list[tuple[str, Member]], str, str]] = []
    for member in members:
        match = _KEY_AND_FIELD.match(member.name)
        base = member.name.rsplit("/", 1)[-1]
        if match is None or (member.name.startswith("__") and member.name.endswith("__")):
            hidden = base.startswith(".") or match is not None
            problem = "" if hidden else "its name has no extension, so WebDataset sees no sample"
            filtered = "a hidden or meta file, which WebDataset skips" if hidden else ""
            groups.append((member.name, [("", member)], problem, filtered))
        elif groups and groups[-1][0] == match[1] and not (groups[-1][2] or groups[-1][3]):
            groups[-1][1].append((match[2], member))
        else:
            groups.append((match[1], [(match[2], member)], "", ""))
    times = Counter(key for key, *_ in groups)
    return [
        Sample(key, tuple(fields), problem or _problem(key, fields, times[key]), filtered)
        for key, fields, problem, filtered in groups
    ]


def _problem(key: str, fields: Sequence[tuple[str, Member]], times: int) -> str:
    """Why the sample is not one clean group of readable files, or ''."""
    if times > 1:
        return "its key occurs again later: duplicate samples, or fields that lie apart"
    names = [name for name, _ in fields]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        return f"the field {repeated!r} occurs twice"
    for name, member in fields:
        if member.problem:
            return f"the field {name!r} {member.problem}"
        if member.size > MAX_FIELD_BYTES:
            return f"the field {name!r} has {member.size} bytes, more than {MAX_FIELD_BYTES}"
        if not _is_text(name):
            return f"the field {name!r} has a name that is not UTF-8"
    return "its key has a zero byte" if "\0" in key else ""


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name
