"""Base of the workers that hand out a dataset: the rows of a data file that were asked for."""

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
    """``options`` are the job's, with URLs that hold on every machine.

    ``rule`` and ``condition`` are what its options mean for the dataset; see ``Request``.
    ``columns`` are the side fields that have columns of a table.
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
