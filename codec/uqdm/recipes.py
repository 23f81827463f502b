"""Named recipes of UQDM models; makes models of recipes or of float weights.

``strata train --config NAME`` chooses a recipe (see ``codec.training.recipe``).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidModelError
from ..models.heads import DECODERS
from ..perception.bands import VISUAL_COLOURS, visual_weights
from ..training.data import Pictures
from ..training.loop import TrainingConfig
from ..training.recipe import Recipe, Trainable, TrainingFile
from .nested.bands import to_bands
from .nested.export import export, model_config
from .nested.head_training import HeadTrainable
from .nested.model import NestedModel
from .nested.objective import NestedObjective
from .nested.schedule import NestedConfig
from .nested.scheme import NestedScheme
from .nested.statistics import count_tables, start_biases
from .paper import calibration
from .paper.model import UniversalConfig, UniversalModel
from .paper.scheme import UniversalScheme

_STATISTICS = 128  # crops for the statistics from which a nested model starts

_LEVELS = {
    "network": {"channels": 192, "hidden": 384, "blocks": 6},
    "pass_network": {"channels": 96, "hidden": 192, "blocks": 2},
    "first_network": {"channels": 48, "hidden": 96, "blocks": 2},
    "pixel_network": {"channels": 64, "hidden": 256, "blocks": 6, "heads": 64},
}
_TINY = {
    "network": {"channels": 48, "hidden": 96, "blocks": 2},
    "pass_network": {"channels": 32, "hidden": 64, "blocks": 1},
    "first_network": {"channels": 32, "hidden": 64, "blocks": 1},
    "pixel_network": {"channels": 32, "hidden": 64, "blocks": 1, "heads": 16},
}
_NESTED = {"codec": "uqdm", "quantizer": "nested", "domain": "bands"}
_UNIVERSAL = {"codec": "uqdm", "quantizer": "universal", "domain": "pixels"}
_PAPER_TRAINING = TrainingConfig(
    learning_rate=2e-4, warmup=1000, ema=0.9999, batch=16, crop=64, final_rate=1.0
)

RECIPES = {
    "small": Recipe(
        {**_NESTED, **_LEVELS, "weights": "visual"},
        about="the shipped default: nested refinement in bands, weighted for eyes",
    ),
    "small-flat": Recipe(
        {**_NESTED, **_LEVELS, "weights": "flat"},
        about="the same with equal weights: for the least squared error",
    ),
    "tiny": Recipe(
        {**_NESTED, **_TINY, "weights": "visual"},
        about="nested, weighted for eyes, .2 M parameters: for trying things out",
    ),
    "paper-tiny": Recipe(
        {**_UNIVERSAL, "network": {"channels": 32, "blocks": 1}},
        _PAPER_TRAINING,
        "the paper's pixel-space model at the size of its tiny checkpoint",
    ),
    "paper-small": Recipe(
        {**_UNIVERSAL, "network": {"channels": 64, "blocks": 3}},
        _PAPER_TRAINING,
        "the paper's pixel-space model, 2 M parameters",
    ),
}
DEFAULT_RECIPE = "small"


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which part of a model is trained. It is a choice of the run, not kept with the model."""

    train: Literal["all", "levels", "first", "pixels", "eyes", "realistic"] = field(
        default="all",
        metadata={
            "help": "first: the light network of the first layer alone; levels: the networks of "
            "the other lossy layers; pixels: the network of the lossless layer; eyes, realistic: a "
            "reconstruction head, a file of its own beside the model. Everything else stays as "
            "--init has it"
        },
    )
    kept_batches: int = field(
        default=128,
        metadata={"help": "of a head: batches whose decoded states are kept and used many times"},
    )


class UQDMTrainable(Trainable):
    """A UQDM model with its loss."""

    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """See ``Trainable.tensors``.

        Counts the tables of a nested model, or measures the guards of a universal one.
        """
        assert isinstance(self.model, NestedModel | UniversalModel)
        if isinstance(self.model, UniversalModel):
            tensors = self.model.export()
            universal = UniversalScheme(self.config, tensors, "cpu")
            return tensors | {"guards": calibration.quick(universal, counted_on).guards}
        tensors = export(self.model)
        if counted_on:
            scheme = NestedScheme(self.config, tensors, "cpu")
            counted = count_tables(scheme, counted_on)
            tensors |= {name: torch.from_numpy(array) for name, array in counted.items()}
        return tensors


def build(
    recipe: Recipe, pictures: Pictures, seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Trainable:
    """Make a new model. A nested one starts from statistics of the training pictures.

    Raises InvalidModelError if ``overrides`` choose a part of a model, which needs ``--init``.
    """
    if ObjectiveConfig(**(overrides or {})).train != "all":
        raise InvalidModelError("--train needs a model to start from: give one with --init")
    torch.manual_seed(seed)
    if recipe.model["quantizer"] == "universal":
        return _universal(recipe.model)
    rng = np.random.default_rng(seed)
    crops = [pictures.batch(16, 0.0, rng) for _ in range(_STATISTICS // 16)]
    config = NestedConfig()
    if recipe.model["weights"] == "visual":
        weights = tuple(visual_weights().tolist())
        config = NestedConfig(colours=VISUAL_COLOURS, band_weights=weights)
    squares = [to_bands(x, config).square().mean((0, 1, 2)) for x in crops]
    rms = torch.stack(squares).mean(0).sqrt() * config.last_delta
    config = dataclasses.replace(config, band_rms=tuple(round(v, 5) for v in rms.tolist()))
    networks = {name: recipe.model[name] for name in _LEVELS}
    model = NestedModel(config, **networks)
    start_biases(model, crops)
    return UQDMTrainable(model, NestedObjective(), model_config(model))


def _universal(config: Mapping[str, Any]) -> Trainable:
    model = UniversalModel(UniversalConfig.from_dict(config))

    def objective(
        module: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        # Full precision on every device: the last steps need a resolution of 1e-3 noise levels.
        generator = torch.Generator(images.device).manual_seed(int(rng.integers(1 << 62)))
        loss, figures = module(images, generator)
        return loss, figures

    return UQDMTrainable(model, objective, model.config.to_dict())


def restore(path: Path, overrides: Mapping[str, Any] | None = None) -> Trainable:
    """Load the model of a run's folder, or a shipped model, with its float weights.

    Raises InvalidModelError, UnknownModelError.
    """
    wanted = ObjectiveConfig(**(overrides or {}))
    file = TrainingFile.find(path)
    config = file.config
    if config["quantizer"] == "universal":
        if wanted.train != "all":
            raise InvalidModelError(f"--train: {path} is not a nested model")
        trainable = _universal(config)
        file.load_into(trainable.model)
        return trainable
    if wanted.train in DECODERS:
        return HeadTrainable.of(path, file.path, wanted.train, wanted.kept_batches)
    networks = {name: config[name] for name in _LEVELS}
    model = NestedModel(NestedConfig.from_dict(config["nested"]), **networks)
    file.load_into(model)
    model.train_only(wanted.train)
    return UQDMTrainable(model, NestedObjective(), config)
