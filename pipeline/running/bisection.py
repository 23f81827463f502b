"""Finds, by bisection, the sample of a shard that kills every worker."""


class DeadlySampleSearch:
    """A search on the driver's side. Each step tries a range of samples in a worker, which may die.

    Use: ``start, stop = next_range()``, try these samples, then ``answer(died, total)``; repeat
    until ``finished``. The first range is empty: it only opens the shard, which tells its number of
    samples (``total``). Then the range that must hold the sample is halved until one is left, and
    that one is tried alone. A verdict needs two deaths, because workers also die for other reasons.

    Attributes:
        found: the number of the sample; None if it is not found, or not yet.
        finished: whether the search is over.
        total: samples in the shard, once known.
        opening: seconds that opening the shard took.
    """

    def __init__(self) -> None:
        self._low, self._high = 0, 0
        self._opened = False
        self._tried = (0, 0)
        self._died_before: tuple[int, int] | None = None
        self.total = 0
        self.opening = 0.0
        self.found: int | None = None
        self.finished = False

    def next_range(self) -> tuple[int, int]:
        """The samples to try next, ``start`` to ``stop``."""
        if not self._opened:
            self._tried = (0, 0)
        elif self._died_before == self._tried:
            pass
        elif self._high - self._low == 1:
            self._tried = (self._low, self._high)
        else:
            self._tried = (self._low, (self._low + self._high) // 2)
        return self._tried

    def answer(self, *, died: bool, total: int = 0) -> None:
        """Tell the search whether the worker died; ``total`` is needed the first time."""
        start, stop = self._tried
        deadly = died and stop - start <= 1
        if deadly and self._died_before != self._tried:
            self._died_before = self._tried  # try it once more
            return
        self._died_before = None
        if not self._opened:
            self._opened, self._high, self.total = True, total, total
            self.finished = died or total == 0
        elif deadly:
            self.found, self.finished = start, True
        elif died:
            self._high = stop
        elif self._high - self._low == 1:
            self.finished = True
        else:
            self._low = stop

    @property
    def verdict(self) -> str:
        """The result of a search that found no sample."""
        if not self.total:
            return "opening the shard already kills it"
        return "no single sample kills it"
