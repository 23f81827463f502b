"""What lies behind paths, globs, brace ranges, folders and URLs: tars, tables, loose pictures."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import braceexpand
from fsspec.implementations.local import LocalFileSystem

from ..stores.filesystems import StorageError, normal_path, open_filesystem, storage_errors
from ..stores.passing import may_pass
from ..stores.urls import refuse_secrets, without_query, without_secrets
from .base import AUTOMATIC, GZIP, PARQUET, VERSION_TAGS, Columns, Shard, shard_of
from .folder import File, Folder, join, left_out, parts_of, samples_in
from .kinds import InputFormat, Searched, SortedOut, is_table, is_tar
from .parquet_rows import without_pictures
from .samples import is_picture
from .tar_members import BLOCK, looks_like_tar

LISTED_TOGETHER = 100  # URLs in one folder: from here on, listing it takes fewer requests
ASKED_TOGETHER = 32
LOOKED_INTO = 8  # shards whose first bytes are read before a job begins


@dataclass
class Inputs:
    """What was found: shards by URL, folders of loose files, and notes on what is left out."""

    shards: list[Shard]
    folders: list[Folder]
    notes: list[str]

    def as_shards(self) -> list[Shard]:
        """All of them by URL; loose pictures are parts of their folders as these are now."""
        parts = [part for folder in self.folders for part in parts_of(folder)]
        return sorted([*self.shards, *parts], key=lambda shard: shard.url)

    def lines(self) -> list[str]:
        """What a job is going to do with them."""
        tables = sum(map(is_table, (shard.url for shard in self.shards)))
        counts = [(len(self.shards) - tables, "tar"), (tables, "Parquet file")]
        told = [f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts if count]
        for folder in self.folders:
            samples, _ = samples_in(folder.files)
            told.append(f"{len(samples):,} pictures in the folder {folder.root}")
        return [f"input: {'; '.join(told)}", *self.notes]


def expand_inputs(
    patterns: Sequence[str],
    options: Mapping[str, Any] | None = None,
    wanted: InputFormat | None = None,
) -> list[Shard]:
    """The shards behind paths, globs, brace ranges, folders and URLs, sorted by URL.

    Loose pictures are parts of their folders as these are now. Raises what ``find_inputs`` raises.
    """
    return find_inputs(patterns, options, wanted).as_shards()


def find_inputs(
    patterns: Sequence[str],
    options: Mapping[str, Any] | None = None,
    wanted: InputFormat | None = None,
    columns: Columns = AUTOMATIC,
) -> Inputs:
    """All that paths, globs, brace ranges, folders and URLs lead to.

    A folder, a glob and many URLs in one folder each take one listing; other URLs take one request
    each, several at once. Links are followed, and a local file that has several names is one shard.
    Hidden files and folders are not searched for. ``options`` are fsspec's storage options.

    Args:
        wanted: the kind of input to take where there are several; None refuses such a mixture.
        columns: of Parquet files.

    Raises StorageError for an input that matches nothing, cannot be listed, holds several kinds, or
    is none that can be read, SecretInURLError for one with a secret in it.
    """
    refuse_secrets(*patterns)
    urls = dict.fromkeys(
        _without_fragment(url) for pattern in patterns for url in _expand_braces(pattern)
    )
    folders: dict[str, list[_Input]] = {}
    pictures = {url.rpartition(".")[0] for url in urls if is_picture(url)}
    for found in _locate(urls, options):
        folders.setdefault(found.folder, []).append(found)
    shards: dict[str, Shard] = {}
    loose = _Loose()
    missing: list[str] = []
    notes: list[str] = []

    def take(fs: Any, there: _Found) -> None:
        beside = not there.searched and there.url.rpartition(".")[0] in pictures
        beside = beside and not (is_tar(there.url) or is_table(there.url))
        kinds = SortedOut(there.url, there.entries, there.searched, "files" if beside else wanted)
        looked = there.searched and wanted in (None, "parquet")
        kinds.choose(without_pictures(fs, kinds.tables, columns) if looked else {})
        notes.append(kinds.note)
        for shard in _shards(fs, {**kinds.tars, **kinds.tables}):
            shards[shard.url] = shard
        loose.add(fs, there.root, _shards(fs, kinds.loose), there.searched == "folder")

    for inputs in folders.values():
        fs = inputs[0].fs
        fs.invalidate_cache()
        listed, at = _list_once(inputs), {one.path: one.url for one in inputs}
        for path, entry in listed.items():
            take(fs, _Found(at[path], {path: entry}, path.rpartition("/")[0], ""))
        rest = [one for one in inputs if one.path not in listed]
        for one, found_there in zip(rest, _each(fs, _look, rest), strict=True):
            if found_there is None:
                missing.append(one.url)
            else:
                take(fs, found_there)
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        count = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise StorageError(
            f"{', '.join(missing[:5])}{more}: there is no such file, folder or object{count}"
        )
    single = _once([shards[url] for url in sorted(shards)])
    _refuse_foreign(single, options)
    searched = loose.folders()
    notes += [left_out(one.root, samples_in(one.files)[1]) for one in searched]
    return Inputs(single, searched, [note for note in notes if note])


class _Loose:
    """Loose files by the folders that they were found from; no file twice."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, File]] = {}
        self._whole: set[str] = set()

    def add(self, fs: Any, folder: str, files: Sequence[Shard], whole: bool) -> None:
        """Files below a folder; ``whole`` if they are all that there is."""
        if not files:
            return
        is_local = isinstance(fs, LocalFileSystem)
        spelled = folder if is_local else str(fs.unstrip_protocol(folder))
        root = os.path.realpath(folder) if is_local else spelled
        start = len(spelled.rstrip("/")) + 1
        below = self._files.setdefault(root, {})
        for one in files:
            file = File(one.url[start:], one.size, one.etag)
            if any(step.startswith(".") for step in file.path.split("/")):
                raise StorageError(f"{one.url}: a hidden file: give its folder, or rename it")
            below[join(root, file.path)] = file
        if whole:
            self._whole.add(root)

    def folders(self) -> list[Folder]:
        """The folders, the outer ones first."""
        seen: set[str] = set()
        found = []
        for root, files in sorted(self._files.items()):
            new = [file for url, file in files.items() if url not in seen]
            seen.update(files)
            if new:
                found.append(Folder(root, tuple(sorted(new)), root in self._whole))
        return found


def _expand_braces(pattern: str) -> Iterable[str]:
    """What a pattern with braces stands for: the file of this very name, or else the range."""
    if "{" not in pattern or os.path.exists(pattern):
        return [pattern]
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise StorageError(
            f"{pattern}: its braces do not match, and there is no file of this name; "
            "write a range as a-{00..31}.tar"
        ) from error


def _once(shards: Sequence[Shard]) -> list[Shard]:
    """The shards without further names of the same local file. Its own name goes before links."""
    names: dict[str, Shard] = {}
    for shard in shards:
        own = file_of(shard.url)
        if own == shard.url or own not in names:
            names[own] = shard
    return sorted(names.values(), key=lambda shard: shard.url)


def file_of(url: str) -> str:
    """What is the same for all spellings of a local path, links included. URLs stay as they are."""
    return url if "://" in url else os.path.realpath(normal_path(url))


def _refuse_foreign(shards: Sequence[Shard], options: Mapping[str, Any] | None) -> None:
    """Raise StorageError if what was given is not tars at all, before a job begins.

    These are local files of other names that are no tars; and shards of which the first few all are
    none. A single damaged tar among others is for the job to report.
    """
    named = [shard for shard in shards if "://" not in shard.url and not is_tar(shard.url)]
    wrong = [problem for shard in named if (problem := _foreign(shard, options))]
    for shard in shards[:LOOKED_INTO] if not wrong else ():
        if not (problem := _foreign(shard, options)):
            return
        wrong.append(problem)
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise StorageError(f"not a tar: {'; '.join(wrong[:5])}{more}")


def _foreign(shard: Shard, options: Mapping[str, Any] | None) -> str:
    """What a file begins with that cannot be a tar, or ''. Files that cannot be read pass."""
    if shard.url.startswith(("http://", "https://")):
        return ""  # a server may answer with the whole file
    fs, path = open_filesystem(shard.url, options)
    try:
        begin = fs.cat_file(path, start=0, end=BLOCK)
    except Exception:
        return ""
    if begin.startswith((GZIP, PARQUET)) or looks_like_tar(begin):
        return ""
    return f"{shard.url} (begins with {begin[:16]!r})" if begin else f"{shard.url} (is empty)"


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


@dataclass(frozen=True)
class _Found:
    """The visible files behind an input, by path, and the folder that their names begin from.

    ``searched`` is "" where the input is a file itself, otherwise "folder" or "glob".
    """

    url: str
    entries: dict[str, dict[str, Any]]
    root: str
    searched: Searched


def _look(one: _Input) -> _Found | None:
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
            return _Found(one.url, {path: info}, path.rpartition("/")[0], "")
        if info["type"] == "other":
            raise StorageError(f"{one.url}: a pipe or a device, and no file: inputs are read twice")
        if info["type"] == "directory":
            return _Found(one.url, _search(fs, path), path, "folder")
        if any(character in without_query(one.url) for character in "*?["):
            found = {}
            for name, entry in fs.glob(path, detail=True).items():
                if _is_hidden(name, path):
                    continue
                if entry["type"] == "file":
                    found[name] = entry
                elif "**" not in path:  # which has come to its files as well
                    found |= _search(fs, name)
            before_glob = re.split(r"[*?\[]", path, maxsplit=1)[0]
            return _Found(one.url, found, before_glob.rpartition("/")[0], "glob")
        return None


def _search(fs: Any, folder: str) -> dict[str, dict[str, Any]]:
    """The visible files in a folder and the folders in it.

    Raises StorageError for the root of a store.
    """
    if folder.strip("/") == "":
        raise StorageError("the root of a file system is not searched: is a variable unset?")
    found = fs.find(folder, detail=True)
    return {name: entry for name, entry in found.items() if not _is_hidden(name, folder)}


def _is_hidden(name: str, searched: str) -> bool:
    """Whether a part of ``name`` is hidden (``._x.tar``) and the searched path does not ask so."""
    asked = [part for part in searched.split("/") if part.startswith(".")]
    hidden = [part for part in name.split("/") if part.startswith(".")]
    return any(not any(fnmatchcase(part, one) for one in asked) for part in hidden)


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
    return [shard_of(fs, path, asked.get(path, entry)) for path, entry in entries.items()]


def _each(fs: Any, ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``ask`` for every item, in threads if the file system can."""
    if len(items) < 2 or not fs.async_impl:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(min(ASKED_TOGETHER, len(items))) as pool:
        return list(pool.map(ask, items))
