"""Sends figures of a training to TensorBoard and Weights & Biases, which are optional."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""The values of --log, each with its package. Strata's extras have the same names."""


class Trackers:
    """Any number of trackers; none is open until ``start``."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._started: list[_TensorBoard | _Wandb] = []

    @classmethod
    def check(cls, names: tuple[str, ...]) -> "Trackers":
        """Raises MissingPackageError before the training if one cannot be used."""
        for name in names:
            try:
                importlib.import_module(PACKAGES[name])
            except ImportError as error:
                raise MissingPackageError(
                    f"--log {name} needs the package {PACKAGES[name]}: "
                    f"pip install -e '.[{name}]' -c infra/constraints.txt"
                ) from error
        return cls(names)

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open them in a run's folder. A resumed run continues its old curves."""
        self._started = [
            _Wandb(folder, settings) if name == "wandb" else _TensorBoard(folder)
            for name in self._names
        ]

    def __call__(self, step: int, figures: Mapping[str, Any]) -> None:
        scalars = flatten(figures)
        for tracker in self._started:
            tracker.log(step, scalars)

    def close(self) -> None:
        for tracker in self._started:
            tracker.close()
        self._started = []


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in figures, by path such as ``validation/bpp/0``. Other values are left out."""
    out: dict[str, float] = {}
    for name, value in figures.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            out |= flatten(value, f"{path}/")
        elif isinstance(value, list | tuple):
            out |= flatten({str(i): one for i, one in enumerate(value)}, f"{path}/")
        elif isinstance(value, int | float):
            out[path] = float(value)
    return out


class _TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run in the project WANDB_PROJECT, or "strata"."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        # The id is saved in the folder, so that a resumed run is the same run there, too.
        file = folder / "wandb.txt"
        known = file.read_text().strip() if file.is_file() else wandb.util.generate_id()
        file.write_text(known + "\n")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "strata"),
            id=known,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()
