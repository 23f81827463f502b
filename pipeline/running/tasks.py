"""Input and output of the scheduler: tasks, outcomes, the policy, the watcher."""

from dataclasses import dataclass
from typing import Any, Protocol

from codec.errors import StrataError


class PausedError(StrataError):
    """A worker was asked to stop. The task is not finished; its finished rows are saved."""


@dataclass(frozen=True)
class Task:
    """One call of a worker's ``run``: a name for people, and small picklable arguments."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """The end of a task: a result, or the error of its last attempt.

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
    """How long the driver waits, and how often it tries.

    Attributes:
        attempts: failures after which a task fails for good.
        timeout: seconds in which a worker must finish a sample, stage or task.
        drain: seconds that running tasks get when the job must stop.
        in_flight: tasks of each actor at once.
    """

    attempts: int = 3
    timeout: float = 3600.0
    drain: float = 25.0
    in_flight: int = 3


class Watcher(Protocol):
    """Is told what happens during a run."""

    def ready(self) -> None:
        """The first worker is ready."""

    def event(self, kind: str, **facts: Any) -> None:
        """Something happened that belongs into the log."""

    def update(self, new: list[Outcome], workers: list[dict[str, Any]]) -> str:
        """Gets new outcomes and each worker's status. Returns why the run must stop, or ""."""
