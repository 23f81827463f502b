"""Imports checkpoints of the authors' own code (github.com/mandt-lab/uqdm).

Layout: a directory with ``config.json`` and a pickled ``checkpoint.pt`` of ``model`` (the network's
state), ``ema`` (``shadow_params``, a bare list in the order of the parameters), ``optimizer`` and
``step``.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidModelError
from ...models.safe_pickle import check_floats, load_checkpoint
from .model import UniversalConfig, UniversalModel
from .unet import UNetConfig

# The authors' names, as regular expressions, and ours.
_NAMES = (
    (r"^embed_conditioning\.", "time."),
    (r"^down_blocks\.", "down."),
    (r"^up_blocks\.", "up."),
    (r"^mid_resnet_block_1\.", "middle_in.residual."),
    (r"^mid_attn_block\.", "middle_in.attention."),
    (r"^mid_resnet_block_2\.", "middle_out.residual."),
    (r"^conv_out\.0\.", "norm_out."),
    (r"^conv_out\.2\.", "conv_out."),
    (r"\.resnet_block\.", ".residual."),
    (r"\.attention_block\.", ".attention."),
    (r"\.net1\.0\.", ".norm_in."),
    (r"\.net1\.2\.", ".conv_in."),
    (r"\.cond_proj\.", ".condition."),
    (r"\.net2\.0\.", ".norm_out."),
    (r"\.net2\.[23]\.", ".conv_out."),  # 3 where a dropout comes before it
    (r"\.skip_conv\.", ".skip."),
    (r"\.layers\.0\.", ".norm."),
    (r"\.layers\.1\.", ".qkv."),
    (r"\.layers\.3\.", ".out."),
)


def is_authors_checkpoint(path: Path) -> bool:
    """Whether a directory, or the directory of a file, has the authors' layout."""
    directory = path if path.is_dir() else path.parent
    return (directory / "config.json").is_file() and any(directory.glob("*.pt"))


def load(
    path: str | Path, *, learned_schedule: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors for ``UniversalScheme``, of a directory or its checkpoint file.

    Uses the averaged (EMA) weights and the configured noise schedule. A checkpoint's ``model`` does
    not have the learned schedule, so the authors' own code, and the published figures, use the
    configured one. But the average has it: ``learned_schedule`` uses that, and uqdm-tiny then needs
    4 % fewer bits.

    Raises InvalidModelError.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    settings = _read_config(directory / "config.json")
    config = _config(settings)
    file = path if path.is_file() else directory / str(settings.get("restore_ckpt"))
    if file.resolve().parent != directory.resolve():
        raise InvalidModelError(f"{directory}: restore_ckpt must name a file beside config.json")
    model = UniversalModel(config)
    weights, schedule = _averages(load_checkpoint(file), file)
    check_floats(weights, file)
    try:
        model.network.load_state_dict(weights)
    except RuntimeError as error:
        raise InvalidModelError(f"{file}: the network does not fit config.json: {error}") from error
    if learned_schedule:
        _set_schedule(model, schedule, file)
    return config.to_dict(), model.export()


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise InvalidModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), dict):
        raise InvalidModelError(f"{path} has no 'model' section: not a UQDM configuration")
    return settings


def _config(settings: Mapping[str, Any]) -> UniversalConfig:
    model = settings["model"]
    if model.get("n_channels", 3) != 3 or model.get("vocab_size", 256) != 256:
        raise InvalidModelError("only models of 8-bit RGB pictures can be imported")
    scales = {"forward_kernel": "forward_kernel", "default": "posterior"}
    priors = {"logistic": "logistic", "gaussian": "gaussian", "normal": "gaussian"}
    try:
        learned = bool(model.get("learned_prior_scale", False))
        network = UNetConfig(
            channels=model["embedding_dim"],
            blocks=model["n_blocks"],
            groups=model["norm_groups"],
            heads=model["n_attention_heads"],
            attention_everywhere=bool(model["attention_everywhere"]),
            fourier_features=bool(model["use_fourier_features"]),
            predict_scale=learned,
            dropout=model["dropout_prob"],
        )
        return UniversalConfig(
            steps=model["n_timesteps"],
            prior=priors[model["prior_type"]],  # type: ignore[arg-type]
            learned_prior_scale=learned,
            prior_scale=scales[model.get("base_prior_scale", "forward_kernel")],  # type: ignore[arg-type]
            schedule=model["noise_schedule"],
            fix_gamma_max=bool(model.get("fix_gamma_max", False)),
            gamma_min=float(model["gamma_min"]),
            gamma_max=float(model["gamma_max"]),
            network=network,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(f"config.json: missing or impossible setting: {error}") from error


def _averages(checkpoint: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The EMA list: the network's parameters under our names, and then the schedule's."""
    state, ema = checkpoint.get("model"), checkpoint.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(state, dict) or not isinstance(shadow, list):
        raise InvalidModelError(f"{path} lacks 'model' or 'ema': not a UQDM checkpoint")
    if not 0 <= len(shadow) - len(state) <= 2 or not all(map(torch.is_tensor, shadow)):
        raise InvalidModelError(
            f"{path}: {len(shadow)} averaged parameters for a network of {len(state)}"
        )
    # zip stops at the end of the network's parameters.
    return {_our_name(str(k)): t for k, t in zip(state, shadow)}, shadow[len(state) :]  # noqa: B905


def _set_schedule(model: UniversalModel, schedule: list[Tensor], path: Path) -> None:
    """Set the ends of gamma from the authors' parameters: |w| alone, or gamma_0 and |w|."""
    fixed = model.config.fix_gamma_max
    if len(schedule) != 2 - fixed or any(t.numel() != 1 or not t.isfinite() for t in schedule):
        raise InvalidModelError(f"{path} has no averaged noise schedule")
    span = abs(float(schedule[-1]))
    gamma_0 = model.config.gamma_max - span if fixed else float(schedule[0])
    with torch.no_grad():
        model.gamma_0.fill_(gamma_0)
        model.gamma_1.fill_(gamma_0 + span)


def _our_name(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name
