"""Folders of pictures: which files are one sample, which samples one part, and a part's bytes.

The files of a folder that have the same path up to the last dot of their name are a sample. A part
is some samples, of a size that suits a worker. Its listing names its files with size and version;
once a listing is published (``dataset.part_lists``), no file that it names comes into another part.
"""

import hashlib
import json
import os
import shutil
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from ..stores.filesystems import download, open_filesystem
from ..stores.small_files import SmallFile, read_small_files
from .base import Shard, ShardFile, part_url, root_of, shard_of
from .samples import Sample, is_picture, sample_of
from .tar_members import Member

PART_SAMPLES, PART_BYTES = 1024, 256 << 20
FETCHED_TOGETHER, FETCHED_BYTES = 256, 32 << 20  # held in memory at once
_MAX_NAMED = 5


class File(NamedTuple):
    """A file below a folder: its path from there, its size in bytes, its version."""

    path: str
    size: int
    version: str

    @property
    def key(self) -> str:
        """The path without its extension; '' for a name that has none."""
        base = self.path.rpartition("/")[2]
        return self.path.rpartition(".")[0] if "." in base else ""

    @property
    def extension(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Folder:
    """A folder that was searched: its URL and the files in it.

    ``whole`` is false if only some of its files were asked for.
    """

    root: str
    files: tuple[File, ...]
    whole: bool = True

    def url(self, path: str) -> str:
        return join(self.root, path)


def join(root: str, path: str) -> str:
    """The URL of a file below a folder."""
    return f"{root.rstrip('/')}/{path}"


def samples_in(files: Iterable[File]) -> tuple[dict[str, list[File]], list[File]]:
    """The files of each sample by key, in order, and the files that belong to no picture."""
    groups: dict[str, list[File]] = {}
    others: list[File] = []
    for file in sorted(files):
        (groups.setdefault(file.key, []) if file.key else others).append(file)
    alone = [key for key, group in groups.items() if not any(is_picture(f.path) for f in group)]
    for key in alone:
        others += groups.pop(key)
    return dict(sorted(groups.items())), sorted(others)


def left_out(root: str, others: Sequence[File]) -> str:
    """A line about files that belong to no picture, or ''."""
    if not others:
        return ""
    kinds = Counter(file.path.rpartition("/")[2].rpartition(".")[1:] for file in others)
    named = ", ".join(
        f"{count:,} {''.join(kind) if kind[0] else 'without extension'}"
        for kind, count in kinds.most_common(_MAX_NAMED)
    )
    verb = "is" if len(others) == 1 else "are"
    return (
        f"{root}: {len(others):,} of its files {verb} left out, because no picture has the same "
        f"name ({named}): {some(file.path for file in others)}"
    )


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    known = list(names)
    more = f", and {len(known) - _MAX_NAMED:,} more" if len(known) > _MAX_NAMED else ""
    return ", ".join(known[:_MAX_NAMED]) + more


def cut(samples: Mapping[str, Sequence[File]]) -> Iterator[list[File]]:
    """The files of each part: up to PART_SAMPLES samples of up to PART_BYTES together."""
    part: list[File] = []
    count = nbytes = 0
    for files in samples.values():
        size = sum(file.size for file in files)
        if part and (count == PART_SAMPLES or nbytes + size > PART_BYTES):
            yield part
            part, count, nbytes = [], 0, 0
        part += files
        count, nbytes = count + 1, nbytes + size
    if part:
        yield part


def part_of(root: str, files: Sequence[File], number: int, place: int) -> Shard:
    """The part of a folder that these files are."""
    listing = json.dumps(files, separators=(",", ":")).encode()
    digest = hashlib.sha256(f"{root}\n".encode("utf-8", "surrogateescape") + listing)
    size = sum(file.size for file in files)
    url = part_url(root, number, place)
    return Shard(url, size, f"files {digest.hexdigest()[:32]}", zlib.compress(listing, 1))


def parts_of(folder: Folder) -> list[Shard]:
    """A folder's parts as of now, for jobs that do not come back to it."""
    samples, _ = samples_in(folder.files)
    return [part_of(folder.root, files, 1, n) for n, files in enumerate(cut(samples), 1)]


def files_of(shard: Shard) -> list[File]:
    """The files of a part."""
    return [File(*one) for one in json.loads(zlib.decompress(shard.listing))]


def changed_files(
    shard: Shard,
    options: Mapping[str, Any] | None,
    wanted: Callable[[str], bool] = lambda key: True,
) -> list[str]:
    """What has become of those files of a part that are not what they were, in words.

    Of the files with a ``wanted`` key.
    """
    fs, root = open_filesystem(root_of(shard.url), options)
    fs.invalidate_cache()
    files = [file for file in files_of(shard) if wanted(file.key)]
    problems = _in_threads(fs, lambda file: _problem_now(fs, root, file), files)
    named = zip(files, problems, strict=True)
    return [f"{file.path} {problem}" for file, problem in named if problem]


@contextmanager
def open_part(
    shard: Shard, scratch: Path, options: Mapping[str, Any] | None = None
) -> Iterator[ShardFile]:
    """Hold a part's files as one local file in ``scratch``.

    Samples of which a file was removed or has changed since it was listed are bad. Raises
    OSError for files that could not be fetched.
    """
    root = root_of(shard.url)
    fs, path = open_filesystem(root, options)
    fs.invalidate_cache()
    files, local = files_of(shard), scratch / "part"
    try:
        with open(local, "wb") as out:
            members = list(_fetch(fs, path, root, files, out, scratch))
        opened = ShardFile(local, shard.url, list(_grouped(files, members)))
        try:
            yield opened
        finally:
            opened.close()
    finally:
        local.unlink(missing_ok=True)


def _grouped(files: Sequence[File], members: Sequence[Member]) -> Iterator[Sample]:
    groups: dict[str, list[tuple[str, Member]]] = {}
    for file, member in zip(files, members, strict=True):
        groups.setdefault(file.key, []).append((file.extension, member))
    for key, fields in groups.items():
        yield sample_of(key, fields)


def _fetch(
    fs: Any, path: str, root: str, files: Sequence[File], out: BinaryIO, scratch: Path
) -> Iterator[Member]:
    """Write the files' bytes one after the other; yields where each lies, or what is wrong."""
    for chunk in _chunks(files):
        # What copies does so when it is asked for its answer, after ``offset`` is known.
        if isinstance(fs, LocalFileSystem):
            read: Iterator[bytes | str] = (_copy_local(path, file, out) for file in chunk)
        elif chunk[0].size > FETCHED_BYTES:
            read = (_copy_large(fs, path, root, file, out, scratch) for file in chunk)
        else:
            read = iter(_read(fs, path, root, chunk))
        for file in chunk:
            offset = out.tell()
            data = next(read)
            if isinstance(data, str) and data:
                yield Member(file.path, offset, 0, data)
                continue
            out.write(data or b"")
            yield Member(file.path, offset, file.size)


def _chunks(files: Sequence[File]) -> Iterator[list[File]]:
    """Files that are read together; a large one is alone."""
    chunk: list[File] = []
    for file in files:
        size = sum(one.size for one in chunk) + file.size
        if chunk and (len(chunk) == FETCHED_TOGETHER or size > FETCHED_BYTES):
            yield chunk
            chunk = []
        chunk.append(file)
    if chunk:
        yield chunk


def _copy_local(folder: str, file: File, out: BinaryIO) -> str:
    """Copy a local file; returns why it is not what was listed, or ''."""
    path = join(folder, file.path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe may wait for ever
            return _GONE
        with open(path, "rb") as source:
            if not (problem := _local_difference(source, file)):
                shutil.copyfileobj(source, out, 1 << 20)
                problem = _local_difference(source, file)
            return problem
    except (FileNotFoundError, NotADirectoryError):
        return _GONE


def _copy_large(fs: Any, path: str, root: str, file: File, out: BinaryIO, scratch: Path) -> str:
    """Copy a file that is too large to be held; returns why it is not what was listed, or ''."""
    copy, url = scratch / "large", join(root, file.path)
    try:
        if problem := _problem_now(fs, path, file):
            return problem
        download(fs, join(path, file.path), copy, url)
        if problem := _problem_now(fs, path, file):
            return problem
        if copy.stat().st_size != file.size:
            raise OSError(f"{url}: {copy.stat().st_size} bytes of {file.size} arrived")
        with open(copy, "rb") as source:
            shutil.copyfileobj(source, out, 1 << 20)
        return ""
    finally:
        copy.unlink(missing_ok=True)


def _read(fs: Any, path: str, root: str, files: Sequence[File]) -> list[bytes | str]:
    """Each file's bytes, or why it is not what was listed."""
    asked = [file for file in files if file.size]
    paths, sizes = [join(path, file.path) for file in asked], [file.size for file in asked]
    came: dict[File, SmallFile | None] = dict.fromkeys(files, SmallFile(b"", ""))
    came |= zip(asked, read_small_files(fs, paths, sizes), strict=True)
    done: dict[File, bytes | str] = {
        file: one.data for file, one in came.items() if one and _is_listed(file, one)
    }
    doubtful = [file for file in files if file not in done]

    def checked(file: File) -> bytes | str:
        return _checked(fs, path, root, file, came[file])

    done |= zip(doubtful, _in_threads(fs, checked, doubtful), strict=True)
    return [done[file] for file in files]


def _is_listed(file: File, came: SmallFile) -> bool:
    """Whether what came is certainly the file as listed."""
    same = came.version == file.version or _is_md5(file.version, came.data)
    return same and len(came.data) == file.size


def _is_md5(version: str, data: bytes) -> bool:
    """Whether a version is the hash of these bytes, as S3's mostly is: it saves a request."""
    return version == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _checked(fs: Any, path: str, root: str, file: File, came: SmallFile | None) -> bytes | str:
    """The file's bytes if it is as listed, by one or two more requests; else what is wrong."""
    url = join(root, file.path)
    if came is None:
        try:
            came = SmallFile(fs.cat_file(join(path, file.path)), "")
        except FileNotFoundError:
            return _GONE
        except Exception as error:
            raise OSError(f"{url}: cannot be fetched: {type(error).__name__}: {error}") from error
        if _is_listed(file, came):
            return bytes(came.data)
    problem = _problem_now(fs, path, file)
    if not problem and len(came.data) != file.size:
        raise OSError(f"{url}: {len(came.data)} bytes of {file.size} arrived")
    return problem or bytes(came.data)


_GONE = "was removed after it was listed"


def _problem_now(fs: Any, path: str, file: File) -> str:
    """Why a file is not what it was, or ''."""
    try:
        target = join(path, file.path)
        now = shard_of(fs, target, fs.info(target) if not isinstance(fs, LocalFileSystem) else {})
    except (FileNotFoundError, NotADirectoryError):
        return _GONE
    return _difference(file, now.size, now.etag)


def _difference(file: File, size: int, version: str) -> str:
    if size == file.size and (not file.version or version == file.version):
        return ""
    return f"changed after it was listed ({file.size} bytes then, {size} now)"


def _local_difference(source: BinaryIO, file: File) -> str:
    facts = os.fstat(source.fileno())
    return _difference(file, facts.st_size, f"mtime {facts.st_mtime_ns}")


def _in_threads(fs: Any, ask: Any, items: Sequence[File]) -> list[Any]:
    """``ask`` for every file, in threads where that saves time."""
    if isinstance(fs, LocalFileSystem) or not fs.async_impl:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(min(32, max(1, len(items)))) as pool:
        return list(pool.map(ask, items))
