"""Publish a finished local data file and its index."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..running.stages import StageClock
from ..stores.store import StorageError, Store
from .index_writer import index_table, publish_index
from .layout import data_path
from .ledger import Ledger
from .rows import FileFacts, inspect_file

UPLOAD_ATTEMPTS = 3  # encoding a shard again costs far more than another upload


@dataclass(frozen=True)
class Publisher:
    """Publishes data files with ``layers`` layer columns; calls ``on_written`` with bytes sent.

    The ledger is only read: the caller records a file after it is published.
    """

    store: Store
    ledger: Ledger
    layers: int
    clock: StageClock
    on_written: Callable[[int], None] = lambda count: None

    def publish(self, name: str, local: Path, facts: FileFacts, scratch: Path) -> dict[str, Any]:
        """Publish ``local`` as the data file ``name``, then its index.

        Returns the facts of both for the commit record. If the name is taken, these are the facts
        of the file that has it. Raises StorageError if that file is damaged and cannot be replaced.
        """
        path = data_path(name)
        with self.clock.timed("upload"):
            created = self._create(path, local)
        if not created:
            facts, local = self._adopt(path, name, local, facts)
        with self.clock.timed("check"):
            table = index_table(local, self.layers)
        with self.clock.timed("upload"):
            index = publish_index(self.store, name, table, scratch, self._create)
        return {**facts.to_json(), "index": index}

    def _create(self, path: str, local: Path) -> bool:
        """Upload a file; False if the name is taken."""
        for attempt in range(UPLOAD_ATTEMPTS):
            try:
                created = self.store.create_from(path, local)
                break
            except Exception:
                if attempt == UPLOAD_ATTEMPTS - 1:
                    raise
                time.sleep(2**attempt)
        if created:
            self.on_written(local.stat().st_size)
        return created

    def _adopt(self, path: str, name: str, local: Path, ours: FileFacts) -> tuple[FileFacts, Path]:
        """The facts and a copy of the file that has the name already.

        An earlier attempt or another job published it and has not recorded it yet. A damaged one is
        replaced by ours, because no reader knows of it. Raises StorageError if that fails.
        """
        theirs = local.with_suffix(".standing")
        self.store.fetch(path, theirs)
        try:
            return inspect_file(theirs, self.layers), theirs
        except Exception as error:  # Parquet's reader raises many classes for damaged bytes
            problem = f"{type(error).__name__}: {error}"
        theirs.unlink()
        url = f"{self.store.url}/{path}"
        if self.ledger.exists(name):
            raise StorageError(
                f"{url}: is damaged, and another job has recorded it ({problem}): "
                "run the job again, then verify the dataset"
            )
        self.store.remove(path)
        if not self._create(path, local):
            raise StorageError(
                f"{url}: was damaged, and another job is writing it: run the job again",
                passing=True,
            )
        return ours, local
