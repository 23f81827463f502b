"""Named recipes of CDC models, and how a model is made of one or goes on from its weights.

A CDC model's file is its own training file: the networks in it are floats. ``--stage diffusion``
gives a model that has none a U-Net.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import Codec
from ..perception.bands import VISUAL_COLOURS, visual_weights
from ..training.data import Pictures
from ..training.loop import TrainingConfig
from ..training.recipe import Recipe, Trainable, TrainingFile, figures
from . import export
from .networks.diffusion import Diffusion
from .networks.light_transform import LEVELS, LightConfig
from .networks.model import CDCModel, LightModel, build_model
from .networks.paper_transform import PaperConfig
from .networks.unet import UNetConfig
from .objective import CDCObjective, ObjectiveConfig
from .scheme import CDCScheme

__all__ = ["DEFAULT_RECIPE", "RECIPES", "ObjectiveConfig", "build", "restore"]

_CODEC = {"codec": "cdc", "weights": "float"}  # training goes on from the model file itself
_STATISTICS = 24  # batches of 8 crops that the light transform's basis is computed of
_SCHEDULES = {"x": Diffusion("x", 8193, "cosine"), "eps": Diffusion("eps", 20_000, "linear")}
_LIGHT_UNET_DIM = 32
_FOR_EYES: dict[str, Any] = {
    "colours": VISUAL_COLOURS,
    "band_weights": tuple(visual_weights().tolist()),
}
_LIGHT_TRAINING = TrainingConfig(
    learning_rate=1e-3, final_rate=0.03, warmup=300, batch=4, crop=192, small_share=0.06
)
_PAPER_TRAINING = TrainingConfig(
    learning_rate=1e-4, final_rate=0.1, warmup=5000, ema=0.9995, batch=8, crop=256, small_share=0.0
)


def _light(compressor: LightConfig) -> dict[str, Any]:
    middle = compressor.qualities // 2
    return {**_CODEC, "compressor": compressor.to_dict(), "default_quality": middle}


def _paper(dim: int, parameterization: str = "x") -> dict[str, Any]:
    compressor = PaperConfig(dim=dim, context_channels=dim, fast_head=True)
    return {
        **_CODEC,
        "compressor": compressor.to_dict(),
        "unet": UNetConfig(dim=dim, context_channels=compressor.unet_contexts).to_dict(),
        "diffusion": _SCHEDULES[parameterization].to_dict(),
    }


RECIPES = {
    "small": Recipe(
        _light(LightConfig(rates=(0.00015, 0.0005, 0.0015, 0.0045, 0.0135), **_FOR_EYES)),
        _LIGHT_TRAINING,
        "the shipped default: the light transform at five rates, weighted for eyes, 5.6 M "
        "parameters, for CPUs",
    ),
    "small-flat": Recipe(
        _light(LightConfig(rates=(0.0016, 0.0032, 0.0064, 0.0128, 0.0256))),
        _LIGHT_TRAINING,
        "the same with equal weights: for the least squared error",
    ),
    "tiny": Recipe(
        _light(
            LightConfig(
                **_FOR_EYES,
                rates=(0.0015, 0.006),
                latents=48,
                fine=32,
                coarse=48,
                analysis=(1, 1),
                synthesis=(1, 1),
                hyper=32,
            )
        ),
        dataclasses.replace(_LIGHT_TRAINING, crop=128),
        "the light transform at two rates, weighted for eyes, 0.4 M parameters: for trying things "
        "out",
    ),
    "paper": Recipe(
        _paper(64),
        _PAPER_TRAINING,
        "the paper's networks at full width with a fast head, 54 M parameters: for GPUs",
        {"stage": "joint"},
    ),
    "paper-small": Recipe(
        _paper(24),
        _PAPER_TRAINING,
        "the paper's networks, an eighth of the parameters",
        {"stage": "joint"},
    ),
}
DEFAULT_RECIPE = "small"


class CDCTrainable(Trainable):
    """A CDC model with its loss."""

    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """See ``Trainable.tensors``; counted are residuals."""
        model = self.model
        assert isinstance(model, CDCModel)
        tensors = export.tensors(model, half=True)
        if not counted_on:
            return tensors
        scheme = CDCScheme(self.config, tensors, "cpu")
        sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
        for picture in counted_on:
            sizes.setdefault(picture.shape, []).append(picture)
        batches = [same[at : at + 16] for same in sizes.values() for at in range(0, len(same), 16)]
        counts = [
            np.sum([scheme.count_residuals(batch, quality) for batch in batches], 0)
            for quality in range(model.qualities)
        ]
        return export.tensors(model, np.stack(counts), half=True)

    def measure(self, codec: Codec, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
        """Figures at each quality: of the fast head, or of the diffusion where there is none."""
        assert isinstance(self.model, CDCModel)
        return {
            f"quality {q}": figures(codec, pictures, {"quality": q})
            for q in range(self.model.qualities)
        }


def build(
    recipe: Recipe, pictures: Pictures, seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Trainable:
    """A new model. A light one starts from the Karhunen-Loeve transform of training pictures."""
    torch.manual_seed(seed)
    objective = ObjectiveConfig(**{**recipe.objective, **(overrides or {})})
    config = _with_unet(json.loads(json.dumps(dict(recipe.model))), objective)
    if objective.parameterization and "diffusion" in config:
        config["diffusion"] = _SCHEDULES[objective.parameterization].to_dict()
    model = build_model(config)
    if isinstance(model, LightModel):
        rng = np.random.default_rng(seed)
        crops = (pictures.batch(8, 0.0, rng) for _ in range(_STATISTICS))
        model.compressor.start_from_statistics(x.float() / LEVELS - 1 for x in crops)
    return _trainable(model, config, objective)


def restore(path: Path, overrides: Mapping[str, Any] | None = None) -> Trainable:
    """The model of a run's directory, or of a shipped model's name, with its weights.

    Raises InvalidModelError, UnknownModelError.
    """
    file = TrainingFile.find(path)
    objective = ObjectiveConfig(**{**file.objective, **(overrides or {})})
    model = build_model(file.config)
    file.load_into(model)
    config = _with_unet(file.config, objective)
    if config is not file.config:
        whole = build_model(config)
        whole.load_state_dict(model.state_dict(), strict=False)
        model = whole
    return _trainable(model, config, objective)


def _with_unet(config: dict[str, Any], objective: ObjectiveConfig) -> dict[str, Any]:
    """The configuration, with a U-Net where the loss needs one."""
    if objective.stage == "transform" or "unet" in config:
        return config
    compressor = config["compressor"]
    if compressor.get("kind") == "light":
        unet = UNetConfig(
            dim=objective.unet_dim or _LIGHT_UNET_DIM,
            dim_mults=(2, 3, 4),
            context_channels=(48, 48, 96),
            channels=48,
            outer_kernel=3,
            finest_skip=True,
        )
    else:
        paper = PaperConfig.from_dict(compressor)
        dim = objective.unet_dim or paper.dim
        unet = UNetConfig(dim=dim, context_channels=paper.unet_contexts)
    diffusion = _SCHEDULES[objective.parameterization or "x"]
    return {**config, "unet": unet.to_dict(), "diffusion": diffusion.to_dict()}


def _trainable(model: CDCModel, config: dict[str, Any], objective: ObjectiveConfig) -> CDCTrainable:
    if objective.stage == "transform" and not model.has_fast_head:
        raise ValueError("--stage transform trains a fast head, and the model has none: try joint")
    if objective.stage == "diffusion":
        model.requires_grad_(False)
        assert model.unet is not None
        model.unet.requires_grad_(True)
    elif objective.stage == "transform" and model.unet is not None:
        model.unet.requires_grad_(False)
    settings = dataclasses.asdict(objective)
    del settings["lpips_weights"]  # a local path
    return CDCTrainable(model, CDCObjective(objective), config, settings)
