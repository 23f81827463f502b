"""A cache bounded by bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class ByteCache:
    """Keeps the most recently used values, at most ``limit`` bytes of them.

    Safe in threads. Two threads that miss the same value at the same time both load it. A pickled
    cache is empty.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """The value of a key, or None."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: Hashable, value: T, nbytes: int) -> T:
        """Keep ``value`` and return it; drops the least recently used values."""
        with self._lock:
            if key in self._items:
                self.bytes -= self._items.pop(key)[1]
            self._items[key] = (value, nbytes)
            self.bytes += nbytes
            while self.bytes > self.limit:
                _, (_, freed) = self._items.popitem(last=False)
                self.bytes -= freed
        return value

    def load(self, key: Hashable, load: Callable[[], T], nbytes: Callable[[T], int]) -> T:
        """The value of a key; calls ``load`` if it is not in the cache."""
        found = self.get(key)
        if found is not None:
            return found
        value = load()
        return self.put(key, value, nbytes(value))

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteCache, (self.limit,)
