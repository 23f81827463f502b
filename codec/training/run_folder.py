"""A run's folder: model files and the last few checkpoints, all of them written whole."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models.zoo import write_whole

_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pt")


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step:09}.pt"


def checkpoint_step(name: str) -> int | None:
    """The step in a checkpoint's name, None for any other file."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def newest_first(names: list[str]) -> list[str]:
    """The checkpoints among ``names``, the newest first."""
    steps = {name: step for name in names if (step := checkpoint_step(name)) is not None}
    return sorted(steps, key=lambda name: steps[name], reverse=True)


class RunFolder:
    """A run's files in a local folder.

    Attributes:
        path: the folder in which training finds and writes the model's files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def newest(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        names = newest_first([file.name for file in self.path.iterdir()])
        return self.path / names[0] if names else None

    def add_checkpoint(self, step: int, write: Callable[[Path], Any], keep: int) -> None:
        """Write a checkpoint, then remove all but the last ``keep`` of them.

        Checkpoints of later steps are removed, too: they are from before a return to an earlier
        one.
        """
        name = checkpoint_name(step)
        write_whole(self.path / name, write)
        for old in outdated([file.name for file in self.path.iterdir()], step, keep):
            (self.path / old).unlink(missing_ok=True)

    def publish(self) -> None:
        """Publish the model's files after they were written. Here they are public already."""


def outdated(names: list[str], step: int, keep: int) -> list[str]:
    """The checkpoints to remove if that of ``step`` is the newest."""
    ordered = newest_first(names)
    later = [name for name in ordered if (checkpoint_step(name) or 0) > step]
    return later + [name for name in ordered if name not in later][max(keep, 1) :]
