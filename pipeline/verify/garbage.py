"""Finds and removes garbage: files that killed and repeated jobs leave in a dataset's folder.

Only files with Strata's names can be garbage: data files and their indexes, maps of keys, commit
records, saved rows, temporary files of local writes, and unfinished uploads to S3. Files that the
newest manifest lists are never garbage.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..dataset.layout import (
    COMMITS,
    DATA,
    DELETED,
    INDEX,
    KEY_MAP_NAME,
    KEYS,
    MANIFEST_PART,
    MANIFESTS,
    MODELS,
    PARTS,
    PLAN_NAME,
    SAVED,
    SHARD_NAME,
    SUFFIX,
    WRITTEN,
    data_path,
    generation_name,
    index_path,
    manifest_name,
    manifest_number,
    paths_in,
    record_path,
    saved_rows,
    split_generation,
)
from ..dataset.manifest import DataFiles, latest_manifest, open_manifest, part_paths
from ..reader.dataset import DatasetError
from ..reader.key_map import key_map_path
from ..stores.filesystems import is_s3, storage_errors
from ..stores.store import Store

_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # temporary files of ``stores.parts``


@dataclass(frozen=True)
class Garbage:
    """A file to remove: its path in the dataset, its size in bytes, and why it is not needed.

    It has been garbage since ``modified`` or earlier, in seconds of POSIX time by the store's
    clock. ``upload`` is S3's id of an unfinished upload, otherwise empty.
    """

    path: str
    bytes: int
    reason: str
    modified: float
    upload: str = ""


def find_garbage(store: Store, older_than: float) -> list[Garbage]:
    """All garbage older than ``older_than`` seconds. Younger files may belong to a running job.

    ``older_than`` must be longer than the longest attempt of a job, and longer than readers keep a
    dataset open. Raises DatasetError if there is no dataset, StorageError if the store cannot be
    listed.
    """
    if not store.exists(PLAN_NAME):
        raise DatasetError(
            f"{store.url}: there is no archive here ({PLAN_NAME} is missing), so nothing in it is "
            "garbage"
        )
    with storage_errors(store.url, "cannot be searched for garbage"):
        limit = store.now() - older_than
        kinds = (_unlisted, _manifest_parts, _saved, _parts, _uploads)
        return [item for kind in kinds for item in kind(store) if item.modified <= limit]


def remove_garbage(store: Store, items: Sequence[Garbage]) -> None:
    """Remove what ``find_garbage`` found, except for files that are needed since.

    Raises StorageError for a file that cannot be removed.
    """
    lists = any(item.reason == _NO_MANIFEST for item in items)
    named = _named_parts(store) if lists else set()
    if named is None:  # a damaged manifest may name any of them
        items = [item for item in items if item.reason != _NO_MANIFEST]
    items = [item for item in items if item.path not in (named or ())]
    for item in items:
        with storage_errors(f"{store.url}/{item.path}", "cannot be removed"):
            if item.upload:
                _abort(store, item)
            elif item.reason != _NO_RECORD or not store.exists(record_path(_name_of(item.path))):
                store.remove(item.path)


_NO_RECORD = "no commit record"
_NO_MANIFEST = "no manifest names it"
_SUPERSEDED = "replaced by a newer file"
_TEMPORARY = "left over from a write"
_UNFINISHED = "rows of a shard that nobody finished"
_UPLOAD = "an upload that never ended"


def _unlisted(store: Store) -> Iterator[Garbage]:
    """Files that neither a record nor the newest manifest needs.

    These are data files and indexes whose job was killed before it wrote their record; earlier
    generations than the manifest lists, each with its record first; and maps of keys of other
    files. A reader that opened the dataset with an earlier manifest may still use files that the
    newest manifest replaces, so their age counts from the newest manifest.
    """
    published = paths_in(store, INDEX, DATA)
    maps = paths_in(store, KEYS)
    recorded = paths_in(store, COMMITS)  # listed last, because a job writes records last
    number = latest_manifest(store)
    files, since = DataFiles.of(()), 0.0
    if number:
        files = open_manifest(store, number).files
        since = store.modified(manifest_name(number))
    listed = {file.name for file in files}
    for path, size in published.items():
        name = _name_of(path)
        ours = path.endswith(SUFFIX) and SHARD_NAME.fullmatch(name)
        if ours and record_path(name) not in recorded and name not in listed:
            yield Garbage(path, size, _NO_RECORD, store.modified(path))
    for base, newest in map(split_generation, listed):
        for generation in range(newest):
            name = generation_name(base, generation)
            if record_path(name) in recorded:
                for path in (record_path(name), index_path(name), data_path(name)):
                    known = recorded.get(path, published.get(path))
                    if known is not None:  # a file without a record was yielded above
                        yield Garbage(path, known, _SUPERSEDED, since)
    if maps and number:
        current = key_map_path(files)
        for path, size in maps.items():
            if KEY_MAP_NAME.fullmatch(path.removeprefix(f"{KEYS}/")) and path != current:
                yield Garbage(path, size, _SUPERSEDED, max(since, store.modified(path)))


def _manifest_parts(store: Store) -> Iterator[Garbage]:
    """Parts that no manifest names: of a job that died, or of manifests that are gone."""
    parts = paths_in(store, MANIFESTS)
    named = _named_parts(store) if parts else None
    if named is None:
        return
    for path, size in parts.items():
        if MANIFEST_PART.fullmatch(path) and path not in named:
            yield Garbage(path, size, _NO_MANIFEST, store.modified(path))


def _named_parts(store: Store) -> set[str] | None:
    """The parts that manifests name; None if one of these is damaged, so that it is not known."""
    try:
        numbers = filter(None, map(manifest_number, store.sizes()))
        return {path for number in numbers for path in part_paths(store, number)}
    except DatasetError:
        return None


def _saved(store: Store) -> Iterator[Garbage]:
    """Rows that were saved while a shard was encoded. The commit of the shard removes them."""
    for file, size in store.sizes(SAVED).items():
        if saved_rows(file)[0]:
            path = f"{SAVED}/{file}"
            yield Garbage(path, size, _UNFINISHED, store.modified(path))


def _parts(store: Store) -> Iterator[Garbage]:
    """Temporary files of killed local writes."""
    if not store.is_local:
        return
    models = store.fs.glob(store.path(f"{MODELS}/*/"))
    folders = [path.rstrip("/").removeprefix(store.root).lstrip("/") for path in models]
    for folder in ("", DATA, INDEX, KEYS, COMMITS, DELETED, SAVED, PARTS, MANIFESTS, *folders):
        for file, size in store.sizes(folder).items():
            if _PART.fullmatch(file):
                path = f"{folder}/{file}".lstrip("/")
                yield Garbage(path, size, _TEMPORARY, store.modified(path))


def _uploads(store: Store) -> Iterator[Garbage]:
    """Unfinished multipart uploads. Listings do not show them, but they cost money."""
    if not is_s3(store.fs):
        return
    bucket, key, _ = store.fs.split_path(store.root)
    prefix = f"{key}/" if key else ""
    markers: dict[str, str] = {}
    while True:
        page = store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **markers)
        for upload in page.get("Uploads", []):
            path = upload["Key"].removeprefix(prefix)
            if WRITTEN.fullmatch(path):
                size = _uploaded_bytes(store, bucket, upload)
                when = upload["Initiated"].timestamp()
                yield Garbage(path, size, _UPLOAD, when, upload["UploadId"])
        if not page.get("IsTruncated"):
            return
        markers = {
            "KeyMarker": page["NextKeyMarker"],
            "UploadIdMarker": page["NextUploadIdMarker"],
        }


def _uploaded_bytes(store: Store, bucket: str, upload: Mapping[str, Any]) -> int:
    total = 0
    marker: dict[str, Any] = {}
    which = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    while True:
        try:
            page = store.fs.call_s3("list_parts", **which, **marker)
        except FileNotFoundError:  # it ended after it was listed
            return total
        total += sum(part["Size"] for part in page.get("Parts", []))
        if not page.get("IsTruncated"):
            return total
        marker = {"PartNumberMarker": page["NextPartNumberMarker"]}


def _abort(store: Store, item: Garbage) -> None:
    bucket, key, _ = store.fs.split_path(store.path(item.path))
    try:
        store.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=item.upload)
    except FileNotFoundError:
        return  # ended by itself


def _name_of(path: str) -> str:
    """The name of a data file, from its path or from that of its index."""
    return path.rpartition("/")[2].removesuffix(SUFFIX)
