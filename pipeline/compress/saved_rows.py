"""Rows of a shard that is still being encoded, saved in the store every few minutes.

A shard of ten thousand pictures takes hours. If its worker is lost, the next attempt starts after
the rows that were saved. Readers do not use these files. They are removed when the shard is
committed.
"""

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from codec.errors import StrataError

from ..dataset.layout import SAVED, saved_path, saved_rows
from ..dataset.parquet import ParquetFile
from ..dataset.rows import iter_rows
from ..stores.store import Store


class SavedRows:
    """The saved rows of the data file ``name``, from its first row on.

    Attributes:
        rows: how many rows are saved, in the store or at least on this machine.
    """

    def __init__(self, store: Store, name: str, scratch: Path) -> None:
        self.rows = 0
        self._store, self._name, self._scratch = store, name, scratch
        self._files: list[tuple[Path, int]] = []  # each with the number of its rows to skip

    def fetch(self) -> None:
        """Fetch what earlier attempts saved. Damaged files are removed from the store."""
        found = {}
        for file in self._store.sizes(SAVED):
            name, start, stop = saved_rows(file)
            if name == self._name:
                found[start, stop] = file
        while fitting := [span for span in found if span[0] <= self.rows < span[1]]:
            start, stop = max(fitting, key=lambda span: span[1])
            file = found.pop((start, stop))
            local = self._scratch / file
            try:
                self._store.fetch(f"{SAVED}/{file}", local)
            except FileNotFoundError:  # another job has committed the shard
                continue
            if not _sound(local, stop - start):
                self._store.remove(f"{SAVED}/{file}")
                continue
            self._files.append((local, self.rows - start))
            self.rows = stop

    def keep_if_of(self, keys: list[str]) -> None:
        """Remove the saved rows, unless they belong to the first samples, which have these keys.

        Deleting a sample changes the numbers of the samples after it.
        """
        found: list[str] = []
        for local, passed in self._files:
            rows = iter_rows(ParquetFile(local), ["key"])
            found += [row["key"] for row in islice(rows, passed, None)]
        if found != keys[: self.rows]:
            self.remove()
            self._files, self.rows = [], 0

    def add(self, local: Path, rows: int) -> None:
        """Save a closed file with the next ``rows`` rows."""
        start, self.rows = self.rows, self.rows + rows
        self._files.append((local, 0))
        # If the store fails, the rows are still on this machine, and a later save may succeed.
        with contextlib.suppress(OSError, StrataError):
            self._store.create_from(saved_path(self._name, start, self.rows), local)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All saved rows, for ``RowWriter.copy``."""
        for local, passed in self._files:
            file = ParquetFile(local)
            yield from islice(iter_rows(file, file.schema_arrow.names), passed, None)

    def remove(self) -> None:
        """Remove all saved rows of this data file, whoever saved them."""
        for file in self._store.sizes(SAVED):
            if saved_rows(file)[0] == self._name:
                self._store.remove(f"{SAVED}/{file}")


def _sound(local: Path, rows: int) -> bool:
    """Whether a file can be read whole and has ``rows`` rows."""
    try:
        file = ParquetFile(local)
        for group in range(file.num_row_groups):
            file.read_row_group(group)
        return bool(file.metadata.num_rows == rows)
    except Exception:  # Parquet's reader raises many classes for damaged bytes
        return False
