"""Publish a finished local data file and its index."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..running.stages import StageClock
from ..stores.store import StorageError, Store
from .facts import FileFacts, inspect_file
from .index_writer import index_table, publish_index
from .layout import data_path
from .ledger import Ledger

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

        def sound(standing: Path) -> bool:
            """Whether an earlier attempt or another job published it, and has not recorded it yet.

            No reader knows of a damaged one, so that is replaced.
            """
            nonlocal facts
            try:
                facts = inspect_file(standing, self.layers)
                return True
            except Exception as error:  # Parquet's reader raises many classes for damaged bytes
                if self.ledger.exists(name):
                    raise StorageError(
                        f"{self.store.url}/{path}: is damaged, and another job has recorded it "
                        f"({type(error).__name__}: {error}): run the job again, then strata "
                        "verify"
                    ) from error
                return False

        with self.clock.timed("upload"):
            standing = local.with_suffix(".standing")
            kept = self.store.create_or_keep(path, local, standing, sound, self._create)
        with self.clock.timed("check"):
            table = index_table(kept, self.layers)
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
