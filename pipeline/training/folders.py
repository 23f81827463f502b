"""A run's folder on any file system of fsspec, with a local copy to work in."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codec.models.zoo import CARD_FILE
from codec.training.run_folder import (
    RunFolder,
    checkpoint_name,
    checkpoint_step,
    newest_first,
    outdated,
)

from ..stores.filesystems import storage_errors
from ..stores.store import Store, scratch_folder


class RemoteFolder(RunFolder):
    """A run whose files are in a store; ``path`` is its local copy.

    Checkpoints are fetched when they are needed. Files appear in the store whole, because an object
    store shows an upload only when it is complete. The card is uploaded last.
    """

    def __init__(self, store: Store, path: Path) -> None:
        super().__init__(path)
        self._store = store
        with self._errors("cannot be read"):
            for name in store.sizes():
                if checkpoint_step(name) is None:
                    store.fetch(name, path / name)

    def newest(self) -> Path | None:
        with self._errors("cannot be read"):
            names = newest_first(list(self._store.sizes()))
            if not names:
                return None
            local = self.path / names[0]
            self._store.fetch(names[0], local)
            return local

    def add_checkpoint(self, step: int, write: Callable[[Path], Any], keep: int) -> None:
        super().add_checkpoint(step, write, keep=1)
        name = checkpoint_name(step)
        with self._errors("cannot be written"):
            while not self._store.create_from(name, self.path / name):
                self._store.remove(name)  # from before a return to an earlier checkpoint
            for old in outdated(list(self._store.sizes()), step, keep):
                self._store.remove(old)

    def publish(self) -> None:
        files = [file for file in sorted(self.path.rglob("*")) if file.is_file()]
        names = [str(file.relative_to(self.path)) for file in files]
        with self._errors("cannot be written"):
            for name in sorted(names, key=lambda name: name == CARD_FILE):
                if checkpoint_step(name) is None and not Path(name).name.startswith("."):
                    self._store.fs.put_file(str(self.path / name), self._store.path(name))

    def _errors(self, problem: str) -> Any:
        return storage_errors(self._store.url, problem)


def is_remote(url: str) -> bool:
    return "://" in url and not url.startswith(("file://", "local://"))


def local_path(url: str) -> Path:
    """The local path in ``url``, which may be a path itself."""
    return Path(url.split("://", 1)[-1]).absolute()


@contextmanager
def open_folder(
    url: str, options: Mapping[str, Any] | None = None, scratch: str | None = None
) -> Iterator[RunFolder]:
    """A run's folder by URL; its local copy, if it needs one, is removed afterwards."""
    if not is_remote(url):
        yield RunFolder(local_path(url))
        return
    with scratch_folder(scratch) as local:
        yield RemoteFolder(Store(url, options), local / "run")
