"""Which files of folders belong to which shard: lists that are published once, in the dataset.

A list is ``{"root": <the folder's URL>, "parts": [[[path, size, version], ...], ...]}``; paths are
relative to the folder. Lists are numbered, and a job writes one only after it has read all before
it. So a file comes into one part, once, whatever is added to its folder and however many jobs run.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codec.errors import StrataError

from ..sources.base import Shard, is_part, root_of
from ..sources.folder import (
    File,
    Folder,
    first_few,
    join,
    part_of,
    samples_in,
    split_into_parts,
)
from ..stores.store import StorageError, Store
from ..stores.urls import refuse_secrets
from .layout import PARTS, part_list_number, part_list_path
from .plan import PlanMismatchError
from .untrusted import parse_json

MAX_LIST_BYTES = 64 << 20
FILES_IN_LIST = 200_000  # a list is parsed as a whole


@dataclass(frozen=True)
class PartList:
    """A list of parts: its number, the folder, and the files of each part."""

    number: int
    root: str
    parts: tuple[tuple[File, ...], ...]

    def shards(self) -> Iterator[Shard]:
        for place, files in enumerate(self.parts, 1):
            yield part_of(self.root, files, self.number, place)


def read_part_lists(store: Store, after: int = 0) -> list[PartList]:
    """The lists with higher numbers than ``after``, in order.

    Raises StorageError for one that is damaged or names a file outside of its folder.
    """
    numbers = sorted(number for name in store.sizes(PARTS) if (number := part_list_number(name)))
    new = [number for number in numbers if number > after]
    if numbers and numbers != list(range(1, numbers[-1] + 1)):
        lost = next(n for n, number in enumerate(numbers, 1) if n != number)
        raise _damaged(store, lost, "is missing")
    found = store.read_many(map(part_list_path, new), MAX_LIST_BYTES)
    return [_parse(store, number, data) for number, (_, data) in zip(new, found, strict=True)]


def _parse(store: Store, number: int, data: bytes) -> PartList:
    try:
        told = parse_json(data)
        root, parts = told["root"], told["parts"]
        if not isinstance(root, str) or not root:
            raise ValueError("names no folder")
        refuse_secrets(root)
        return PartList(number, root, tuple(tuple(map(_file, part)) for part in parts))
    except (ValueError, TypeError, KeyError, StrataError) as error:
        raise _damaged(store, number, f"is damaged ({error})") from error


def _file(told: Any) -> File:
    """A file of a list. Raises ValueError if it could lie outside of its folder."""
    path, size, version = told
    if not (isinstance(path, str) and isinstance(version, str)) or type(size) is not int:
        raise ValueError("a file without path, size and version")
    hidden = any(step.startswith(".") for step in path.split("/"))  # .. too
    if not path or path.startswith("/") or hidden or "\0" in path:
        raise ValueError(f"names the file {path!r:.200}")
    if size < 0:
        raise ValueError(f"{path!r:.200} has {size} bytes")
    return File(path, size, version)


def _damaged(store: Store, number: int, problem: str) -> StorageError:
    return StorageError(
        f"{store.url}/{part_list_path(number)}: {problem}: put it back, because without it files "
        "would be compressed twice; or begin a new output"
    )


def unlisted(lists: Sequence[PartList], sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """The URLs of parts that data files were made of and no list has."""
    listed = {shard.etag for one in lists for shard in one.shards()}
    return [one["url"] for one in sources if is_part(one["url"]) and one["etag"] not in listed]


def part_in(store: Store, url: str, version: str) -> Shard | None:
    """The part with this URL and version, if a list has it."""
    for one in read_part_lists(store):
        for shard in one.shards() if one.root == root_of(url) else ():
            if shard.etag == version:
                return shard
    return None


class Planner:
    """Gives the files of folders that no list names yet to parts.

    ``notes`` say what is left out and what is gone.
    """

    def __init__(self, store: Store, folders: Sequence[Folder]) -> None:
        self.store, self.folders = store, folders
        self.notes: list[str] = []
        self._lists: list[PartList] = []
        self._known: dict[str, File] = {}  # what lists name, by URL
        self._keys: set[str] = set()

    def shards(self, recorded: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
        """All parts of the folders, after new ones were published.

        ``recorded`` are commit records. Raises PlanMismatchError for files that changed since they
        were listed, StorageError for lists that are damaged or lost.
        """
        self._read_more()
        self._check_lists(recorded)
        for folder in self.folders:
            self._check_files(folder)
            while new := self._new(folder):
                self._publish(folder.root, new)
        asked = {folder.url(file.path) for folder in self.folders for file in folder.files}
        whole = {folder.root for folder in self.folders if folder.whole}
        return [
            shard
            for one in self._lists
            for files, shard in zip(one.parts, one.shards(), strict=True)
            if one.root in whole or any(join(one.root, file.path) in asked for file in files)
        ]

    def _read_more(self) -> None:
        new = read_part_lists(self.store, self._lists[-1].number if self._lists else 0)
        self._lists += new
        for one in new:
            for file in (file for part in one.parts for file in part):
                self._known[join(one.root, file.path)] = file
                self._keys.add(join(one.root, file.key))

    def _check_lists(self, recorded: Mapping[str, Mapping[str, Any]]) -> None:
        if lost := unlisted(self._lists, (record["source"] for record in recorded.values())):
            raise StorageError(
                f"{self.store.url}/{PARTS}: no list names the files of {lost[0]}, which is "
                "compressed already: put the lists back, because without them files would be "
                "compressed twice; or begin a new output"
            )

    def _check_files(self, folder: Folder) -> None:
        changed, here = [], set()
        for file in folder.files:
            url = folder.url(file.path)
            here.add(url)
            known = self._known.get(url)
            if known and (known.size, known.version) != (file.size, file.version):
                changed.append(f"{url} ({known.size} bytes then, {file.size} now)")
        if changed:
            raise PlanMismatchError(
                "inputs have changed since they were listed for compressing: "
                f"{first_few(changed)}. Put them back as they were, or give what has changed "
                "another name"
            )
        if folder.whole:
            start = join(folder.root, "")
            gone = [url for url in self._known if url.startswith(start) and url not in here]
            if gone:
                self.notes.append(
                    f"warning: {len(gone):,} of the files that were listed are gone since, and "
                    f"stay in the archive as far as they were compressed: {first_few(gone)}"
                )

    def _new(self, folder: Folder) -> list[list[File]]:
        """The parts that a folder's new files make, as many as go into a list."""
        files = [file for file in folder.files if folder.url(file.path) not in self._known]
        samples, _ = samples_in(file for file in files if file.key)
        late = [
            folder.url(file.path)
            for file in files
            if file.key and folder.url(file.key) in self._keys
        ]
        if late:
            note = (
                f"warning: {len(late):,} files left out, because they came after the other files "
                f"of their samples were listed: {first_few(late)}"
            )
            self.notes += [note] if note not in self.notes else []
        new = {key: one for key, one in samples.items() if folder.url(key) not in self._keys}
        parts, count = [], 0
        for part in split_into_parts(new):
            parts.append(part)
            count += len(part)
            if count >= FILES_IN_LIST:
                break
        return parts

    def _publish(self, root: str, parts: Iterable[list[File]]) -> None:
        """Publish a list under the next number, or read the one that another job has published."""
        number = self._lists[-1].number + 1 if self._lists else 1
        told = json.dumps({"root": root, "parts": list(parts)}, separators=(",", ":"))
        self.store.create(part_list_path(number), told.encode())
        self._read_more()
        if not self._lists or self._lists[-1].number < number:
            raise _damaged(self.store, number, "was written and is not there")
