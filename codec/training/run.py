"""One training run: reads pictures, makes or loads a model, runs the loop, writes files.

``strata train`` runs it in its own process, ``pipeline.training`` in each worker of a team.
"""

import dataclasses
import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StrataError
from .data import Log, Open, Pictures, ShardWindow, read_share, share_of
from .distributed import ALONE, Team
from .loop import train
from .recipe import (
    TRAINING_FILE,
    Recipe,
    Trainable,
    TrainingFile,
    centre_crops,
    saver,
    write_training_file,
)
from .run_folder import RunFolder
from .tracking import Trackers

VALIDATION_PICTURES = 16


class TrainingError(StrataError):
    """A training cannot start, or cannot go on."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        codec: the family, with the recipes of ``codec.FAMILY.recipes``.
        recipe: the name of one of them.
        init: a shipped model's name, or a run's local folder, to start from.
        training: fields of TrainingConfig that differ from the recipe.
        loss: given fields of the codec's ObjectiveConfig.
        data, validation: names of shards; validation may be empty.
        trackers: where figures go in addition to the log; see ``tracking``.
    """

    codec: str
    recipe: str
    init: str | None
    data: tuple[str, ...]
    validation: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    trackers: tuple[str, ...] = ()


def recipes_of(codec: str) -> Any:
    """The module of a codec's recipes; see ``codec.training.recipe``."""
    return importlib.import_module(f"codec.{codec}.recipes")


def run(
    settings: RunSettings,
    open_shard: Open,
    folder: RunFolder,
    *,
    device: str = "cpu",
    log: Log = print,
    team: Team = ALONE,
    init: Path | None = None,
) -> None:
    """Train as long as the settings say. Resumes a run in ``folder``.

    ``init`` is the path of the model ``settings.init``, if it is another one. In a team every
    process calls this, and the folder and ``init`` of the first one are used. Raises StrataError,
    the same in all processes.
    """
    recipes = recipes_of(settings.codec)
    recipe: Recipe = recipes.RECIPES[settings.recipe]
    config = dataclasses.replace(recipe.training, **settings.training)
    trackers = team.lead(lambda: Trackers.check(settings.trackers))
    if min(config.batch, config.accumulate, config.steps_per_shard, config.counted_crops) < 1:
        least = "--batch, --accumulate, --steps-per-shard, --counted-crops must be at least 1"
        team.lead(partial(_refuse, least))

    if config.shards_at_once and not settings.validation:
        team.lead(partial(_refuse, "--shards-at-once: name pictures to measure on (--validate)"))

    def read() -> tuple[Pictures | ShardWindow, Pictures, list[np.ndarray]]:
        """The training pictures, the first of them, and the validation pictures."""
        share = share_of(settings.data, team.rank, team.size)
        source: Pictures | ShardWindow
        if 0 < config.shards_at_once < len(share):
            held, steps = config.shards_at_once, config.steps_per_shard
            source = ShardWindow(share, open_shard, config.crop, held, steps, config.seed, log)
        else:
            source = read_share(share, open_shard, config.crop, log)
        pictures = source.at(0)
        validation = []
        if team.rank == 0 and settings.validation:
            others = read_share(share_of(settings.validation, 0, 1), open_shard, 1, log)
            validation = others.take(VALIDATION_PICTURES)
        elif team.rank == 0:
            validation = pictures.take(min(VALIDATION_PICTURES, len(pictures) // 8))
        if not len(pictures):
            whose = f" for worker {team.rank} of {team.size}" if team.size > 1 else ""
            raise TrainingError(f"--data has no picture of at least 16x16{whose}")
        return source, pictures, centre_crops(validation)

    source, pictures, crops = team.everywhere(read)
    start = init or (settings.init and Path(settings.init)) or None
    trainable = _make(settings, recipes, pictures, config.seed, folder, team, start)
    card = {
        "recipe": settings.recipe,
        "started_from": settings.init,
        "measured_on": len(crops),
    }
    counted: list[np.ndarray] = []
    if team.rank == 0:
        counted = pictures.mixture(config.counted_crops, np.random.default_rng(config.seed))
        together = config.batch * config.accumulate * team.size
        if together != config.batch:
            log(
                f"a step is of {together} pictures: batches of {config.batch}, "
                f"{config.accumulate} in each of {team.size} workers"
            )
        trackers.start(folder.path, {"codec": settings.codec, **card, **dataclasses.asdict(config)})
    try:
        train(
            trainable.model,
            trainable.objective,
            source,
            config,
            folder,
            saver(trainable, folder.path, crops, device, card, counted),
            device=device,
            log=log,
            team=team,
            track=trackers,
        )
    finally:
        source.close()
        trackers.close()
    if team.rank == 0:
        files = (file.name for file in folder.path.iterdir() if file.is_file())
        log(f"in --out: {', '.join(sorted(files))}")


def _refuse(reason: str) -> None:
    raise TrainingError(reason)


def _make(
    settings: RunSettings,
    recipes: Any,
    pictures: Pictures,
    seed: int,
    folder: RunFolder,
    team: Team,
    start: Path | None,
) -> Trainable:
    """Make the same model in all processes: the first makes it, the others get it as a file."""
    loss = (dict(settings.loss),) if hasattr(recipes, "ObjectiveConfig") else ()
    box: list[Trainable] = []

    def make() -> bytes:
        if (folder.path / TRAINING_FILE).is_file():  # an interrupted run keeps its own model
            begun = TrainingFile.find(folder.path).codec
            if begun != settings.codec:
                raise TrainingError(
                    f"--out {folder.path} holds a {begun} model: choose another folder"
                )
            made = recipes.restore(folder.path, *loss)
        elif start:
            made = recipes.restore(start, *loss)
        else:
            made = recipes.build(recipes.RECIPES[settings.recipe], pictures, seed, *loss)
        box.append(made)
        if team.size == 1:
            return b""
        if not made.shared:
            raise TrainingError("this model is trained in one process only: leave --workers out")
        with tempfile.TemporaryDirectory(prefix="strata-model-") as scratch:
            file = Path(scratch) / TRAINING_FILE
            write_training_file(file, made, made.model.state_dict())
            return file.read_bytes()

    content = team.lead(make)

    def take() -> Trainable:
        if box:
            return box[0]
        with tempfile.TemporaryDirectory(prefix="strata-model-") as scratch:
            (Path(scratch) / TRAINING_FILE).write_bytes(content)
            taken: Trainable = recipes.restore(Path(scratch), *loss)
            return taken

    return team.everywhere(take)
