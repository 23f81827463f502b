"""What a scheduler is given, and what it gives back."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """One call of a worker's ``run``: a name for people, and small picklable arguments."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, or the error of its last attempt.

    ``attempts`` counts how often it was started.
    """

    task: Task
    result: dict[str, Any] | None
    error: str = ""
    attempts: int = 0
    crashed: bool = False

    @property
    def failure(self) -> str:
        """The error, and after how many attempts."""
        return f"{self.error} (attempts: {self.attempts})"


@dataclass(frozen=True)
class Policy:
    """How patient the driver is.

    ``attempts`` that fail, per task; ``deadline`` seconds for each of them; ``drain`` seconds for
    what is under way when the job is told to stop; ``in_flight`` tasks at once for each actor.
    """

    attempts: int = 3
    deadline: float = 3600.0
    drain: float = 25.0
    in_flight: int = 3


class Watcher(Protocol):
    """Who hears of a run while it goes on."""

    def ready(self) -> None:
        """The first worker can begin."""

    def event(self, kind: str, **facts: Any) -> None:
        """Something happened that a person would want to know afterwards."""

    def progress(self, new: list[Outcome], workers: list[dict[str, Any]]) -> str:
        """New outcomes, and what each worker does. Returns why the run must stop, usually ""."""
