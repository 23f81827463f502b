"""Recipes of the toy codec: a loss with settings, a frozen part, a buffer, figures per quality."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from codec.base import Codec
from codec.training.data import Pictures
from codec.training.loop import TrainingConfig
from codec.training.recipe import Recipe, Trainable, TrainingFile, figures


@dataclass(frozen=True)
class ObjectiveConfig:
    rate_weight: float = field(default=0.5, metadata={"help": "worth of a bit, 100 % at 1"})
    stage: Literal[1, 2] = 1
    perceptual: bool = False
    lpips_weights: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "lpips_weights"}


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.full((3,), 0.1), requires_grad=False)
        self.counted: Tensor
        self.register_buffer("counted", torch.full((3,), 1 / 3))
        self.register_buffer("calls", torch.tensor(7))


class ToyTrainable(Trainable):
    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        return {"gain": torch.tensor(1)}

    def measure(self, codec: Codec, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
        return {
            f"quality {quality}": figures(codec, pictures, {"quality": quality})
            for quality in (0, 1)
        }


RECIPES = {
    "toy": Recipe({"codec": "cdc"}, TrainingConfig(warmup=1), "a toy", {"rate_weight": 0.25}),
    "other": Recipe({"codec": "cdc"}, TrainingConfig(beta2=0.9), "another toy"),
}
DEFAULT_RECIPE = "toy"


def build(
    recipe: Recipe, pictures: Pictures, seed: int, overrides: Mapping[str, Any]
) -> ToyTrainable:
    return _trainable(recipe.model, ObjectiveConfig(**{**recipe.objective, **overrides}))


def restore(path: Path, overrides: Mapping[str, Any]) -> ToyTrainable:
    file = TrainingFile.find(path)
    trainable = _trainable(file.config, ObjectiveConfig(**{**file.objective, **overrides}))
    file.load_into(trainable.model)
    return trainable


def _trainable(config: Mapping[str, Any], settings: ObjectiveConfig) -> ToyTrainable:
    def objective(
        model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, ToyModel)
        loss = settings.rate_weight * (model.scale * model.frozen - 2).square().sum()
        return loss, {"loss": float(loss.detach())}

    return ToyTrainable(ToyModel(), objective, dict(config), settings.to_json())
