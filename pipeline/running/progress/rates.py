"""Rates and totals of cumulative figures whose sources may start again at zero."""

from collections import deque
from collections.abc import Hashable, Mapping

WINDOW_SECONDS = 60.0
STEP_SECONDS = 1.0


class Window:
    """How fast cumulative figures grew during the last ``seconds``.

    Keeps one point per ``step`` seconds, so its size does not depend on how often figures come.
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
        # A failed attempt lowers the figures, but a rate is never negative.
        return max(0.0, (last.get(name, 0) - first.get(name, 0)) / self.span)


class Growth:
    """The growth of one worker's cumulative figures, also if its process is replaced."""

    def __init__(self) -> None:
        self._source: Hashable = None
        self._last: dict[str, float] = {}

    def since_last(self, source: Hashable, figures: Mapping[str, float]) -> dict[str, float]:
        """The growth since the last call. Another ``source`` (process) starts at zero."""
        if source != self._source:
            self._source, self._last = source, {}
        grown = {}
        for name, value in figures.items():
            before = self._last.get(name, 0)
            grown[name] = value - before if value >= before else value
            self._last[name] = value
        return grown
