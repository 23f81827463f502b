"""List a folder file by file: a million names need not be in memory at once."""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

# Where file systems of fsspec say when a file was written.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class Listed(NamedTuple):
    """A file in a listing.

    ``size`` is in bytes; ``modified`` is when it was written, by the store's clock, in seconds of
    POSIX time, None if the store does not tell.
    """

    name: str
    size: int
    modified: float | None


def local(folder: Path) -> Iterator[Listed]:
    """The files of a local folder; links count as what they lead to."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            try:
                if entry.is_file():
                    found = entry.stat()
                    yield Listed(entry.name, found.st_size, found.st_mtime)
            except FileNotFoundError:  # removed meanwhile
                continue


def s3(fs: Any, folder: str) -> Iterator[Listed]:
    """The objects in a folder of an S3 store, page by page."""
    bucket, key, _ = fs.split_path(folder)
    prefix = f"{key}/" if key else ""
    asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", **fs.req_kw}
    while True:
        try:
            page = fs.call_s3("list_objects_v2", **asked)
        except FileNotFoundError:  # there is no such bucket
            return
        for found in page.get("Contents", ()):
            name = found["Key"].removeprefix(prefix)
            if name:  # not a folder's own marker
                yield Listed(name, int(found["Size"]), _seconds(found["LastModified"]))
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def other(fs: Any, folder: str) -> Iterator[Listed]:
    """The files in a folder of any file system of fsspec."""
    try:
        entries = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry["type"] == "file":
            yield Listed(entry["name"].rsplit("/", 1)[-1], int(entry["size"]), _modified(entry))


def _modified(entry: Mapping[str, Any]) -> float | None:
    return next((_seconds(entry[name]) for name in _TIMES if name in entry), None)


def _seconds(when: Any) -> float | None:
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            return None
    if isinstance(when, datetime):
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return float(when) if isinstance(when, int | float) else None
