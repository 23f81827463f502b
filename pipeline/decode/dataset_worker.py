"""What the workers have in common that hand out a dataset: its rows, after the person's choice."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from ..reader.dataset import Dataset, open_dataset
from ..running.worker import Worker, WorkerSettings
from .layer_rule import LayerRule


@dataclass(frozen=True)
class HandOutSettings(WorkerSettings):
    """``dataset`` and ``output`` are URLs, ``condition`` is a ``--filter``."""

    dataset: str
    output: str
    fingerprint: str
    rule: LayerRule
    condition: str = field(default="", kw_only=True)


Settings = TypeVar("Settings", bound=HandOutSettings)


class DatasetWorker(Worker[Settings]):
    """A worker whose tasks are data files of ``settings.dataset``."""

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.settings.dataset, self.settings.input_options)
