"""Folders of pictures: their samples, their parts, and how the files of a part are read.

Files whose paths are the same up to the last dot form a sample. A part is a group of samples that
is compressed as one shard. Its listing names its files with their sizes and versions. Once a
listing is published (``dataset.part_lists``), its files never come into another part.
"""

import hashlib
import json
import os
import shutil
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from codec.batches import windows

from ..stores.filesystems import download, open_filesystem
from ..stores.small_files import SmallFile, read_small_files
from ..stores.threads import ask_in_threads
from .base import Shard, ShardFile, part_url, root_of, shard_of
from .samples import Sample, is_picture, sample_of
from .tar_members import Member

PART_SAMPLES, PART_BYTES = 1024, 256 << 20  # at most in one part
FETCHED_TOGETHER, FETCHED_BYTES = 256, 32 << 20  # files and bytes in memory at once
_MAX_NAMED = 5  # files or kinds of files that a message names
_REMOVED = "was removed after it was listed"


class File(NamedTuple):
    """A file in a folder: its path relative to the folder, its size in bytes, its version."""

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
    """The URL of a file in a folder."""
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


def left_out_note(root: str, others: Sequence[File]) -> str:
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
        f"name ({named}): {first_few(file.path for file in others)}"
    )


def first_few(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    known = list(names)
    more = f", and {len(known) - _MAX_NAMED:,} more" if len(known) > _MAX_NAMED else ""
    return ", ".join(known[:_MAX_NAMED]) + more


def split_into_parts(samples: Mapping[str, Sequence[File]]) -> Iterator[list[File]]:
    """The files of each part: at most PART_SAMPLES samples, with PART_BYTES together."""
    for part in windows(samples.values(), _bytes_of, PART_BYTES, PART_SAMPLES):
        yield [file for files in part for file in files]


def _bytes_of(files: Sequence[File]) -> int:
    return sum(file.size for file in files)


def part_of(root: str, files: Sequence[File], number: int, place: int) -> Shard:
    """The part of a folder that consists of these files."""
    listing = json.dumps(files, separators=(",", ":")).encode()
    digest = hashlib.sha256(f"{root}\n".encode("utf-8", "surrogateescape") + listing)
    url = part_url(root, number, place)
    return Shard(
        url, _bytes_of(files), f"files {digest.hexdigest()[:32]}", zlib.compress(listing, 1)
    )


def parts_of(folder: Folder) -> list[Shard]:
    """The parts of a folder, for jobs that keep no lists of parts."""
    samples, _ = samples_in(folder.files)
    parts = split_into_parts(samples)
    return [part_of(folder.root, files, 1, place) for place, files in enumerate(parts, 1)]


def files_of(shard: Shard) -> list[File]:
    """The files of a part."""
    return [File(*one) for one in json.loads(zlib.decompress(shard.listing))]


def changed_files(
    shard: Shard,
    options: Mapping[str, Any] | None,
    wanted: Callable[[str], bool] = lambda key: True,
) -> list[str]:
    """Which files of a part were removed or have changed, in words.

    Looks only at files whose key is ``wanted``.
    """
    fs, root = open_filesystem(root_of(shard.url), options)
    fs.invalidate_cache()
    files = [file for file in files_of(shard) if wanted(file.key)]
    problems = ask_in_threads(fs, lambda file: _problem_now(fs, root, file), files)
    named = zip(files, problems, strict=True)
    return [f"{file.path} {problem}" for file, problem in named if problem]


@contextmanager
def open_part(
    shard: Shard, scratch: Path, options: Mapping[str, Any] | None = None
) -> Iterator[ShardFile]:
    """Hold a part's files as one local file in ``scratch``.

    A sample is bad if one of its files was removed or has changed since it was listed. Raises
    OSError if a file could not be fetched.
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
    for chunk in windows(files, lambda file: file.size, FETCHED_BYTES, FETCHED_TOGETHER):
        # The first two are lazy: ``next`` below copies a file after its ``offset`` is known.
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


def _copy_local(folder: str, file: File, out: BinaryIO) -> str:
    """Copy a local file; returns why it is not what was listed, or ''."""
    path = join(folder, file.path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe may wait forever
            return _REMOVED
        with open(path, "rb") as source:
            if not (problem := _local_difference(source, file)):
                shutil.copyfileobj(source, out, 1 << 20)
                problem = _local_difference(source, file)
            return problem
    except (FileNotFoundError, NotADirectoryError):
        return _REMOVED
    except PermissionError:  # one file must not take the others of its part with it
        return "cannot be read: permission denied"


def _copy_large(fs: Any, path: str, root: str, file: File, out: BinaryIO, scratch: Path) -> str:
    """Copy a file that is too large for memory; returns why it is not what was listed, or ''."""
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
    fetched: dict[File, SmallFile | None] = dict.fromkeys(files, SmallFile(b"", ""))
    fetched |= zip(asked, read_small_files(fs, paths, sizes), strict=True)
    done: dict[File, bytes | str] = {
        file: one.data for file, one in fetched.items() if one and _is_as_listed(file, one)
    }
    doubtful = [file for file in files if file not in done]

    def checked(file: File) -> bytes | str:
        return _checked(fs, path, root, file, fetched[file])

    done |= zip(doubtful, ask_in_threads(fs, checked, doubtful), strict=True)
    return [done[file] for file in files]


def _is_as_listed(file: File, fetched: SmallFile) -> bool:
    """Whether what was fetched is certainly the file as listed."""
    same = fetched.version == file.version or _is_md5(file.version, fetched.data)
    return same and len(fetched.data) == file.size


def _is_md5(version: str, data: bytes) -> bool:
    """Whether a version is the MD5 of these bytes. S3's mostly is, and that saves a request."""
    return version == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _checked(fs: Any, path: str, root: str, file: File, fetched: SmallFile | None) -> bytes | str:
    """The file's bytes, or why it is not what was listed. Takes one or two more requests."""
    url = join(root, file.path)
    if fetched is None:
        try:
            fetched = SmallFile(fs.cat_file(join(path, file.path)), "")
        except FileNotFoundError:
            return _REMOVED
        except Exception as error:
            raise OSError(f"{url}: cannot be fetched: {type(error).__name__}: {error}") from error
        if _is_as_listed(file, fetched):
            return bytes(fetched.data)
    problem = _problem_now(fs, path, file)
    if not problem and len(fetched.data) != file.size:
        raise OSError(f"{url}: {len(fetched.data)} bytes of {file.size} arrived")
    return problem or bytes(fetched.data)


def _problem_now(fs: Any, path: str, file: File) -> str:
    """Why a file is not what was listed, or ''."""
    try:
        target = join(path, file.path)
        now = shard_of(fs, target, fs.info(target) if not isinstance(fs, LocalFileSystem) else {})
    except (FileNotFoundError, NotADirectoryError):
        return _REMOVED
    return _difference(file, now.size, now.etag)


def _difference(file: File, size: int, version: str) -> str:
    if size == file.size and (not file.version or version == file.version):
        return ""
    return f"changed after it was listed ({file.size} bytes then, {size} now)"


def _local_difference(source: BinaryIO, file: File) -> str:
    facts = os.fstat(source.fileno())
    return _difference(file, facts.st_size, f"mtime {facts.st_mtime_ns}")
