"""Named recipes for training, and what turns trained weights into a model file with figures.

A recipe is a model's configuration and how to train it. ``jobs/train.py --config NAME`` takes one;
``build`` makes a new model of it, ``restore`` one that goes on from a run or a shipped model.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import metrics, zoo
from ..errors import InvalidModelError
from ..training_data import Pictures
from .counting import count_tables
from .nested import NestedConfig, to_bands
from .nested_model import NestedModel, NestedObjective
from .nested_scheme import NestedScheme
from .training import Objective, Save, TrainingConfig, save_atomically
from .universal_model import UniversalConfig, UniversalModel

TRAINING_FILE = "training.safetensors"
_METADATA = "strata-training"
_STATISTICS = 128  # crops counted to start a nested model from


_TRAINING = TrainingConfig()


@dataclass(frozen=True)
class Recipe:
    """``model`` is a model file's configuration without what is counted on the data."""

    model: dict[str, Any]
    training: TrainingConfig = _TRAINING
    about: str = ""
    archive_layers: int | None = None


_NESTED = {"codec": "uqdm", "quantizer": "nested", "domain": "bands"}
_PAPER = {"codec": "uqdm", "quantizer": "universal", "domain": "pixels"}
_PAPER_TRAINING = TrainingConfig(
    learning_rate=2e-4, warmup=1000, ema=0.9999, batch=16, crop=64, final_rate=1.0
)

RECIPES = {
    "small": Recipe(
        {**_NESTED, "network": {"channels": 192, "hidden": 384, "blocks": 6}},
        about="the shipped default: nested refinement in bands, 1.2 M parameters",
        archive_layers=5,
    ),
    "tiny": Recipe(
        {**_NESTED, "network": {"channels": 48, "hidden": 96, "blocks": 2}},
        about="nested, 0.2 M parameters: for trying things out",
        archive_layers=5,
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


@dataclass(frozen=True)
class Trainable:
    """A model with its loss and the configuration its file will carry."""

    model: nn.Module
    objective: Objective
    config: dict[str, Any]

    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """Content of the model file for the weights as they are.

        A nested model's tables are counted on the pictures ``counted_on``.
        """
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
    extra = {"archive_layers": recipe.archive_layers or config.levels}
    return Trainable(model, NestedObjective(), model.model_config(**extra))


def _universal(config: Mapping[str, Any]) -> Trainable:
    model = UniversalModel(UniversalConfig.from_dict(config))

    def objective(
        module: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        # In full precision on every device: the last steps resolve 1e-3 of a noise level.
        generator = torch.Generator(images.device).manual_seed(int(rng.integers(1 << 62)))
        loss, figures = module(images, generator)
        return loss, figures

    return Trainable(model, objective, model.config.to_dict())


def restore(path: Path) -> Trainable:
    """The model of a run's directory, or of a shipped model's name, with its float weights."""
    file = path / TRAINING_FILE
    if not file.is_file():
        file = zoo.model_file(path).with_suffix(".training.safetensors")
    if not file.is_file():
        raise InvalidModelError(f"{path} has no {TRAINING_FILE}: training cannot go on from it")
    with safe_open(file, framework="pt") as opened:
        config = json.loads((opened.metadata() or {}).get(_METADATA, "null"))
    if not isinstance(config, dict):
        raise InvalidModelError(f"{file} is not a Strata training file")
    if config["quantizer"] == "universal":
        trainable = _universal(config)
    else:
        nested = NestedModel(NestedConfig.from_dict(config["nested"]), config["network"])
        trainable = Trainable(nested, NestedObjective(), config)
    values = {name: value.float() for name, value in load_file(file).items()}
    try:
        trainable.model.load_state_dict(values, strict=False)
        missing = {n for n, _ in trainable.model.named_parameters()} - values.keys()
    except RuntimeError as error:
        raise InvalidModelError(f"{file} does not fit its own configuration: {error}") from error
    if missing:
        raise InvalidModelError(f"{file} lacks {', '.join(sorted(missing))}")
    return trainable


def figures(model_path: Path, pictures: Sequence[np.ndarray], device: str) -> dict[str, Any]:
    """Real bytes and PSNR of every prefix of layers: ``bpp`` (bits per pixel), ``psnr`` (dB).

    Both are of all pictures together: total bits over total pixels, PSNR of the mean squared error
    over pixels; the PSNR of the exact last layer is null.
    """
    codec = zoo.load_codec(model_path, device)
    pixels = sum(x.shape[0] * x.shape[1] for x in pictures)
    streams = codec.encode(pictures)
    bpp: list[float] = []
    psnr: list[float | None] = []
    for layers, decoded in enumerate(codec.decode_progressively(streams), start=1):
        bpp.append(round(8 * sum(s.truncate(layers).nbytes for s in streams) / pixels, 4))
        errors = [metrics.mse(a, b) * a.size for a, b in zip(pictures, decoded, strict=True)]
        error = sum(errors) / (3 * pixels)
        psnr.append(round(float(10 * np.log10(255**2 / error)), 3) if error else None)
    return {"bpp": bpp, "psnr": psnr}


def saver(
    trainable: Trainable,
    out: Path,
    validation: Sequence[np.ndarray],
    device: str,
    card: Mapping[str, Any],
    counted_on: Sequence[np.ndarray] = (),
) -> Save:
    """What ``train`` calls to write the model files and measure them on ``validation``."""
    history: list[dict[str, Any]] = []
    log = out / "log.jsonl"
    if log.exists():
        history = [json.loads(line) for line in log.read_text().splitlines()]

    def save(weights: dict[str, Tensor], so_far: dict[str, Any]) -> dict[str, Any]:
        current = {n: p.detach().clone() for n, p in trainable.model.named_parameters()}
        trainable.model.load_state_dict(weights, strict=False)
        try:
            tensors = trainable.tensors(counted_on)
        finally:
            trainable.model.load_state_dict(current, strict=False)
        model_path = out / zoo.MODEL_FILE
        zoo.write_model(model_path, trainable.config, tensors)
        half = {name: value.detach().cpu().half().contiguous() for name, value in weights.items()}
        metadata = {_METADATA: json.dumps(trainable.config, sort_keys=True)}
        save_atomically(out / TRAINING_FILE, lambda path: save_file(half, path, metadata))
        measured = figures(model_path, validation, device) if validation else {}
        history.append({"step": so_far["steps"], "hours": so_far["hours"], **measured})
        whole = {**card, **so_far, "validation": measured, "learning_curve": history}
        text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
        save_atomically(out / zoo.CARD_FILE, lambda path: path.write_text(text))
        return measured

    return save


def centre_crops(pictures: Sequence[np.ndarray], side: int = 256) -> list[np.ndarray]:
    """The middle of each picture, at most ``side`` on a side: enough to follow a training."""
    out = []
    for picture in pictures:
        y, x = (max(n - side, 0) // 2 for n in picture.shape[:2])
        out.append(np.ascontiguousarray(picture[y : y + side, x : x + side]))
    return out
