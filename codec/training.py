"""The training loop of every codec: plain torch, no Ray, one machine. Adam, EMA, resume.

A run directory holds ``checkpoint.pt`` (to resume), ``model.safetensors`` (to encode and decode),
``training.safetensors`` (float weights, to go on from with ``--init``), ``card.json`` (data, steps,
hours, figures) and ``log.jsonl``. Every file is written whole and then renamed.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import load_checkpoint
from .errors import InvalidModelError
from .training_data import Log, Pictures

Objective = Callable[[nn.Module, Tensor, np.random.Generator], tuple[Tensor, dict[str, float]]]
Save = Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train. ``hours`` or ``steps``, whichever ends first."""

    steps: int = 100_000
    hours: float = 1e9
    learning_rate: float = 1.5e-3
    final_rate: float = 0.02  # of learning_rate, reached by a cosine
    warmup: int = 200
    beta1: float = 0.9
    beta2: float = 0.98
    ema: float = 0.999
    gradient_clip: float = 1.0
    batch: int = 8
    crop: int = 128
    small_share: float = 0.25  # of batches made of pictures smaller than a crop
    validate_minutes: float = 10.0
    checkpoint_minutes: float = 3.0
    seed: int = 0


class Ema:
    """Moving average of the parameters that are trained, with a short memory at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in _trained(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in _trained(module).items():
            self.values[name].lerp_(parameter, 1 - decay)

    def restore(self, values: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's averages. Raises ValueError where one is missing."""
        missing = self.values.keys() - values.keys()
        if missing:
            raise ValueError(f"no averages of {', '.join(sorted(missing))}")
        self.values = {name: values[name] for name in self.values}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state, averaged where it is trained: frozen parameters and buffers too."""
        return {**module.state_dict(), **self.values}


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine to ``final_rate`` over the run's ``progress`` in [0, 1]."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    scale = config.final_rate + (1 - config.final_rate) * cosine
    return config.learning_rate * scale * min(1.0, (step + 1) / config.warmup)


def save_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path``, then rename: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write(partial)
    os.replace(partial, path)


def train(
    model: nn.Module,
    objective: Objective,
    pictures: Pictures,
    config: TrainingConfig,
    out: Path,
    save: Save,
    *,
    device: str = "cpu",
    log: Log = print,
) -> None:
    """Train ``model`` until ``config`` says to stop; resume where ``out`` has a checkpoint.

    Parameters that do not require a gradient stay as they are and are not averaged.

    Args:
        objective: loss and figures to log, of a model, pictures ``(B, 3, H, W) uint8`` on
            ``device``, and randomness that is the same for a given step of a given seed. One that
            wants mixed precision enters ``torch.autocast`` itself; one with networks of its own is
            an ``nn.Module``, and moved to ``device``.
        save: called with the model's state, trained parameters averaged, and the card so far;
            writes the model files and returns validation figures.

    Raises InvalidModelError where the checkpoint belongs to another configuration, ValueError
    where there is nothing to train on.
    """
    if not len(pictures):
        raise ValueError("no training pictures: check --data")
    out.mkdir(parents=True, exist_ok=True)
    model.to(device)
    if isinstance(objective, nn.Module):
        objective.to(device)
    trained = list(_trained(model).values())
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=betas)
    ema, step, seconds = Ema(model, config.ema), 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, device)
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ema.restore(state["ema"])
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise InvalidModelError(
                f"{checkpoint} belongs to another configuration: use a new --out"
            ) from error
        step, seconds = state["step"], state["seconds"]
        log(f"resumed {checkpoint} at step {step}, {seconds / 3600:.2f} h")
    begin, first = time.time() - seconds, step
    next_checkpoint = seconds + 60 * config.checkpoint_minutes
    next_validation = seconds + 60 * config.validate_minutes

    def elapsed() -> float:
        return time.time() - begin

    def checkpoint_now() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.values,
            "step": step,
            "seconds": elapsed(),
        }
        save_atomically(checkpoint, lambda path: torch.save(state, path))

    def measure() -> None:
        card = {
            "steps": step,
            "hours": round(elapsed() / 3600, 3),
            "device": torch.cuda.get_device_name() if "cuda" in device else "CPU",
            "threads": torch.get_num_threads(),
            "pictures": dict(sorted(pictures.sources.items())),
            "training": asdict(config),
        }
        figures = save(ema.weights(model), card)
        with (out / "log.jsonl").open("a") as lines:
            entry = {"step": step, "hours": round(elapsed() / 3600, 3), **figures}
            lines.write(json.dumps(entry) + "\n")
        log(f"step {step} {elapsed() / 60:.1f} min {json.dumps(figures)}")

    smooth: dict[str, float] = {}
    while step < config.steps and elapsed() < 3600 * config.hours:
        rng = np.random.default_rng([config.seed, step])
        progress = max(step / config.steps, elapsed() / 3600 / config.hours)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, progress)
        batch = pictures.batch(config.batch, config.small_share, rng).to(device)
        loss, figures = objective(model, batch, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, config.gradient_clip)
        if torch.isfinite(norm):  # a rare overflow must not poison the weights
            optimizer.step()
            ema.update(model, step)
        step += 1
        for name, value in figures.items():
            smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
        if step % 100 == 0:
            rate = (step - first) / max(elapsed() - seconds, 1e-9)
            shown = " ".join(f"{n} {v:.3f}" for n, v in smooth.items())
            log(f"step {step} {elapsed() / 60:.1f} min {rate:.2f} steps/s {shown}")
        if elapsed() > next_checkpoint:
            checkpoint_now()
            next_checkpoint = elapsed() + 60 * config.checkpoint_minutes
        if elapsed() > next_validation:
            measure()
            next_validation = elapsed() + 60 * config.validate_minutes
    checkpoint_now()
    measure()
