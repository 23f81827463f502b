"""Rates and totals out of cumulative figures whose sources may start again from nothing."""

from collections import deque
from collections.abc import Hashable, Mapping

WINDOW_SECONDS = 60.0
STEP_SECONDS = 1.0


class Window:
    """How fast cumulative figures grew during the last ``seconds``.

    Keeps a point a ``step`` (seconds), so its size does not depend on how often it is fed.
    """

    def __init__(self, seconds: float = WINDOW_SECONDS, step: float = STEP_SECONDS) -> None:
        self.seconds, self.step = seconds, step
        self._points: deque[tuple[float, dict[str, float]]] = deque()

    def add(self, now: float, figures: Mapping[str, float]) -> None:
        points = self._points
        if points and now - points[-1][0] < self.step:
            return
        points.append((now, dict(figures)))
        while len(points) > 2 and now - points[1][0] >= self.seconds:
            points.popleft()

    @property
    def span(self) -> float:
        """Seconds between the oldest and the newest point."""
        return self._points[-1][0] - self._points[0][0] if self._points else 0.0

    def rate(self, name: str) -> float:
        """Growth per second; 0.0 as long as there is nothing to compare."""
        if not self.span:
            return 0.0
        first, last = self._points[0][1], self._points[-1][1]
        # A failed attempt takes back what it had counted: no work is done backwards.
        return max(0.0, (last.get(name, 0) - first.get(name, 0)) / self.span)


class Growth:
    """What the cumulative figures of one worker grew by, whatever process is behind it."""

    def __init__(self) -> None:
        self._source: Hashable = None
        self._last: dict[str, float] = {}

    def since_last(self, source: Hashable, figures: Mapping[str, float]) -> dict[str, float]:
        """The growth since the last call. Another ``source`` (process) began at nothing."""
        if source != self._source:
            self._source, self._last = source, {}
        grown = {}
        for name, value in figures.items():
            before = self._last.get(name, 0)
            grown[name] = value - before if value >= before else value
            self._last[name] = value
        return grown
