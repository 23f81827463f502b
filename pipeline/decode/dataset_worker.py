"""Base of the workers of decode jobs, whose tasks are the selected rows of a data file."""

from dataclasses import dataclass, replace
from functools import cached_property

from ..dataset.plan import Plan
from ..reader.dataset import Dataset, open_dataset
from ..running.worker import Worker, WorkerSettings
from ..stores.store import Store
from .layer_rule import LayerRule
from .request import DecodeOptions, Request


@dataclass(frozen=True)
class HandOutSettings(WorkerSettings):
    """``options`` are the job's, with URLs that are valid on every machine.

    ``rule`` and ``condition`` are those of the ``Request``. ``columns`` are the side fields that
    become columns of a table.
    """

    options: DecodeOptions
    fingerprint: str
    rule: LayerRule
    condition: str = ""
    columns: tuple[str, ...] = ()


def settings_of(options: DecodeOptions, request: Request, plan: Plan) -> HandOutSettings:
    output = Store(options.output, options.output_options).url
    options = replace(options, dataset=request.dataset.url, output=output)
    columns = tuple(plan.parameters.get("columns", ()))
    return HandOutSettings(options, plan.fingerprint, request.rule, request.condition, columns)


class DatasetWorker(Worker[HandOutSettings]):
    """A worker whose tasks are data files of ``options.dataset``."""

    @cached_property
    def store(self) -> Store:
        """The output."""
        return Store(self.settings.options.output, self.settings.output_options)

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.settings.options.dataset, self.settings.input_options)
