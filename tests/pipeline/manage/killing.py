"""Ends a job at one of its writes, like a kill: no thread writes anything afterwards."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.stores.store import Store

# Everything that changes a store goes through one of these.
WRITES = ("_create_locally", "create_by", "remove")
OF_A_RUN = ("seconds", "stage_seconds", "node", "recorded")


class Killed(BaseException):
    """As if the process had ended here."""


class Killer:
    """Counts writes. The n-th one does not happen, or ``after`` it nothing does."""

    def __init__(self, at: int | None, after: bool) -> None:
        self.at, self.after, self.count, self.dead = at, after, 0, False
        self._lock = threading.Lock()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.count += 1
                due = self.count == self.at
                if self.dead or (due and not self.after):
                    self.dead = True
                    raise Killed
            done = function(*arguments, **options)
            if due:
                self.dead = True
                raise Killed
            return done

        return write


@contextmanager
def killer(at: int | None = None, after: bool = False) -> Iterator[Killer]:
    """Of the writes in the block the ``at``-th one is the end."""
    watching = Killer(at, after)
    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(Store, name, watching.wrap(getattr(Store, name)))
        yield watching


def points(writes: int) -> Iterator[tuple[int, bool]]:
    """Before and after each of so many writes."""
    return ((at, after) for at in range(1, writes + 1) for after in (False, True))


def contents(store: Store) -> dict[str, Any]:
    """All files of a dataset by path, without what records say of one run."""
    found: dict[str, Any] = {}
    for path in store.fs.find(store.root):
        name = path.removeprefix(store.root).lstrip("/")
        data = store.read(name)
        found[name] = _without_run(json.loads(data)) if name.endswith(".json") else data
    return found


def _without_run(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_run(one) for key, one in value.items() if key not in OF_A_RUN}
    return [_without_run(one) for one in value] if isinstance(value, list) else value
