"""Finds the inputs: which shards and folders do paths, globs, brace ranges and URLs lead to?"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import braceexpand
from fsspec.implementations.local import LocalFileSystem

from ..stores.filesystems import StorageError, normal_path, open_filesystem, storage_errors
from ..stores.passing import may_pass
from ..stores.threads import ask_in_threads
from ..stores.urls import refuse_secrets, without_query, without_secrets
from .base import AUTOMATIC, GZIP, PARQUET, VERSION_TAGS, Columns, Shard, shard_of
from .folder import File, Folder, join, left_out_note, parts_of, samples_in
from .kinds import FilesByKind, InputFormat, Searched, is_table, is_tar
from .parquet_rows import without_pictures
from .samples import is_picture
from .tar_members import BLOCK, looks_like_tar

LISTED_TOGETHER = 100  # from so many URLs in one folder on, a listing takes fewer requests
LOOKED_INTO = 8  # shards whose first bytes are read before a job starts


@dataclass
class Inputs:
    """What was found: shards by URL, folders of loose files, and notes on what is left out."""

    shards: list[Shard]
    folders: list[Folder]
    notes: list[str]

    def as_shards(self) -> list[Shard]:
        """All shards, sorted by URL. Loose pictures become parts of their folders."""
        parts = [part for folder in self.folders for part in parts_of(folder)]
        return sorted([*self.shards, *parts], key=lambda shard: shard.url)

    def lines(self) -> list[str]:
        """What was found, in words for people."""
        tables = sum(map(is_table, (shard.url for shard in self.shards)))
        counts = [(len(self.shards) - tables, "tar"), (tables, "Parquet file")]
        words = [f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts if count]
        for folder in self.folders:
            samples, _ = samples_in(folder.files)
            words.append(f"{len(samples):,} pictures in the folder {folder.root}")
        return [f"input: {'; '.join(words)}", *self.notes]


def expand_inputs(
    patterns: Sequence[str],
    options: Mapping[str, Any] | None = None,
    wanted: InputFormat | None = None,
) -> list[Shard]:
    """``find_inputs`` as shards, sorted by URL. Loose pictures become parts of their folders."""
    return find_inputs(patterns, options, wanted).as_shards()


def find_inputs(
    patterns: Sequence[str],
    options: Mapping[str, Any] | None = None,
    wanted: InputFormat | None = None,
    columns: Columns = AUTOMATIC,
) -> Inputs:
    """All shards and folders that paths, globs, brace ranges, folders and URLs lead to.

    A folder, a glob and many URLs in one folder each take one listing; other URLs take one request
    each, several at once. Links are followed, and a local file with several names is one shard.
    Hidden files and folders are left out, unless a pattern names them.

    Args:
        options: fsspec's storage options.
        wanted: the kind of input to take from a folder with several; None refuses such a folder.
        columns: of Parquet files.

    Raises StorageError for an input that matches nothing, cannot be listed, has several kinds, or
    has no kind that can be read; SecretInURLError for a URL with a secret in it.
    """
    refuse_secrets(*patterns)
    urls = expand_braces(patterns)
    folders: dict[str, list[_Input]] = {}
    pictures = {url.rpartition(".")[0] for url in urls if is_picture(url)}
    for located in _locate(urls, options):
        folders.setdefault(located.folder, []).append(located)
    shards: dict[str, Shard] = {}
    loose = _Loose()
    missing: list[str] = []
    notes: list[str] = []

    def take(fs: Any, found: _Found) -> None:
        is_side_field = (
            not (found.searched or is_tar(found.url) or is_table(found.url))
            and found.url.rpartition(".")[0] in pictures
        )
        kind = "files" if is_side_field else wanted
        files = FilesByKind(found.url, found.entries, found.searched, kind)
        look_into = found.searched and wanted in (None, "parquet")
        files.choose(without_pictures(fs, files.tables, columns) if look_into else {})
        notes.append(files.note)
        if files.loose and found.hidden:
            verb = "is" if found.hidden == 1 else "are"
            notes.append(
                f"{found.url}: {found.hidden:,} of its files {verb} left out as hidden: a name, or "
                "a folder's name, begins with a dot"
            )
        for shard in _shards(fs, {**files.tars, **files.tables}):
            shards[shard.url] = shard
        loose.add(fs, found.root, _shards(fs, files.loose), found.searched == "folder")

    for inputs in folders.values():
        fs = inputs[0].fs
        fs.invalidate_cache()
        listed, urls_by_path = _list_once(inputs), {one.path: one.url for one in inputs}
        for path, entry in listed.items():
            take(fs, _Found(urls_by_path[path], {path: entry}, path.rpartition("/")[0], ""))
        rest = [one for one in inputs if one.path not in listed]
        for one, found in zip(rest, ask_in_threads(fs, _look, rest), strict=True):
            if found is None:
                missing.append(one.url)
            else:
                take(fs, found)
    if missing:
        more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
        count = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise StorageError(
            f"{', '.join(missing[:5])}{more}: there is no such file, folder or object{count}"
        )
    single = _without_other_names([shards[url] for url in sorted(shards)])
    _refuse_foreign(single, options)
    searched = loose.folders()
    notes += [left_out_note(one.root, samples_in(one.files)[1]) for one in searched]
    return Inputs(single, searched, [note for note in notes if note])


class _Loose:
    """Loose files by the folder in which they were found; no file twice."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, File]] = {}
        self._whole: set[str] = set()

    def add(self, fs: Any, folder: str, files: Sequence[Shard], whole: bool) -> None:
        """Add files of a folder; ``whole`` if they are all of its files."""
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
        """The folders. A file that lies in two of them belongs to the outer one."""
        seen: set[str] = set()
        found = []
        for root, files in sorted(self._files.items()):
            new = [file for url, file in files.items() if url not in seen]
            seen.update(files)
            if new:
                found.append(Folder(root, tuple(sorted(new)), root in self._whole))
        return found


def expand_braces(patterns: Iterable[str]) -> dict[str, None]:
    """The URLs, globs among them, that patterns with braces stand for, in order."""
    return dict.fromkeys(
        _without_fragment(url) for pattern in patterns for url in _expand_braces(pattern)
    )


def _expand_braces(pattern: str) -> Iterable[str]:
    """The URLs that a pattern with braces stands for; itself if a file has exactly this name."""
    if "{" not in pattern or os.path.exists(pattern):
        return [pattern]
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise StorageError(
            f"{pattern}: its braces do not match, and no file has this name; "
            "write a range as a-{00..31}.tar"
        ) from error


def _without_other_names(shards: Sequence[Shard]) -> list[Shard]:
    """One shard for each local file that has several names: by its own name rather than a link."""
    names: dict[str, Shard] = {}
    for shard in shards:
        own = file_of(shard.url)
        if own == shard.url or own not in names:
            names[own] = shard
    return sorted(names.values(), key=lambda shard: shard.url)


def file_of(url: str) -> str:
    """The real path of a local file, whatever its spelling and links. URLs stay as they are."""
    return url if "://" in url else os.path.realpath(normal_path(url))


def _refuse_foreign(shards: Sequence[Shard], options: Mapping[str, Any] | None) -> None:
    """Raise StorageError before a job starts if its inputs are no shards at all.

    That is so if a local file has another suffix and is no tar, or if the first few shards are all
    none. A single damaged tar among others is reported by the job.
    """
    unusual = [shard for shard in shards if "://" not in shard.url and not is_tar(shard.url)]
    wrong = [problem for shard in unusual if (problem := _foreign(shard, options))]
    for shard in shards[:LOOKED_INTO] if not wrong else ():
        if not (problem := _foreign(shard, options)):
            return
        wrong.append(problem)
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise StorageError(f"not a tar: {'; '.join(wrong[:5])}{more}")


def _foreign(shard: Shard, options: Mapping[str, Any] | None) -> str:
    """How a file that cannot be a tar begins; '' for others, and for those that cannot be read."""
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
    """One URL of the inputs, its folder, and its path in the file system."""

    url: str
    folder: str
    fs: Any
    path: str


def _locate(urls: Iterable[str], options: Mapping[str, Any] | None) -> Iterator[_Input]:
    """The file system and path of each URL. Opens it once per folder, because that is slow."""
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

    Empty if the folder cannot be listed, or is no folder at all (HTTP).
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
    """The visible files of an input by path, and the folder to which their names are relative.

    ``hidden`` counts the files of a searched folder that are not among them.
    """

    url: str
    entries: dict[str, dict[str, Any]]
    root: str
    searched: Searched
    hidden: int = 0


def _look(one: _Input) -> _Found | None:
    """The files behind one input, None where there is nothing. Raises StorageError."""
    fs, path = one.fs, one.path
    with storage_errors(one.url, "cannot be listed"):
        try:
            info = fs.info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            answer = error.__cause__  # fsspec raises it for everything that a web server refuses
            if answer is not None and getattr(answer, "status", 404) not in (404, 410):
                message = f"{one.url}: cannot be read: {without_secrets(str(answer))}"
                raise StorageError(message, passing=may_pass(error)) from error
            info = {"type": "nothing"}
        if info["type"] == "file":
            return _Found(one.url, {path: info}, path.rpartition("/")[0], "")
        if info["type"] == "other":
            raise StorageError(f"{one.url}: is a pipe or a device, but inputs are read twice")
        if info["type"] == "directory":
            visible, hidden = _search(fs, path)
            return _Found(one.url, visible, path, "folder", hidden)
        if any(character in without_query(one.url) for character in "*?["):
            found = {}
            for name, entry in fs.glob(path, detail=True).items():
                if _is_hidden(name, path):
                    continue
                if entry["type"] == "file":
                    found[name] = entry
                elif "**" not in path:  # that matches the folder's files as well
                    found |= _search(fs, name)[0]
            before_glob = re.split(r"[*?\[]", path, maxsplit=1)[0]
            return _Found(one.url, found, before_glob.rpartition("/")[0], "glob")
        return None


def _search(fs: Any, folder: str) -> tuple[dict[str, dict[str, Any]], int]:
    """The visible files in a folder and in the folders below it, and the number of hidden ones.

    Raises StorageError for the root of a store.
    """
    if folder.strip("/") == "":
        raise StorageError("the root of a file system is not searched: is a variable not set?")
    found = fs.find(folder, detail=True)
    visible = {name: entry for name, entry in found.items() if not _is_hidden(name, folder)}
    return visible, len(found) - len(visible)


def _is_hidden(name: str, searched: str) -> bool:
    """Whether ``name`` has a hidden part (``._x.tar``) that the searched path does not name."""
    asked = [part for part in searched.split("/") if part.startswith(".")]
    hidden = [part for part in name.split("/") if part.startswith(".")]
    return any(not any(fnmatchcase(part, one) for one in asked) for part in hidden)


def _shards(fs: Any, entries: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """The shards of a listing. The store is asked where an entry has no size or version."""
    is_local = isinstance(fs, LocalFileSystem)
    unknown = [
        path
        for path, entry in entries.items()
        if not is_local and (entry.get("size") is None or not any(map(entry.get, VERSION_TAGS)))
    ]

    def ask(path: str) -> Mapping[str, Any]:
        with storage_errors(path, "cannot be read"):
            return dict(fs.info(path))

    asked = dict(zip(unknown, ask_in_threads(fs, ask, unknown), strict=True))
    return [shard_of(fs, path, asked.get(path, entry)) for path, entry in entries.items()]
