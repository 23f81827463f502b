"""Items in groups that memory can hold."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def windows(
    items: Iterable[T], cost: Callable[[T], int], budget: int, most: int, first: int | None = None
) -> Iterator[list[T]]:
    """Groups of at most ``most`` items that cost at most ``budget`` together.

    An item that costs more is a group of its own. With ``first`` groups begin at that number of
    items and double until ``most``. The caller may clear a group to let its items go.
    """
    window: list[T] = []
    total, limit = 0, min(most if first is None else first, most)
    for item in items:
        more = cost(item)
        if window and (len(window) == limit or total + more > budget):
            yield window
            window, total, limit = [], 0, min(2 * limit, most)
        window.append(item)
        total += more
    if window:
        yield window
