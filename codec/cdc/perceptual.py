"""Distances closer to what people see than squared error: structural, and learned.

Both compare pictures ``(B, 3, H, W)`` in [-1, 1], give one number for each, and have finite
gradients everywhere, so that a training can minimise them.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidModelError
from ..images.metrics import C1, C2, LUMA, MS_SSIM_WEIGHTS, PEAK, SIGMA, WINDOW
from ..models.safe_pickle import check_floats, load_checkpoint
from .latents.priors import lower_bound

# A power's slope is infinite at 0: similarities below this have the gradient of one that is this.
_STEEPEST = 0.01

# VGG16 up to relu5_3 (Simonyan & Zisserman 2015, configuration D): the numbers of the
# convolutions in torchvision's ``features``, and their width. LPIPS compares where each row ends.
_SLICES = (
    ((0, 2), 64),
    ((5, 7), 128),
    ((10, 12, 14), 256),
    ((17, 19, 21), 512),
    ((24, 26, 28), 512),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for [-1, 1]
_SMALLEST = 2 ** (len(_SLICES) - 1)  # side of a picture whose last features are one pixel
_KINDS = (
    "the metric's weights can be in a CDC checkpoint of the authors' trained with rho > 0, in the "
    "saved state_dict() of lpips.LPIPS(net='vgg') (.pt, .pth), or in a .safetensors file with the "
    "same names"
)


def ms_ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang, Simoncelli & Bovik 2003) of pictures' lumas: ``(B,)``, 0 to 1.

    Pictures are ``(B, 3, H, W)`` in [-1, 1], of any floating-point type; the result is at least
    float32, also under autocast. Windows, scales and their weights are those of
    ``codec.images.metrics.ms_ssim``, whose values these are: five scales from 161 pixels at the
    shorter side, else those that fit.

    Where structures are so unlike that a scale's mean similarity is below 0.01, the gradient is
    the one at 0.01. So it stays finite, and also draws up a negative similarity, whose value
    counts as 0.

    Raises ValueError for shapes that differ or are not of colour pictures.
    """
    _check(x, y)
    with torch.autocast(x.device.type, enabled=False):  # variances are differences of large numbers
        x, y = _luma(x), _luma(y)
        shorter = min(x.shape[1:])
        halved = [(shorter - 1) // 2**scale + 1 for scale in range(1, len(MS_SSIM_WEIGHTS))]
        scales = 1 + sum(size >= WINDOW for size in halved)
        weights = torch.tensor(MS_SSIM_WEIGHTS[:scales], dtype=x.dtype, device=x.device)
        if scales < len(MS_SSIM_WEIGHTS):
            weights = weights / weights.sum()
        similarities = []
        for scale in range(scales):
            last = scale == scales - 1
            similarities.append(_similarity(x, y, with_luminance=last))
            if not last:
                x, y = _halve(x), _halve(y)
        similarity = torch.stack(similarities, dim=1)  # (B, scales)
        score = lower_bound(similarity, _STEEPEST).pow(weights).prod(dim=1)
        exact = similarity.detach().clamp(min=0).pow(weights).prod(dim=1)
        return 1 - (score + (exact - score).detach())  # the one's value, the other's gradient


def _luma(x: Tensor) -> Tensor:
    """``(B, H, W)`` between -0.5 and 0.5: centred, variances lose less to rounding."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weights = torch.as_tensor(LUMA / 2, dtype=x.dtype, device=x.device)
    return torch.einsum("bchw,c->bhw", x, weights)


def _similarity(x: Tensor, y: Tensor, *, with_luminance: bool) -> Tensor:
    """Mean contrast-structure, or the whole of SSIM (Wang 2004, eqs. 9, 13): ``(B,)``."""
    # Only the variances' sum is needed, so four maps do.
    mean_x, mean_y, squares, products = _blur(torch.stack([x, y, x * x + y * y, x * y], dim=-1))
    variances = squares - mean_x.square() - mean_y.square()
    covariance = products - mean_x * mean_y
    c1, c2 = C1 / PEAK**2, C2 / PEAK**2
    similarity = (2 * covariance + c2) / (variances + c2)
    if with_luminance:
        mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
        luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        similarity = luminance * similarity
    return similarity.mean(dim=(1, 2))


def _blur(maps: Tensor) -> tuple[Tensor, ...]:
    """Gaussian means over the windows inside the picture, of ``(B, H, W, n)``: n times (B, h, w).

    The maps come last in memory, which on a CPU makes depthwise convolutions several times faster.
    """
    size, n = min(WINDOW, *maps.shape[1:3]), maps.shape[3]
    at = torch.arange(size, dtype=maps.dtype, device=maps.device) - (size - 1) / 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(n, 1, 1, size)
    maps = maps.permute(0, 3, 1, 2)
    maps = F.conv2d(F.conv2d(maps, window.transpose(2, 3), groups=n), window, groups=n)
    return maps.unbind(dim=1)


def _halve(x: Tensor) -> Tensor:
    """2x2 means of ``(B, H, W)``; those at an odd end are of what is there."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class LPIPS(nn.Module):
    """The learned perceptual metric on features of VGG16 (Zhang et al. 2018), version 0.1.

    Frozen: gradients pass to the pictures, never to the weights. The weights are arbitrary until
    loaded: use ``from_file``. They have the names of the lpips package, so that what
    ``state_dict`` gives can be read back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _Scaling()
        self.net = nn.Sequential()
        inputs = 3
        for i, (convolutions, width) in enumerate(_SLICES):
            self.net.add_module(f"slice{i + 1}", _slice(inputs, width, convolutions))
            self.add_module(f"lin{i}", _Linear(width))
            inputs = width
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_file(cls, path: str | Path) -> "LPIPS":
        """The metric with weights from a file, in float32 on the CPU.

        That is a checkpoint of the CDC authors' trained with rho > 0, the state of the lpips
        package's ``LPIPS(net="vgg")`` (.pt or .pth), or a .safetensors file with the package's
        names, all with or without ``lpips.`` before them. Other tensors in it are ignored.

        Raises InvalidModelError naming the file and what is missing, misshapen or not finite.
        """
        path = Path(path)
        with torch.device("meta"):  # shapes alone: initialising 15 million weights takes a while
            model = cls()
        found = _find(_read(path), model.state_dict())
        check_floats(found, path)
        tensors = {name: tensor.detach().float().contiguous() for name, tensor in found.items()}
        try:
            model.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise InvalidModelError(
                f"{path} does not hold the metric: {error}; {_KINDS}"
            ) from error
        return model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances ``(B,)`` of pictures ``(B, 3, H, W)`` in [-1, 1], at least 16x16 (eq. 1).

        Raises ValueError where a shape does not fit.
        """
        _check(x, y)
        if min(x.shape[2:]) < _SMALLEST:
            raise ValueError(
                f"LPIPS takes pictures of at least {_SMALLEST}x{_SMALLEST}, not {tuple(x.shape)}"
            )
        # Apart rather than as one batch: of an original without gradients, nothing is kept.
        pairs = zip(self.features(x), self.features(y), strict=True)
        distances = []
        for i, (a, b) in enumerate(pairs):
            squares = (_unit(a) - _unit(b)).square().mean(dim=(2, 3))
            # Means first, then the weighted sum: they commute, and this reads the maps once.
            distances.append(self.get_submodule(f"lin{i}")(squares))
        return torch.stack(distances).sum(dim=0)

    def features(self, x: Tensor) -> list[Tensor]:
        """VGG16's at relu1_2, 2_2, 3_3, 4_3 and 5_3: ``(B, C, H >> i, W >> i)``, at least 0."""
        h = self.scaling_layer(x).contiguous(memory_format=torch.channels_last)  # faster on a CPU
        found = []
        for part in self.net:
            h = part(h)
            found.append(h)
        return found


class _Scaling(nn.Module):
    """From [-1, 1] to what VGG16 was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Linear(nn.Module):
    """The weights of a slice's channels, as a 1x1 convolution: ``(B, C)`` to ``(B,)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The package has dropout in the first place, which only learning the metric needs.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, squares: Tensor) -> Tensor:
        # Not by the convolution itself, nor any product that autocast would round.
        return (squares * self.get_parameter("model.1.weight").flatten()).sum(dim=1)


def _slice(inputs: int, width: int, convolutions: Iterable[int]) -> nn.Sequential:
    """Convolutions named by their numbers, each with its activation; all but the first slice halve.

    Activating in place is safe as the frozen convolutions need not keep what they gave.
    """
    layers = nn.Sequential()
    for number in convolutions:
        if number and not len(layers):
            layers.add_module(str(number - 1), nn.MaxPool2d(2))
        layers.add_module(str(number), nn.Conv2d(inputs, width, 3, padding=1))
        layers.add_module(str(number + 1), nn.ReLU(inplace=True))
        inputs = width
    return layers


def _unit(h: Tensor) -> Tensor:
    """Features scaled to length one at each pixel, at least in float32.

    Where all are 0, so is the norm, and gradients are multiplied by 1e10. They end right there, at
    the activations, all of which are off; nothing must come between the two.
    """
    h = h.to(torch.promote_types(h.dtype, torch.float32))  # half precision has no 1e-10
    return h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 1e-10)


def _read(path: Path) -> Mapping[str, Any]:
    """What a file holds, without running any code of its. Raises InvalidModelError."""
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidModelError(f"{path} cannot be read: {error}") from error


def _find(contents: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """What a file has under these names, at the first of the places where it has any."""
    names = list(names)
    places = (
        (contents.get("ema"), "ema_model.loss_fn_vgg."),
        (contents.get("model"), "loss_fn_vgg."),
        (contents, "lpips."),
        (contents, ""),
    )
    for held, prefix in places:
        if isinstance(held, dict) and any(prefix + name in held for name in names):
            return {name: held[prefix + name] for name in names if prefix + name in held}
    return {}


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or x.shape != y.shape or not math.prod(x.shape):
        raise ValueError(
            f"expected two batches of pictures (B, 3, H, W), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
