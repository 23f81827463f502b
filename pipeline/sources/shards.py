"""Input shards: find them by URL, hold one as a local file, group it into WebDataset samples."""

import gzip
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
from fsspec.implementations.local import LocalFileSystem

from ..stores.filesystems import StorageError, download, open_filesystem, storage_errors
from ..stores.passing import may_pass
from ..stores.urls import SUFFIXES, refuse_secrets, without_query, without_secrets
from .tar_members import Member, ShardError, read_members

GZIP = b"\x1f\x8b"  # its first bytes
# webdataset's rule: the key is the path up to the first dot of the base name
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
IMAGE_FIELDS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"}
    | {"ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx", "avif", "heic", "heif", "jxl", "tga", "ico"}
)
# Names of version tags that listings and single look-ups have in common.
VERSION_TAGS = ("ETag", "etag", "md5Hash")
LISTED_TOGETHER = 100  # URLs in one folder: from here on, listing it takes fewer requests
ASKED_TOGETHER = 32
MAX_FIELD_BYTES = 1 << 29  # one row group must hold a whole row in memory


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
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
        return name.removesuffix(suffix)


@dataclass(frozen=True)
class Sample:
    """A sample of WebDataset: the members that share a key, in the tar's order.

    ``filtered`` says why WebDataset would skip it, ``problem`` why it cannot be trusted.
    """

    key: str
    fields: tuple[tuple[str, Member], ...]
    problem: str = ""
    filtered: str = ""

    @property
    def image_field(self) -> str | None:
        """The field to encode: the first whose name, or else whose extension, is a picture's."""
        names = [name for name, _ in self.fields]
        whole = (name for name in names if name.lower() in IMAGE_FIELDS)
        return next(whole, None) or next(filter(is_picture, names), None)


def is_picture(field: str) -> bool:
    """Whether a field's name, or its extension, is a picture's."""
    return field.lower().rsplit(".", 1)[-1] in IMAGE_FIELDS


def expand_inputs(patterns: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Shard]:
    """The shards behind paths, globs, brace ranges, folders and URLs, sorted by URL.

    A folder, a glob and many URLs in one folder each take one listing; other URLs take one request
    each, several at once. ``options`` are fsspec's storage options. Raises StorageError for an
    input that matches nothing or cannot be listed, SecretInURLError for one with a secret in it.
    """
    refuse_secrets(*patterns)
    urls = dict.fromkeys(
        _without_fragment(url)
        for pattern in patterns
        for url in (braceexpand.braceexpand(pattern) if "{" in pattern else [pattern])
    )
    folders: dict[str, list[_Input]] = {}
    for found in _locate(urls, options):
        folders.setdefault(found.folder, []).append(found)
    shards: dict[str, Shard] = {}
    missing: list[str] = []
    for inputs in folders.values():
        fs = inputs[0].fs
        fs.invalidate_cache()
        listed = _list_once(inputs)
        shards.update((shard.url, shard) for shard in _shards(fs, listed))
        rest = [one for one in inputs if one.path not in listed]
        for one, found_there in zip(rest, _each(fs, _look, rest), strict=True):
            if found_there is None:
                missing.append(one.url)
                continue
            shards.update((shard.url, shard) for shard in _shards(fs, found_there))
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        count = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise StorageError(
            f"{', '.join(missing[:5])}{more}: there is no such file, folder or object{count}"
        )
    return [shards[url] for url in sorted(shards)]


def _without_fragment(url: str) -> str:
    """An HTTP URL without its fragment, which is never sent to the server."""
    return url.partition("#")[0] if url.lower().startswith(("http://", "https://")) else url


@dataclass(frozen=True)
class _Input:
    """One URL of an input, and its folder, which others may share."""

    url: str
    folder: str
    fs: Any
    path: str


def _locate(urls: Iterable[str], options: Mapping[str, Any] | None) -> Iterator[_Input]:
    """The file system and path of each URL. Looks a file system up once per folder: it is slow."""
    opened: dict[str, tuple[Any, str]] = {}
    for url in urls:
        folder, _, name = url.rpartition("/")
        alone = "::" in url or without_query(url) != url  # a query may change the file system
        if name in ("", ".", "..") or not folder or folder.endswith("/") or alone:
            yield _Input(url, url, *open_filesystem(url, options))
            continue
        if folder not in opened:
            opened[folder] = open_filesystem(folder, options)
        fs, root = opened[folder]
        yield _Input(url, folder, fs, f"{root.rstrip('/')}/{name}")


def _list_once(inputs: Sequence[_Input]) -> dict[str, dict[str, Any]]:
    """The entries of many inputs by one listing of their folder, as far as it has them.

    A folder may refuse to be listed, or be no folder at all (HTTP).
    """
    fs, wanted = inputs[0].fs, {one.path for one in inputs}
    if len(wanted) < LISTED_TOGETHER or isinstance(fs, LocalFileSystem):
        return {}
    try:
        entries = fs.ls(inputs[0].path.rpartition("/")[0], detail=True)
    except Exception:
        return {}
    return {
        entry["name"]: entry
        for entry in entries
        if entry["name"] in wanted and entry["type"] == "file"
    }


def _look(one: _Input) -> dict[str, dict[str, Any]] | None:
    """The files behind one input, None where there is nothing. Raises StorageError."""
    fs, path = one.fs, one.path
    with storage_errors(one.url, "cannot be listed"):
        try:
            info = fs.info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            answer = error.__cause__  # fsspec says this of whatever a web server refuses
            if answer is not None and getattr(answer, "status", 404) not in (404, 410):
                message = f"{one.url}: cannot be read: {without_secrets(str(answer))}"
                raise StorageError(message, passing=may_pass(error)) from error
            info = {"type": "nothing"}
        if info["type"] == "file":
            return {path: info}
        if info["type"] == "directory":
            files = fs.find(path, detail=True)
            found = {name: entry for name, entry in files.items() if _is_tar(name)}
        elif any(character in without_query(one.url) for character in "*?["):
            files = fs.glob(path, detail=True)
            found = {name: entry for name, entry in files.items() if entry["type"] == "file"}
        else:
            return None
        if not found:
            raise StorageError(f"{one.url}: no tar shard matches ({', '.join(SUFFIXES)})")
        return found


def _is_tar(name: str) -> bool:
    return without_query(name).endswith(SUFFIXES)


def _shards(fs: Any, entries: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """The shards of a listing. Entries without size or version are looked up."""
    is_local = isinstance(fs, LocalFileSystem)
    unknown = [
        path
        for path, entry in entries.items()
        if not is_local and (entry.get("size") is None or not any(map(entry.get, VERSION_TAGS)))
    ]

    def ask(path: str) -> Mapping[str, Any]:
        with storage_errors(path, "cannot be read"):
            return dict(fs.info(path))

    asked = dict(zip(unknown, _each(fs, ask, unknown), strict=True))
    return [_shard(fs, path, asked.get(path, entry)) for path, entry in entries.items()]


def _shard(fs: Any, path: str, info: Mapping[str, Any]) -> Shard:
    """A file as a shard. ``info`` has one of VERSION_TAGS, or is the result of ``fs.info``."""
    size = info.get("size")
    if size is None:
        raise StorageError(f"{path}: its size is unknown, so a cut file would go unnoticed")
    if isinstance(fs, LocalFileSystem):
        return Shard(path, size, f"mtime {os.stat(path).st_mtime_ns}")
    tags = (*VERSION_TAGS, "LastModified", "mtime", "created")
    tag = next((str(info[name]) for name in tags if info.get(name)), "")
    url = fs.unstrip_protocol(path)
    refuse_secrets(url)  # a web page may list signed addresses
    return Shard(url, size, tag.strip('"'))


def _each(fs: Any, ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``ask`` for every item, in threads if the file system can."""
    if len(items) < 2 or not fs.async_impl:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(min(ASKED_TOGETHER, len(items))) as pool:
        return list(pool.map(ask, items))


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
    shard: Shard, scratch: Path, options: Mapping[str, Any] | None = None
) -> Iterator[ShardFile]:
    """Hold ``shard`` as a local file in ``scratch``; a local tar is read in place.

    Raises ShardError if the shard is damaged, StorageError if it has changed since it was listed,
    OSError if it could not be fetched whole.
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
        if _is_gzip(local, shard.url):
            fetched.append(scratch / "shard.tar")
            _gunzip(local, fetched[-1], shard.url)
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
        now = _shard(fs, path, fs.info(path))
    except FileNotFoundError as error:
        raise StorageError(f"{shard.url}: was removed after the job began") from error
    if (now.size, now.etag) != (shard.size, shard.etag):
        raise StorageError(
            f"{shard.url}: changed after the job began ({shard.size} bytes when it was listed, "
            f"{now.size} now): run the job again on a new output, or put the old file back"
        )


def _is_gzip(local: Path, url: str) -> bool:
    """Whether a file is gzip, by its name or its content."""
    if without_query(url).endswith((".gz", ".tgz")):
        return True
    with open(local, "rb") as file:
        return file.read(len(GZIP)) == GZIP


def _gunzip(source: Path, target: Path, url: str) -> None:
    try:
        with gzip.open(source, "rb") as packed, open(target, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShardError(f"{url}: damaged or cut gzip data: {error}") from error


def group_samples(members: Sequence[Member]) -> list[Sample]:
    """Group consecutive members by key, and mark samples that are filtered or have a problem."""
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
    """Why the sample cannot be trusted, or ''."""
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
