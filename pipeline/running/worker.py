"""The base of all workers.

A worker is an ordinary class, which can be used without Ray. ``scheduler.run_tasks`` makes actors
of it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from ..stores import gzip_limits
from ..stores.gzip_limits import GzipLimits
from ..stores.store import Store
from .activity import Activity


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings that every worker has. They do not change what it writes.

    ``run_job_tasks`` sets them from the job's ``RunningOptions`` and the worker's share of the
    cluster. ``input_options`` and ``output_options`` are fsspec's storage options; they may hold
    secrets.
    """

    batch_size: int = 32
    device: str = "cpu"
    threads: int = 1
    scratch: str | None = None
    input_options: dict[str, Any] = field(default_factory=dict, repr=False)
    output_options: dict[str, Any] = field(default_factory=dict, repr=False)
    gzip: GzipLimits = gzip_limits.DEFAULT


Settings = TypeVar("Settings", bound=WorkerSettings)


class Worker(Generic[Settings]):
    """Base of a worker: ``ready`` loads what it needs, ``run`` runs one task."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.activity = Activity()

    @cached_property
    def store(self) -> Store:
        """The output, whose URL is ``settings.output``."""
        settings: Any = self.settings
        return Store(settings.output, settings.output_options)

    def status(self) -> dict[str, Any]:
        """Running tasks, busy seconds by stage, traffic, memory: see ``Activity.status``."""
        return self.activity.status()
