"""Import of checkpoints of the authors' own code (github.com/buggyyang/CDC_compression).

A checkpoint is one pickled ``.pt`` file: ``step``, ``model`` (the state of networks and schedule)
and, where it predicts x, ``ema``: the state of an averaging wrapper, whose ``ema_model.`` part is
the one to use. The file says nothing else about the model; all sizes follow from the tensors' names
and shapes. A pickle can run code, so it is read with torch's restricted unpickler.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidModelError
from ..models.safe_pickle import check_floats, load_checkpoint
from . import export
from .networks.diffusion import Diffusion, Parameterization, Schedule
from .networks.model import build_model
from .networks.paper_transform import PaperCompressor, PaperConfig
from .networks.unet import UNet, UNetConfig

_CHECKPOINT, _SETTINGS = "checkpoint.pt", "config.json"
_AVERAGE = "ema_model."
_NOT_NETWORKS = ("loss_fn_vgg.", "train_")  # the perceptual loss's network, and the schedule
_SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear")
# The authors' names, as regular expressions, and ours.
_NAMES = (
    (r"^denoise_fn\.", "unet."),
    (r"^context_fn\.", "compressor."),
    (r"^unet\.time_mlp\.", "unet.time."),
    (r"^unet\.downs\.(\d+)\.3\.conv\.", r"unet.downsample.\1."),
    (r"^unet\.ups\.(\d+)\.3\.conv\.", r"unet.upsample.\1."),
    (r"^unet\.(down|up)s\.(\d+)\.0\.", r"unet.\1.\2.block_in."),
    (r"^unet\.(down|up)s\.(\d+)\.1\.", r"unet.\1.\2.block_out."),
    (r"^unet\.(down|up)s\.(\d+)\.2\.fn\.", r"unet.\1.\2.attention."),
    (r"^unet\.mid_block1\.", "unet.middle_in."),
    (r"^unet\.mid_block2\.", "unet.middle_out."),
    (r"^unet\.mid_attn\.fn\.", "unet.middle_attention."),
    (r"^unet\.final_conv\.0\.", "unet.norm_out."),
    (r"^unet\.final_conv\.1\.", "unet.conv_out."),
    (r"^compressor\.(en|de)c\.(\d+)\.0\.", r"compressor.\1coder.\2.0."),
    (r"^compressor\.(en|de)c\.(\d+)\.[12]\.conv\.", r"compressor.\1coder.\2.1."),  # 2 where eps
    (r"^compressor\.hyper_(en|de)c\.(\d+)\.0\.", r"compressor.hyper_\1coder.\2."),
    (r"^compressor\.prior\._medians$", "compressor.prior.median"),
    (r"^compressor\.prior\.affine\.(\d+)\.weight$", r"compressor.prior.matrices.\1"),
    (r"^compressor\.prior\.affine\.(\d+)\.bias$", r"compressor.prior.biases.\1"),
    (r"^compressor\.prior\.a\.(\d+)$", r"compressor.prior.factors.\1"),
    (r"\.block1\.block\.0\.", ".conv_in."),
    (r"\.block1\.block\.1\.", ".norm_in."),
    (r"\.block2\.block\.0\.", ".conv_out."),
    (r"\.block2\.block\.1\.", ".norm_out."),
    (r"\.mlp\.1\.", ".time."),
    (r"\.res_conv\.", ".skip."),
    (r"\.fn\.to_(qkv|out)\.", r".\1."),
    (r"\.g$", ".weight"),
    (r"(norm(?:_in|_out)?)\.b$", r"\1.bias"),
)


def is_authors_checkpoint(path: Path) -> bool:
    """Whether a file, or a directory that holds one, can be such a checkpoint, by its names.

    A ``config.json`` beside it that has a section ``model`` makes it one of UQDM's.
    """
    file = path / _CHECKPOINT if path.is_dir() else path
    if file.suffix not in (".pt", ".pth") or not file.is_file():
        return False
    try:
        settings = json.loads((file.parent / _SETTINGS).read_text())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "model" not in settings


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and float32 tensors, of a checkpoint file or a directory that holds one.

    Tensors are named ``compressor.NAME`` and ``unet.NAME``, with the names of ``PaperCompressor``
    and ``UNet``. Checkpoints trained for realism also hold the perceptual loss's network, which
    only training needs: ``perceptual.LPIPS.from_file`` reads it.

    Raises InvalidModelError saying what is wrong.
    """
    path = Path(path)
    file = path / _CHECKPOINT if path.is_dir() else path
    theirs = _state(load_checkpoint(file), file)
    tensors = {
        _our_name(name): _our_shape(name, tensor)
        for name, tensor in theirs.items()
        if not name.startswith(_NOT_NETWORKS)
    }
    compressor, unet = _sizes(tensors, file)
    diffusion = _diffusion(theirs, file)
    with torch.device("meta"):  # shapes alone
        networks = {"compressor": PaperCompressor(compressor), "unet": UNet(unet)}
    try:
        nn.ModuleDict(networks).load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise InvalidModelError(f"{file} does not fit its networks' sizes: {error}") from error
    config = {
        "codec": "cdc",
        "weights": "float",
        "compressor": compressor.to_dict(),
        "unet": unet.to_dict(),
        "diffusion": diffusion.to_dict(),
    }
    return config, {n: t.detach().float().contiguous() for n, t in tensors.items()}


def import_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and all tensors of a model file: what ``load`` gives, and what coding needs.

    Raises InvalidModelError saying what is wrong.
    """
    config, weights = load(path)
    model = build_model(config)
    model.load_state_dict(weights)
    return config, export.tensors(model.eval())


def _state(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The averaged state where there is one, else the last, by the authors' names."""
    ema, model = checkpoint.get("ema"), checkpoint.get("model")
    if isinstance(ema, dict):
        names = [n for n in ema if isinstance(n, str) and n.startswith(_AVERAGE)]
        state = {n.removeprefix(_AVERAGE): ema[n] for n in names}
    elif ema is None and isinstance(model, dict):
        state = {str(n): t for n, t in model.items()}
    else:
        raise InvalidModelError(f"{path} lacks 'model' or 'ema': not a CDC checkpoint")
    check_floats(state, path)
    return state


def _our_name(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    # Theirs nest each convolution with its activation; ours follow each other.
    return re.sub(r"(?<=hyper_..coder\.)\d+", lambda found: str(2 * int(found[0])), name)


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if ".prior." in name and tensor.ndim == 5:  # theirs multiply from the right
        return tensor[:, 0, 0].transpose(1, 2)
    if name.endswith((".g", ".b", "._medians")):
        return tensor.flatten()
    return tensor


def _sizes(tensors: Mapping[str, Tensor], path: Path) -> tuple[PaperConfig, UNetConfig]:
    """All widths, from the shapes of the convolutions that begin the stages."""

    def widths(pattern: str, axis: int, step: int = 1) -> list[int]:
        found: list[int] = []
        while (name := pattern.format(step * len(found))) in tensors:
            found.append(tensors[name].shape[axis])
        if not found:
            raise InvalidModelError(f"{path} is not a CDC checkpoint: it lacks {name}")
        return found

    def multiples(widths: list[int]) -> tuple[int, ...]:
        if dim < 1 or any(w % dim for w in widths):
            raise InvalidModelError(f"{path}: widths {widths} are not multiples of {dim}")
        return tuple(w // dim for w in widths)

    try:
        dim = tensors["unet.time.2.bias"].shape[0]
        unet = widths("unet.down.{}.block_in.conv_in.weight", 0)
        inputs = widths("unet.down.{}.block_in.conv_in.weight", 1)
        channels = tensors["unet.conv_out.bias"].shape[0]
        contexts = [i - n for i, n in zip(inputs, [channels, *unet], strict=False)]
        outer_kernel = tensors["unet.conv_out.weight"].shape[-1]
        decoder = widths("compressor.decoder.{}.0.conv_in.weight", 1)
        compressor = PaperConfig(
            dim=dim,
            dim_mults=multiples(widths("compressor.encoder.{}.0.conv_in.weight", 0)),
            hyper_dims_mults=multiples(widths("compressor.hyper_encoder.{}.weight", 0, step=2)),
            context_dim_mults=multiples(decoder)[::-1],
            context_channels=widths("compressor.decoder.{}.1.bias", 0)[-1],
        )
        network = UNetConfig(
            dim=dim,
            dim_mults=multiples(unet),
            context_channels=tuple(contexts[: len(decoder)]),
            channels=channels,
            outer_kernel=outer_kernel,
        )
    except KeyError as error:
        raise InvalidModelError(f"{path} is not a CDC checkpoint: it lacks {error}") from error
    except IndexError as error:
        raise InvalidModelError(f"{path}: the weight of a convolution is not one") from error
    except ValueError as error:
        raise InvalidModelError(f"{path}: {error}") from error
    if network.context_channels != compressor.unet_contexts:
        raise InvalidModelError(
            f"{path}: the U-Net takes contexts of {network.context_channels} channels, but the "
            f"decoder gives {compressor.unet_contexts}"
        )
    return compressor, network


def _diffusion(theirs: Mapping[str, Tensor], path: Path) -> Diffusion:
    """The schedule whose alphas the checkpoint holds.

    The code that predicts the noise has an identity between block and downsampling, which shifts
    the numbering.
    """
    alphas = theirs.get("train_alphas_cumprod")
    if alphas is None:
        raise InvalidModelError(f"{path} is not a CDC checkpoint: it lacks train_alphas_cumprod")
    predicts: Parameterization = "x" if "context_fn.enc.0.1.conv.weight" in theirs else "eps"
    try:
        candidates = [Diffusion(predicts, alphas.numel(), schedule) for schedule in _SCHEDULES]
    except ValueError as error:
        raise InvalidModelError(f"{path}: {error}") from error
    for diffusion in candidates:
        if np.allclose(alphas.numpy(), diffusion.alpha_bar, rtol=1e-3, atol=1e-6):
            return diffusion
    raise InvalidModelError(f"{path}: the noise schedule is neither cosine nor linear")
