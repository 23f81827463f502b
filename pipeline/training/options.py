"""What a training job is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """See ``jobs/train.py --help``.

    Without ``workers`` training runs in this process. ``recipe`` is one of the codec's
    (``--config``). ``training`` and ``loss`` are fields of the recipe's ``TrainingConfig`` and
    ``ObjectiveConfig``. ``init_path`` is where the model of ``init`` lies on this machine, if it
    has been fetched already. ``input_options`` are the shards' storage options, ``output_options``
    the run's; they may hold secrets.
    """

    data: tuple[str, ...]
    out: str
    recipe: str
    codec: str = "uqdm"
    init: str | None = None
    init_path: Path | None = None
    validation: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    trackers: tuple[str, ...] = ()
    device: str | None = None
    threads: int | None = None
    workers: int | None = None
    address: str | None = None
    restarts: int = 3
    scratch: str | None = None
    input_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    output_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
