"""The options of a training job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec.training.run import RunSettings

if TYPE_CHECKING:
    from ..sources.kinds import InputFormat


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunSettings):
    """See ``strata train --help``, and ``RunSettings``.

    Without ``workers`` training runs in this process. ``data`` and ``validation`` may be folders
    and patterns here; ``input_format`` chooses among several kinds of inputs in ``data``.
    ``init_path`` is the local path of the model ``init``, if it has been fetched already.
    ``input_options`` are the shards' storage options, ``output_options`` those of the run; they may
    hold secrets.
    """

    codec: str = "uqdm"
    input_format: "InputFormat | None" = None
    init: str | None = None
    out: str
    init_path: Path | None = None
    device: str | None = None
    threads: int | None = None
    workers: int | None = None
    address: str | None = None
    restarts: int = 3
    scratch: str | None = None
    input_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    output_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
