"""``--keys`` and ``--keys-file``: which keys these are, and the data files that have them."""

import hashlib
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..dataset.data_file import within
from ..dataset.deletions import printable_key
from ..reader.dataset import DataFile, Dataset
from ..running.options import OptionError
from ..stores.filesystems import open_filesystem, storage_errors
from ..stores.threads import ahead

FILES_AT_ONCE = 16


def keys_sha256(keys: Sequence[str]) -> str:
    """A hash of sorted keys, independent of their order in the file."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def read_keys(url: str, options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The keys in a file, as datasets write them, sorted, each once.

    Every line is a key; empty lines are ignored. ``url`` is a path, any fsspec URL, or ``-`` for
    standard input. Raises StorageError, and OptionError if there is no key.
    """
    if url == "-":
        data = sys.stdin.buffer.read()
    else:
        fs, path = open_filesystem(url, options)
        with storage_errors(url, "the keys cannot be read"):
            data = bytes(fs.cat_file(path))
    lines = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    # A dataset shows keys that are not UTF-8 in this form (``dataset.rows.Row.columns``).
    keys = {line.decode("utf-8", "backslashreplace") for line in lines if line}
    if not keys:
        raise OptionError(f"--keys-file {url}: has no key")
    return tuple(sorted(keys))


def chosen_keys(
    keys: Sequence[str], file: str | None, options: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The given keys, or those in a file, sorted, each once; () for neither."""
    if isinstance(keys, str):
        raise OptionError(f"keys: must be a tuple of keys, not {keys!r:.50}; or give keys_file")
    if file is None:
        return tuple(sorted({*map(printable_key, keys)}))
    if keys:
        raise OptionError("--keys and --keys-file: give only one of them")
    return read_keys(file, options)


def find_keys(
    dataset: Dataset, keys: Sequence[str]
) -> tuple[list[tuple[DataFile, tuple[str, ...]]], list[str]]:
    """The data files that have any of these keys, each with its keys; and the unknown keys.

    Reads the keys of all row groups that may have one, including bad and filtered samples.
    """
    wanted = set(keys)

    def find(file: DataFile) -> tuple[DataFile, tuple[str, ...]]:
        # The bounds in the manifest are those of pictures, so they hold only if all rows are ok.
        if file.ok == file.rows and not within(keys, file.key_bounds):
            return file, ()
        found: set[str] = set()
        with dataset.open(file) as opened:
            for group, bounds in enumerate(opened.group_bounds()):
                if within(keys, bounds):
                    column = opened.read(group, ["key"]).column("key")
                    found.update(wanted.intersection(column.to_pylist()))
        return file, tuple(sorted(found))

    seen = [False] * len(keys)
    chosen = []
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for file, found in ahead(pool, find, dataset.files, lambda: 2 * FILES_AT_ONCE):
            if found:
                chosen.append((file, found))
            for key in found:
                seen[bisect_left(keys, key)] = True
    unknown = [key for key, known in zip(keys, seen, strict=True) if not known]
    return chosen, unknown


def listed(keys: Sequence[str], most: int = 5) -> str:
    """Some keys for a message."""
    more = f", and {len(keys) - most:,} more" if len(keys) > most else ""
    return ", ".join(map(repr, keys[:most])) + more
