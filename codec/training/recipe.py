"""The base of all recipes: a model in training, its files and its figures.

``strata train --codec NAME`` uses the module ``codec.NAME.recipes``, which has::

    RECIPES: dict[str, Recipe]              --config chooses one
    DEFAULT_RECIPE: str                     the name of the default one
    build(recipe, pictures, seed)           a new model                         -> Trainable
    restore(path)                           the model of a run's folder,        -> Trainable
                                            or a shipped model
and, if its loss has settings::

    ObjectiveConfig                         a frozen dataclass; its fields become flags (flags.py)
    build(recipe, pictures, seed, overrides)
    restore(path, overrides)                overrides: the fields that were given, by name

``restore`` reads ``TrainingFile.find(path)``, makes the model of its ``config`` and the loss of its
``objective`` with ``overrides``, and calls ``load_into``. With --init, the module is that of the
file's ``config["codec"]``.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..base import Codec
from ..errors import InvalidModelError
from ..images import metrics
from ..models import zoo
from .loop import Objective, Save, TrainingConfig

TRAINING_FILE = "training.safetensors"
_CONFIG, _OBJECTIVE = "strata-training", "strata-objective"


@dataclass(frozen=True)
class Recipe:
    """How to make and train a model.

    Attributes:
        model: a model file's configuration, without tables that are counted on the data.
        training: how long and how fast.
        about: one line for --help.
        objective: settings of the loss that differ from ``ObjectiveConfig()``.
    """

    model: Mapping[str, Any]
    training: TrainingConfig = field(default_factory=TrainingConfig)
    about: str = ""
    objective: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trainable(ABC):
    """A model with its loss, and the configuration for its file.

    Attributes:
        objective_config: settings of the loss for ``restore``, as JSON values. They go into the
            training file and the card, so they must not contain local paths.
    """

    model: nn.Module
    objective: Objective
    config: dict[str, Any]
    objective_config: Mapping[str, Any] = field(default_factory=dict)

    shared: ClassVar[bool] = True  # whether a team of processes can train it

    @abstractmethod
    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """The content of the model file for the current weights, of a model on the CPU.

        Tables that are counted rather than learned are counted on ``counted_on``, pictures
        ``(H, W, 3) uint8``.
        """

    def write(
        self, out: Path, weights: Mapping[str, Tensor], counted_on: Sequence[np.ndarray]
    ) -> None:
        """Write the model file and the training file with these weights into a run's folder."""
        # On the CPU, so that the file does not depend on the device of the training.
        finished = copy.deepcopy(self.model).cpu()
        finished.load_state_dict(weights)
        tensors = replace(self, model=finished).tensors(counted_on)
        zoo.write_model(out / zoo.MODEL_FILE, self.config, tensors)
        write_training_file(out / TRAINING_FILE, self, weights)

    def card_file(self, out: Path) -> Path:
        """The path of a run's card."""
        return out / zoo.CARD_FILE

    def measure(self, codec: Codec, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
        """Figures of the finished model file, loaded as ``codec``, for the card and the log."""
        return figures(codec, pictures)


@dataclass(frozen=True)
class TrainingFile:
    """Float weights for further training, in a file beside the model file.

    Attributes:
        config: the model file's configuration.
        objective: the loss's settings, ``Trainable.objective_config``.
    """

    path: Path
    config: dict[str, Any]
    objective: dict[str, Any]

    @classmethod
    def find(cls, path: Path) -> "TrainingFile":
        """The training file in a run's folder, or of a shipped model.

        A model file with float networks (``"weights": "float"`` in its configuration) is its own
        training file. Raises InvalidModelError if there is no training file, UnknownModelError if
        there is no model.
        """
        file = path / TRAINING_FILE
        if not file.is_file():
            file = zoo.model_file(path).with_suffix(".training.safetensors")
        if not file.is_file():
            model = zoo.model_file(path)
            config, _ = zoo.read_model(model)
            if config.get("weights") == "float":
                return cls(model, config, {})
            raise InvalidModelError(f"{path} has no {TRAINING_FILE}: training cannot go on from it")
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
            config = json.loads(metadata.get(_CONFIG, "null"))
            objective = json.loads(metadata.get(_OBJECTIVE, "{}"))
        except (SafetensorError, ValueError) as error:
            raise InvalidModelError(f"{file} is damaged: {error}") from error
        if not isinstance(config, dict) or "codec" not in config:
            raise InvalidModelError(f"{file} is not a Strata training file")
        return cls(file, config, objective)

    @property
    def codec(self) -> str:
        """The codec family whose recipes it belongs to."""
        return str(self.config["codec"])

    def load_into(self, model: nn.Module) -> None:
        """Set a model's parameters and persistent buffers. Raises InvalidModelError."""
        values = {
            n: v.float() if v.is_floating_point() else v for n, v in load_file(self.path).items()
        }
        try:
            model.load_state_dict(values, strict=False)
        except RuntimeError as error:
            raise InvalidModelError(
                f"{self.path} does not fit its own configuration: {error}"
            ) from error
        missing = model.state_dict().keys() - values.keys()
        if missing:
            raise InvalidModelError(f"{self.path} lacks {', '.join(sorted(missing))}")


def write_training_file(path: Path, trainable: Trainable, weights: Mapping[str, Tensor]) -> None:
    """Write parameters in half precision, and buffers, which are few, as they are."""
    learnt = {name for name, _ in trainable.model.named_parameters()}
    stored = {
        name: (value.detach().half() if name in learnt else value.detach()).cpu().contiguous()
        for name, value in weights.items()
    }
    metadata = {_CONFIG: json.dumps(trainable.config, sort_keys=True)}
    if trainable.objective_config:
        metadata[_OBJECTIVE] = json.dumps(dict(trainable.objective_config), sort_keys=True)

    zoo.write_tensors(path, stored, metadata)


def figures(
    codec: Codec,
    pictures: Sequence[np.ndarray],
    encode_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Rate and PSNR after each layer, from real streams: ``bpp`` (bits per pixel), ``psnr`` (dB).

    Both are of all pictures together: total bits over total pixels, and PSNR of the mean squared
    error over pixels. PSNR is None if all pictures are exact.
    """
    pixels = sum(x.shape[0] * x.shape[1] for x in pictures)
    streams = codec.encode(pictures, **(encode_options or {}))
    prefixes = codec.decode_progressively(streams)
    bpp: list[float] = []
    psnr: list[float | None] = []
    for layers, decoded in enumerate(prefixes, start=1):
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
    """The function ``save`` of ``train``: writes the model files and measures on ``validation``."""
    history: list[dict[str, Any]] = []
    log = out / "log.jsonl"
    if log.exists():
        history = [json.loads(line) for line in log.read_text().splitlines()]

    def save(weights: dict[str, Tensor], so_far: dict[str, Any]) -> dict[str, Any]:
        trainable.write(out, weights, counted_on)
        measured = {}
        if validation:
            codec = zoo.load_codec(out / zoo.MODEL_FILE, device)
            measured = trainable.measure(codec, validation)
        history.append({"step": so_far["steps"], "hours": so_far["hours"], **measured})
        objective = {"objective": dict(trainable.objective_config)}
        whole = {
            **card,
            **(objective if trainable.objective_config else {}),
            **so_far,
            "validation": measured,
            "learning_curve": history,
        }
        text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
        zoo.write_whole(trainable.card_file(out), lambda path: path.write_text(text))
        return measured

    return save


def centre_crops(pictures: Sequence[np.ndarray], side: int = 256) -> list[np.ndarray]:
    """The middle of each picture, at most ``side`` pixels per side, to follow a training."""
    out = []
    for picture in pictures:
        y, x = (max(n - side, 0) // 2 for n in picture.shape[:2])
        out.append(np.ascontiguousarray(picture[y : y + side, x : x + side]))
    return out
