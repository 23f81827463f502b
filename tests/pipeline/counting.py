"""A file system that counts the bytes that are read from it, and the requests."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile


class _CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start=start, end=end)  # type: ignore[no-any-return]


class CountingFileSystem(MemoryFileSystem):
    """``counting://``: memory that reads like an object store; its traffic is in ``requests``."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    requests: ClassVar[list[tuple[str, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counting://", "memory://")))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        data = bytes(super().cat_file(path, start=start, end=end))
        self.requests.append((path, len(data)))
        return data

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super().open(path, mode, **options)
        # the default of an object store's file: read-ahead, unless the caller says otherwise
        options.setdefault("cache_type", "readahead")
        options.setdefault("block_size", 5 << 20)
        return _CountedFile(self, self._strip_protocol(path), mode, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, mode, **options)

    @classmethod
    def bytes_read(cls, suffix: str = "") -> int:
        return sum(count for path, count in cls.requests if path.endswith(suffix))


fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
