"""The training loop: plain torch, no Ray, one machine. Maximum likelihood with an EMA of the weights.

A run directory holds ``checkpoint.pt`` (to resume), ``model.safetensors`` (to encode and decode),
``training.safetensors`` (float weights, to go on from with ``--init``), ``card.json`` (data, steps,
hours, figures) and ``log.jsonl``. Every file is written whole and then renamed.
"""

import io
import json
import math
import os
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InvalidModelError
from ..images import read_image

Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train. ``hours`` or ``steps``, whichever ends first."""

    steps: int = 100_000
    hours: float = 1e9
    learning_rate: float = 2e-3
    final_rate: float = 0.02  # of learning_rate, reached by a cosine
    warmup: int = 200
    ema: float = 0.999
    gradient_clip: float = 1.0
    batch: int = 16
    crop: int = 128
    small_share: float = 0.25  # of batches made of pictures smaller than a crop
    states: int = 4  # steps of the schedule in one batch
    mse_weight: float = 0.3
    validate_minutes: float = 10.0
    seed: int = 0


class Pictures:
    """Training pictures in memory, by size: those that hold a crop, and smaller ones.

    Attributes:
        sources: how many pictures came from which source and licence, for the model's card.
    """

    def __init__(self, crop: int) -> None:
        self.crop = crop
        self.large: list[np.ndarray] = []
        self.small: dict[tuple[int, int], list[np.ndarray]] = {}
        self.sources: dict[str, int] = {}

    def add_tar(self, name: str, stream: BinaryIO, log: Log = print) -> None:
        """Read one WebDataset shard; pictures that cannot be read are named and left out."""
        found, labels = 0, {}
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.isfile() else None
                if handle is None:
                    continue
                data, extension = handle.read(), member.name.rsplit(".", 1)[-1].lower()
                if extension == "json":
                    try:
                        label = json.loads(data)
                        source = f"{label.get('source', '?')} ({label.get('license', '?')})"
                    except (ValueError, AttributeError):
                        source = "?"
                    labels[member.name] = source
                elif extension in ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff"):
                    try:
                        self.add(read_image(data).rgb)
                        found += 1
                    except Exception as error:  # one bad picture must not end a long run
                        log(f"{name}: {member.name} left out: {error}")
        for source in labels.values() or ["?"] * found:
            self.sources[source] = self.sources.get(source, 0) + 1
        log(f"{name}: {found} pictures")

    def add(self, rgb: np.ndarray) -> None:
        height, width = rgb.shape[:2]
        if min(height, width) >= self.crop:
            self.large.append(rgb)
        elif min(height, width) >= 16:
            self.small.setdefault((height // 8 * 8, width // 8 * 8), []).append(rgb)

    def __len__(self) -> int:
        return len(self.large) + sum(map(len, self.small.values()))

    def batch(self, count: int, small_share: float, rng: np.random.Generator) -> Tensor:
        """``(n, 3, h, w) uint8``: ``count`` crops, or as many pixels in small pictures."""
        if self.small and (not self.large or rng.random() < small_share):
            sizes = list(self.small)
            weight = np.array([len(self.small[s]) for s in sizes], float)
            height, width = sizes[rng.choice(len(sizes), p=weight / weight.sum())]
            count = max(count * self.crop**2 // (height * width) // 4 * 4, 4)
            chosen = [
                x[:height, :width] for x in _choose(self.small[height, width], count, rng)
            ]
        else:
            chosen = [_crop(x, self.crop, rng) for x in _choose(self.large, count, rng)]
        flipped = [x[:, ::-1] if rng.random() < 0.5 else x for x in chosen]
        return torch.from_numpy(np.stack(flipped)).permute(0, 3, 1, 2).contiguous()


def _choose(pictures: list[np.ndarray], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [pictures[i] for i in rng.integers(len(pictures), size=count)]


def _crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop, half of the time of the picture reduced by up to 2.5: JPEG's own traces
    vanish, and detail comes in at every scale."""
    height, width = picture.shape[:2]
    take = size
    if rng.random() < 0.5:
        take = int(size * rng.uniform(1.0, min(2.5, min(height, width) / size)))
    y, x = rng.integers(height - take + 1), rng.integers(width - take + 1)
    piece = picture[y : y + take, x : x + take]
    if take == size:
        return piece
    return np.asarray(Image.fromarray(piece).resize((size, size), Image.Resampling.LANCZOS))


class Ema:
    """Exponential moving average of a module's parameters, with a short memory at first."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)


class Balance:
    """Running sizes of the losses of each step, so that no level drowns the others."""

    def __init__(self) -> None:
        self.sizes: dict[str, float] = {}

    def size(self, name: str, value: float) -> float:
        old = self.sizes.get(name, value)
        self.sizes[name] = 0.98 * old + 0.02 * value
        return max(self.sizes[name], 1e-4)


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine to ``final_rate`` over the run's ``progress`` in [0, 1]."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    scale = config.final_rate + (1 - config.final_rate) * cosine
    return config.learning_rate * scale * min(1.0, (step + 1) / config.warmup)


def save_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside ``path``, then rename: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write(partial)
    os.replace(partial, path)


def train(
    model: torch.nn.Module,
    pictures: Pictures,
    config: TrainingConfig,
    out: Path,
    *,
    device: str = "cpu",
    save: Callable[[dict[str, Tensor], Path, dict[str, Any]], dict[str, Any]],
    log: Log = print,
) -> None:
    """Train ``model`` until ``config`` says to stop; resume where ``out`` has a checkpoint.

    Args:
        model: called with ``(B, 3, H, W) uint8`` and a list of schedule steps, returns losses
            for each (see ``NestedModel.forward``); has ``config.num_steps``.
        save: called with the EMA weights, ``out`` and the card so far; writes the model files and
            returns validation figures.

    Raises InvalidModelError where the checkpoint belongs to another configuration.
    """
    if not len(pictures):
        raise ValueError("no training pictures: check --data")
    out.mkdir(parents=True, exist_ok=True)
    model.to(device)
    num_steps: int = model.config.num_steps  # type: ignore[union-attr, assignment]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98))
    ema, balance, step, seconds = Ema(model, config.ema), Balance(), 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise InvalidModelError(
                f"{checkpoint} belongs to another configuration; use a new --out"
            ) from error
        optimizer.load_state_dict(state["optimizer"])
        ema.values, balance.sizes = state["ema"], state["balance"]
        step, seconds = state["step"], state["seconds"]
        log(f"resumed {checkpoint} at step {step}, {seconds / 3600:.2f} h")
    begin, first, next_validation = time.time() - seconds, step, 0.0
    next_validation = seconds + 60 * min(config.validate_minutes, 3.0)
    cuda = torch.device(device).type == "cuda"

    def store(final: bool) -> None:
        elapsed = time.time() - begin
        card = {
            "steps": step,
            "hours": round(elapsed / 3600, 3),
            "device": torch.cuda.get_device_name() if cuda else "CPU",
            "pictures": pictures.sources,
            "training": asdict(config),
        }
        figures = save(ema.values, out, card)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.values,
            "balance": balance.sizes,
            "step": step,
            "seconds": time.time() - begin,
        }
        save_atomically(checkpoint, lambda path: torch.save(state, path))
        with (out / "log.jsonl").open("a") as lines:
            lines.write(json.dumps({"step": step, "hours": elapsed / 3600, **figures}) + "\n")
        log(f"step {step} {elapsed / 60:.1f} min {'final ' if final else ''}{json.dumps(figures)}")

    rows: dict[str, float] = {}
    while step < config.steps and time.time() - begin < 3600 * config.hours:
        rng = np.random.default_rng([config.seed, step])
        elapsed = time.time() - begin
        progress = max(step / config.steps, elapsed / 3600 / config.hours)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, progress)
        batch = pictures.batch(config.batch, config.small_share, rng).to(device)
        states = [int(s) for s in rng.choice(num_steps, config.states, replace=False)]
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=cuda):
            losses = model(batch, states)
        total = torch.zeros((), device=device)
        for state_index, loss in zip(states, losses, strict=True):
            for name, value in loss.items():
                size = balance.size(f"{name}{state_index}", float(value.detach()))
                rows[f"{name}{state_index}"] = size
                # Bits count by the square root of their share, distortion by its logarithm: the
                # few bits of the first levels and their decibels matter as much as the last ones'.
                weight = size**-0.5 if name == "bits" else config.mse_weight / size
                total = total + weight * value
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        if torch.isfinite(norm):  # a rare overflow must not poison the weights
            optimizer.step()
            ema.update(model, step)
        step += 1
        if step % 100 == 0:
            elapsed = time.time() - begin
            bits = sum(v for k, v in rows.items() if k.startswith("bits"))
            log(
                f"step {step} {elapsed / 60:.1f} min "
                f"{(step - first) / (elapsed - seconds):.2f} steps/s loss {float(total):.3f} "
                f"bpp of all layers {bits:.3f} grad {float(norm):.2f}"
            )
        if time.time() - begin > next_validation:
            next_validation = time.time() - begin + 60 * config.validate_minutes
            store(final=False)
    store(final=True)


def read_shards(shards: Iterable[tuple[str, BinaryIO]], crop: int, log: Log = print) -> Pictures:
    """Pictures of ``(name, open tar)`` shards."""
    pictures = Pictures(crop)
    for name, stream in shards:
        pictures.add_tar(name, io.BufferedReader(stream) if not stream.seekable() else stream, log)
    return pictures
