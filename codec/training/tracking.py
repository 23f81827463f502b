"""Figures of a training for TensorBoard and Weights & Biases, whose packages are optional."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StrataError

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What --log takes, with the package that each needs; Strata's extras are called as --log is."""


class MissingPackageError(StrataError):
    """Something optional was asked for, and is not installed."""


class Trackers:
    """Any number of them; none until ``start``."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._started: list[_TensorBoard | _Wandb] = []

    @classmethod
    def check(cls, names: tuple[str, ...]) -> "Trackers":
        """Raises MissingPackageError where one cannot be used, before anything is trained."""
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
        """Open them in a run's folder. A run that goes on goes on in its old curves."""
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
    """The numbers in figures, by path: ``validation/bpp/0``. What is no number is left out."""
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
    """Event files in the run's folder ``tensorboard``."""

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
    """A run of the project that WANDB_PROJECT names, or "strata"."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        # The id lies in the folder, so that a run that goes on is the same one there, too.
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
