"""The training loop of all codecs, in plain torch: Adam, EMA, resuming, one process or a team.

A run's folder holds ``checkpoint-STEP.pt`` (to resume), ``model.safetensors`` (to encode and
decode), ``training.safetensors`` (float weights for ``--init``), ``card.json`` (data, steps, hours,
figures) and ``log.jsonl``. Every file is written whole and then renamed.

All random numbers of a step depend only on the seed, the step and the number of the batch in the
step. So a resumed run draws the same numbers, and no state of a generator must be saved.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidModelError
from ..models.safe_pickle import load_checkpoint
from .data import Log, Pictures, ShardWindow
from .distributed import ALONE, Team
from .run_folder import RunFolder

Objective = Callable[[nn.Module, Tensor, np.random.Generator], tuple[Tensor, dict[str, float]]]
Save = Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Any]]
Track = Callable[[int, Mapping[str, Any]], None]

LOG_EVERY = 100  # steps
_NOT_VALIDATED = "nothing was validated: --data has too few pictures (name others: --validate)"


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train: until ``hours`` or ``steps``, whichever ends first."""

    steps: int = field(default=100_000, metadata={"help": "the last step"})
    hours: float = field(
        default=1e9, metadata={"help": "training time, with earlier starts", "shown": "no limit"}
    )
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Adam's, at its highest"})
    final_rate: float = field(
        default=0.02, metadata={"help": "share of --learning-rate that a cosine ends with"}
    )
    warmup: int = field(default=200, metadata={"help": "steps in which the learning rate rises"})
    beta1: float = field(default=0.9, metadata={"help": "Adam's memory of gradients"})
    beta2: float = field(default=0.98, metadata={"help": "Adam's memory of their squares"})
    ema: float = field(default=0.999, metadata={"help": "memory of the averaged weights"})
    gradient_clip: float = field(
        default=1.0, metadata={"help": "longer gradients are cut to this length"}
    )
    batch: int = field(
        default=8, metadata={"help": "pictures at once, in each worker where there are several"}
    )
    accumulate: int = field(
        default=1, metadata={"help": "batches whose gradients are averaged for one step"}
    )
    crop: int = field(default=128, metadata={"help": "side of the squares to train on, in pixels"})
    small_share: float = field(
        default=0.25, metadata={"help": "share of batches made of pictures smaller than a crop"}
    )
    counted_crops: int = field(
        default=128,
        metadata={
            "help": "crops on which a model's tables are counted, whenever its file is written"
        },
    )
    shards_at_once: int = field(
        default=0,
        metadata={
            "help": "shards of its share that each worker trains on at a time, for corpora larger "
            "than memory, which need --validate; 0: all"
        },
    )
    steps_per_shard: int = field(
        default=200,
        metadata={"help": "steps after which the next shard takes the place of the oldest"},
    )
    validate_minutes: float = field(
        default=10.0, metadata={"help": "minutes between validations, which also write the model"}
    )
    checkpoint_minutes: float = field(
        default=3.0, metadata={"help": "minutes between checkpoints, from which a run goes on"}
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "how many of the last ones"})
    seed: int = field(default=0, metadata={"help": "of all random numbers"})


class Ema:
    """Exponential moving average of the trained parameters, which starts with a short memory."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in _trained(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in _trained(module).items():
            self.values[name].lerp_(parameter, 1 - decay)

    def restore(self, values: dict[str, Tensor]) -> None:
        """Restore the averages of a checkpoint. Raises ValueError if one is missing."""
        missing = self.values.keys() - values.keys()
        if missing:
            raise ValueError(f"no averages of {', '.join(sorted(missing))}")
        self.values = {n: values[n].to(mine.device) for n, mine in self.values.items()}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state with averages of trained parameters; all others as they are."""
        return {**module.state_dict(), **self.values}


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine to ``final_rate`` over the run's ``progress`` in [0, 1]."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    scale = config.final_rate + (1 - config.final_rate) * cosine
    return config.learning_rate * scale * min(1.0, (step + 1) / config.warmup)


class _Loss(nn.Module):
    """Model and objective as one module that returns the loss, for ``Team.wrap``."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.objective(self.model, images, rng)


@dataclass(frozen=True)
class _Turn:
    """The decisions of the first process before each step, by its clock."""

    progress: float
    stop: bool
    checkpoint: bool
    validate: bool


class _Clock:
    """The training time, including earlier starts, and what is due."""

    def __init__(self, config: TrainingConfig, seconds: float) -> None:
        self.config, self._begin = config, time.time() - seconds
        self._checkpoint, self._validation = seconds, seconds

    def seconds(self) -> float:
        return time.time() - self._begin

    def turn(self, step: int) -> _Turn:
        config, now = self.config, self.seconds()
        hours = now / 3600 / config.hours
        return _Turn(
            progress=max(step / config.steps, hours),
            stop=step >= config.steps or hours >= 1,
            checkpoint=now > self._checkpoint + 60 * config.checkpoint_minutes,
            validate=now > self._validation + 60 * config.validate_minutes,
        )

    def done(self, turn: _Turn) -> None:
        if turn.validate:
            self._validation = self.seconds()
        self._checkpoint = self.seconds()


def train(
    model: nn.Module,
    objective: Objective,
    pictures: Pictures | ShardWindow,
    config: TrainingConfig,
    folder: RunFolder,
    save: Save,
    *,
    device: str = "cpu",
    log: Log = print,
    team: Team = ALONE,
    track: Track = lambda step, figures: None,
) -> None:
    """Train ``model`` as long as ``config`` says. Resumes from a checkpoint in ``folder``.

    Parameters that do not require a gradient stay as they are. In a team, every process calls this
    with the same model and configuration and its own pictures; a step uses all their batches
    together. Only the first process reads and writes files.

    Args:
        objective: returns the loss and figures for the log, from a model, pictures
            ``(B, 3, H, W) uint8`` on ``device``, and a random generator that is the same for the
            same step and seed. It enters ``torch.autocast`` itself if it wants mixed precision. An
            objective with networks is an ``nn.Module`` and is moved to ``device``; its buffers are
            saved in checkpoints and averaged over a team.
        pictures: to train on. Those of a ``ShardWindow`` change during training; the card counts
            the first ones.
        save: called with the model's state (trained parameters averaged) and the card; writes the
            model files and returns validation figures.
        track: called regularly with the figures of a step or of a validation.

    Raises InvalidModelError if the checkpoint belongs to another configuration.
    """
    loss_of = _Loss(model, objective).to(device)
    state = team.lead(lambda: _read_checkpoint(folder))
    trained = list(_trained(model).values())
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=betas)
    memory = dict(objective.named_buffers()) if isinstance(objective, nn.Module) else {}
    wrapped = team.wrap(loss_of)
    ema, step, seconds = Ema(model, config.ema), 0, 0.0

    def resume(state: Mapping[str, Any]) -> None:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ema.restore(state["ema"])
            for name, value in state.get("objective", {}).items():
                if name in memory:
                    memory[name].copy_(value)
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise InvalidModelError(
                f"{state['path']} belongs to another configuration: use a new --out"
            ) from error

    if state:
        team.everywhere(partial(resume, state))
        step, seconds = state["step"], state["seconds"]
        log(f"resumed {state['path']} at step {step}, {seconds / 3600:.2f} h")
    clock = _Clock(config, seconds)
    del state
    sources = sum(team.gather(pictures.at(step).sources), Counter())
    first, began = step, time.monotonic()

    def checkpoint_now() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.values,
            "objective": memory,
            "step": step,
            "seconds": clock.seconds(),
        }
        folder.add_checkpoint(step, lambda path: torch.save(state, path), config.keep_checkpoints)

    def measure() -> None:
        hours = round(clock.seconds() / 3600, 3)
        card = {
            "steps": step,
            "hours": hours,
            "device": torch.cuda.get_device_name() if "cuda" in device else "CPU",
            "threads": torch.get_num_threads(),
            "workers": team.size,
            "pictures": dict(sorted(sources.items())),
            "training": asdict(config),
        }
        figures = save(ema.weights(model), card)
        with (folder.path / "log.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": step, "hours": hours, **figures}) + "\n")
        shown = json.dumps(figures) if figures else _NOT_VALIDATED
        log(f"step {step} {clock.seconds() / 60:.1f} min {shown}")
        track(step, {"validation": figures})
        folder.publish()

    def write(turn: _Turn) -> None:
        checkpoint_now()  # also before validation, so that resuming never validates a step again
        if turn.validate:
            measure()
        clock.done(turn)

    smooth: dict[str, float] = {}
    while True:
        turn = team.lead(partial(clock.turn, step))
        if turn.stop:
            break
        if step > first and (turn.checkpoint or turn.validate):
            team.lead(partial(write, turn))
        rate = learning_rate(config, step, turn.progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            rng = np.random.default_rng([config.seed, step, part * team.size + team.rank])
            batch = pictures.at(step).batch(config.batch, config.small_share, rng).to(device)
            with nullcontext() if part == config.accumulate - 1 else team.apart(wrapped):
                loss, figures = wrapped(batch, rng)
                (loss / config.accumulate).backward()
        norm = nn.utils.clip_grad_norm_(trained, config.gradient_clip)
        if torch.isfinite(norm):  # a rare overflow must not poison the weights
            optimizer.step()
            ema.update(model, step)
        team.average(list(memory.values()))
        step += 1
        for name, value in figures.items():
            smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
        if step % LOG_EVERY == 0 and team.rank == 0:
            speed = (step - first) / max(time.monotonic() - began, 1e-9)
            shown = " ".join(f"{n} {v:.3f}" for n, v in smooth.items())
            log(f"step {step} {clock.seconds() / 60:.1f} min {speed:.2f} steps/s {shown}")
            more = {"learning_rate": rate, "gradient_norm": float(norm), "steps_per_second": speed}
            track(step, {**smooth, **more})
    team.lead(partial(write, _Turn(1.0, stop=True, checkpoint=True, validate=True)))


def _read_checkpoint(folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint, on the CPU. Loading it into the model moves it to the device."""
    newest = folder.newest()
    return None if newest is None else {**load_checkpoint(newest), "path": newest}
