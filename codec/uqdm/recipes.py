"""Named recipes of UQDM models, and how a model is made of one or goes on from its float weights.

``jobs/train.py --config NAME`` takes a recipe (see ``codec.training.recipe``).
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
from ..training.data import Pictures
from ..training.loop import TrainingConfig
from ..training.recipe import Recipe, Trainable, TrainingFile
from .nested.model import NestedModel
from .nested.objective import NestedObjective
from .nested.pixel_network import has_heads
from .nested.schedule import NestedConfig, Passes, to_bands
from .nested.scheme import NestedScheme
from .nested.table_counts import count_tables
from .paper import calibration
from .paper.model import UniversalConfig, UniversalModel
from .paper.scheme import UniversalScheme

_STATISTICS = 128  # crops counted to start a nested model from

_FIRST_ORDER = (6, 1)  # level 0's bands: one digit in 2,000 blocks lies beyond
_FIRST_NETWORK = {"channels": 48, "hidden": 96, "blocks": 2}

# Level 0 has most of its bits where no neighbour is known yet, level 1 still many: see
# docs/experiments.md. A pass more of a later level would cost more time than it saves bits.
_EVEN = (0, 1, 2, 3)
_PASSES: Passes = (
    (*(("low", (colour,)) for colour in range(5)), ("high", (*_EVEN, 4))),
    (("low", (0, 1, 2)), ("low", (3,)), ("low", (4,)), ("high", _EVEN), ("high", (4,))),
    *((("low", _EVEN), ("low", (4,)), ("high", _EVEN), ("high", (4,))),) * 2,
    *((("all", _EVEN), ("all", (4,))),) * 2,
)

_PIXEL_NETWORK = {
    "channels": 64,
    "hidden": 256,
    "blocks": 6,
    "heads": 64,
    "tuned": True,
    "bounded": True,
}
PIXELS_AFTER = 4  # levels

_NESTED = {"codec": "uqdm", "quantizer": "nested", "domain": "bands", "archive_layers": 5}
_PAPER = {"codec": "uqdm", "quantizer": "universal", "domain": "pixels"}
_PAPER_TRAINING = TrainingConfig(
    learning_rate=2e-4, warmup=1000, ema=0.9999, batch=16, crop=64, final_rate=1.0
)

RECIPES = {
    "small": Recipe(
        {
            **_NESTED,
            "network": {"channels": 192, "hidden": 384, "blocks": 6},
            "first_network": _FIRST_NETWORK,
        },
        about="the shipped default: nested refinement in bands, 1.3 M parameters",
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


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is trained. It is a choice of a run and not kept with the model."""

    train: Literal["all", "first", "pixels"] = field(
        default="all",
        metadata={
            "help": "first: the light network of the first layer alone, pixels: the network of the "
            "lossless layer alone, which a nested model that has none gets (pixels: in the place "
            f"of all levels after {PIXELS_AFTER}); everything else stays as --init has it"
        },
    )
    new_passes: bool = field(
        default=False,
        metadata={
            "help": "give a nested model whose blocks are coloured as a checkerboard the passes of "
            "today's recipes; what the networks do in passes that it had not is to be learnt"
        },
    )


class UQDMTrainable(Trainable):
    """A UQDM model with its loss."""

    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """See ``Trainable.tensors``.

        Counted are a nested model's tables, measured a universal one's guards.
        """
        assert isinstance(self.model, NestedModel | UniversalModel)
        tensors = self.model.export()
        if isinstance(self.model, UniversalModel):
            universal = UniversalScheme(self.config, tensors, "cpu")
            return tensors | {"guards": calibration.quick(universal, counted_on).guards}
        if counted_on:
            scheme = NestedScheme(self.config, tensors, "cpu")
            counted = count_tables(scheme, counted_on)
            tensors |= {name: torch.from_numpy(array) for name, array in counted.items()}
        return tensors


def build(
    recipe: Recipe, pictures: Pictures, seed: int = 0, overrides: Mapping[str, Any] | None = None
) -> Trainable:
    """A new model. A nested one starts from statistics counted on the training pictures.

    Raises InvalidModelError where ``overrides`` ask for a part of a model to be trained.
    """
    if ObjectiveConfig(**(overrides or {})) != ObjectiveConfig():
        raise InvalidModelError("--train and --new-passes go on from a model: name one with --init")
    torch.manual_seed(seed)
    if recipe.model["quantizer"] == "universal":
        return _universal(recipe.model)
    rng = np.random.default_rng(seed)
    crops = [pictures.batch(16, 0.0, rng) for _ in range(_STATISTICS // 16)]
    first = recipe.model.get("first_network")
    order = _FIRST_ORDER if first else None
    config = NestedConfig(first_order=order, colours=5, passes=_PASSES)
    squares = [to_bands(x, config).square().mean((0, 1, 2)) for x in crops]
    rms = torch.stack(squares).mean(0).sqrt() * config.last_delta
    config = dataclasses.replace(config, band_rms=tuple(round(v, 5) for v in rms.tolist()))
    model = NestedModel(config, recipe.model.get("network"), first)
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


def restore(path: Path, overrides: Mapping[str, Any] | None = None) -> Trainable:
    """The model of a run's directory, or of a shipped model's name, with its float weights.

    Raises InvalidModelError, UnknownModelError.
    """
    wanted = ObjectiveConfig(**(overrides or {}))
    part = wanted.train
    file = TrainingFile.find(path)
    config = file.config
    if config["quantizer"] == "universal":
        if wanted != ObjectiveConfig():
            raise InvalidModelError(f"--train, --new-passes: {path} is not a nested model")
        trainable = _universal(config)
        file.load_into(trainable.model)
        return trainable
    if not has_heads(config.get("pixel_network", {"heads": 0})):
        raise InvalidModelError(
            f"{path}: its lossless layer is of a former kind, which decodes but is trained no "
            "more; go on from the model that it was made of, with --train pixels"
        )
    settings = NestedConfig.from_dict(config["nested"])
    model = NestedModel(
        settings, config["network"], config.get("first_network"), config.get("pixel_network")
    )
    file.load_into(model)
    if wanted.new_passes and model.config.colours == 2:
        model = with_new_passes(model)
        config = {**config, **model.model_config()}
    if part == "pixels":
        if model.pixel_network is None:
            model = with_pixel_network(model)
        else:
            own = model.pixel_network.config
            model.pixel_network.config = dataclasses.replace(own, tuned=True, bounded=True)
        config = {**config, **model.model_config(archive_layers=model.config.levels)}
        model.train_pixels_only()
    if part == "first":
        if model.first_network is None:
            model = with_first_network(model)
            config = {**config, **model.model_config()}
        model.train_first_only()
    return UQDMTrainable(model, NestedObjective(), config)


def with_new_passes(model: NestedModel) -> NestedModel:
    """The same model in the passes of today's recipes, each begun as one that it had.

    A pass of blocks of even sum begins as that of the checkerboard's first colour.
    """
    torch.manual_seed(0)
    old = model.config
    config = dataclasses.replace(old, colours=5, passes=_PASSES[: old.levels])
    colours = (0, 0, 0, 0, 1)  # of the checkerboard

    def begun_as(level: int, number: int) -> int:
        which = config.passes[level][number][0]
        here = {colours[c] for c in config.pass_colours(level, number)}
        for before, (bands, _) in enumerate(old.passes[level]):
            if bands == which and here <= {*old.pass_colours(level, before)}:
                return old.step_of(level, before)
        raise InvalidModelError("--new-passes: the model has other passes than any recipe had")

    steps = [*(begun_as(*step) for step in config.steps()), old.num_steps - 1]
    first = [*steps[: len(config.passes[0])], len(old.passes[0])]
    network = {**model.network.config.to_dict(), "steps": len(steps), "colours": config.colours}
    light, own = model.first_network, model.pixel_network
    sizes = {"channels", "hidden", "blocks"}
    new = NestedModel(
        config,
        network,
        None if light is None else {k: v for k, v in vars(light.config).items() if k in sizes},
        None if own is None else own.config.to_dict(),
    )
    weights = model.state_dict()
    rows = steps if light is None else [*steps, old.num_steps]
    weights["bias"] = weights["bias"][rows]
    for prefix, chosen in (("network.", steps), ("first_network.", first)):
        for name in [name for name in weights if name.startswith(prefix)]:
            if name.endswith("stem_bias"):
                weights[name] = weights[name][chosen][:, list(colours)]
            elif name.endswith(("gain", ".bias")):
                weights[name] = weights[name][chosen]
    new.load_state_dict(weights)
    return new


def with_first_network(model: NestedModel) -> NestedModel:
    """The same model with a light network for level 0, which has everything to learn yet."""
    torch.manual_seed(0)
    config = dataclasses.replace(model.config, first_order=_FIRST_ORDER)
    own = None if model.pixel_network is None else model.pixel_network.config
    new = NestedModel(
        config,
        model.network.config.to_dict(),
        _FIRST_NETWORK,
        None if own is None else own.to_dict(),
    )
    weights = model.state_dict()
    preview = weights["bias"][new.layout.steps - 1]  # previews start from full decodes' shifts
    weights["bias"] = torch.cat([weights["bias"], preview[None]])
    new.load_state_dict(weights, strict=False)
    return new


def with_pixel_network(model: NestedModel, levels: int = PIXELS_AFTER) -> NestedModel:
    """The first levels of a model, and a new network for the pixels after them."""
    torch.manual_seed(0)
    old = model.config
    levels = min(levels, old.levels)
    config = dataclasses.replace(
        old,
        levels=levels,
        passes=old.passes[:levels],
        ahead=old.ahead or levels < old.levels,
    )
    network = {**model.network.config.to_dict(), "steps": config.num_steps}
    light = model.first_network
    first = None if light is None else light.config.to_dict()
    new = NestedModel(config, network, first, _PIXEL_NETWORK)
    kept = new.state_dict()
    for name, value in model.state_dict().items():
        if name == "bias" and model.first_network is not None:  # its last row is the previews'
            value = torch.cat([value[: config.num_steps], value[-1:]])
        if name in kept:
            kept[name] = value[: len(kept[name])]
    new.load_state_dict(kept)
    return new
