"""Named recipes of UQDM models, and how a model is made of one or goes on from its float weights.

``jobs/train.py --config NAME`` takes a recipe (see ``codec.trainable``). Losses have no settings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..trainable import Recipe, Trainable, TrainingFile
from ..training import TrainingConfig
from ..training_data import Pictures
from .counting import count_tables
from .nested import NestedConfig, to_bands
from .nested_model import NestedModel, NestedObjective
from .nested_scheme import NestedScheme
from .universal_model import UniversalConfig, UniversalModel

_STATISTICS = 128  # crops counted to start a nested model from

_NESTED = {"codec": "uqdm", "quantizer": "nested", "domain": "bands", "archive_layers": 5}
_PAPER = {"codec": "uqdm", "quantizer": "universal", "domain": "pixels"}
_PAPER_TRAINING = TrainingConfig(
    learning_rate=2e-4, warmup=1000, ema=0.9999, batch=16, crop=64, final_rate=1.0
)

RECIPES = {
    "small": Recipe(
        {**_NESTED, "network": {"channels": 192, "hidden": 384, "blocks": 6}},
        about="the shipped default: nested refinement in bands, 1.2 M parameters",
    ),
    "tiny": Recipe(
        {**_NESTED, "network": {"channels": 48, "hidden": 96, "blocks": 2}},
        about="nested, 0.2 M parameters: for trying things out",
    ),
    "paper-tiny": Recipe(
        {**_PAPER, "network": {"channels": 32, "blocks": 1}},
        _PAPER_TRAINING,
        "the paper's pixel-space model at the size of its tiny checkpoint",
    ),
    "paper-small": Recipe(
        {**_PAPER, "network": {"channels": 64, "blocks": 3}},
        _PAPER_TRAINING,
        "the paper's pixel-space model, 2 M parameters",
    ),
}
DEFAULT_RECIPE = "small"


class UQDMTrainable(Trainable):
    """A UQDM model with its loss."""

    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """See ``Trainable.tensors``; counted are a nested model's tables."""
        assert isinstance(self.model, NestedModel | UniversalModel)
        tensors = self.model.export()
        if counted_on and isinstance(self.model, NestedModel):
            scheme = NestedScheme(self.config, tensors, "cpu")
            counted = count_tables(scheme, counted_on)
            tensors |= {name: torch.from_numpy(array) for name, array in counted.items()}
        return tensors


def build(recipe: Recipe, pictures: Pictures, seed: int = 0) -> Trainable:
    """A new model. A nested one starts from statistics counted on the training pictures."""
    torch.manual_seed(seed)
    if recipe.model["quantizer"] == "universal":
        return _universal(recipe.model)
    rng = np.random.default_rng(seed)
    crops = [pictures.batch(16, 0.0, rng) for _ in range(_STATISTICS // 16)]
    config = NestedConfig()
    squares = [to_bands(x, config).square().mean((0, 1, 2)) for x in crops]
    rms = torch.stack(squares).mean(0).sqrt() * config.last_delta
    config = dataclasses.replace(config, band_rms=tuple(round(v, 5) for v in rms.tolist()))
    model = NestedModel(config, recipe.model.get("network"))
    model.start_from_statistics(crops)
    extra = {"archive_layers": recipe.model.get("archive_layers", config.levels)}
    return UQDMTrainable(model, NestedObjective(), model.model_config(**extra))


def _universal(config: Mapping[str, Any]) -> Trainable:
    model = UniversalModel(UniversalConfig.from_dict(config))

    def objective(
        module: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        # In full precision on every device: the last steps resolve 1e-3 of a noise level.
        generator = torch.Generator(images.device).manual_seed(int(rng.integers(1 << 62)))
        loss, figures = module(images, generator)
        return loss, figures

    return UQDMTrainable(model, objective, model.config.to_dict())


def restore(path: Path) -> Trainable:
    """The model of a run's directory, or of a shipped model's name, with its float weights.

    Raises InvalidModelError, UnknownModelError.
    """
    file = TrainingFile.find(path)
    config = file.config
    if config["quantizer"] == "universal":
        trainable = _universal(config)
    else:
        nested = NestedModel(NestedConfig.from_dict(config["nested"]), config["network"])
        trainable = UQDMTrainable(nested, NestedObjective(), config)
    file.load_into(trainable.model)
    return trainable
