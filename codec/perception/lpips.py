"""LPIPS: a distance of features, learned from people's judgements, with weights from a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InvalidModelError
from ..models.safe_pickle import check_floats, load_checkpoint
from .structure import check_pictures

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


class LPIPS(nn.Module):
    """The learned perceptual metric on features of VGG16 (Zhang et al. 2018), version 0.1.

    It is frozen: gradients go to the pictures, not to the weights. Make one with ``from_file``;
    otherwise the weights are arbitrary. They have the names of the lpips package, so that
    ``state_dict`` can be saved and read back.
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

        The file is a checkpoint of CDC's authors that was trained with rho > 0, the state of the
        lpips package's ``LPIPS(net="vgg")`` (.pt or .pth), or a .safetensors file with the
        package's names. Names may begin with ``lpips.``. Other tensors are ignored.

        Raises InvalidModelError for tensors that are missing, have another shape or are not finite.
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

        Raises ValueError for other shapes.
        """
        check_pictures(x, y)
        if min(x.shape[2:]) < _SMALLEST:
            raise ValueError(
                f"LPIPS needs pictures of at least {_SMALLEST}x{_SMALLEST}, not {tuple(x.shape)}"
            )
        # Not as one batch, because nothing must be kept of an original without gradients.
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
    """Scales [-1, 1] to the range on which VGG16 was trained."""

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
        # Without the convolution or a product, which autocast would round.
        return (squares * self.get_parameter("model.1.weight").flatten()).sum(dim=1)


def _slice(inputs: int, width: int, convolutions: Iterable[int]) -> nn.Sequential:
    """Convolutions named by their numbers, with activations. All slices but the first halve.

    Activating in place is safe, because frozen convolutions do not need their outputs again.
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

    If all are 0, the norm is 0, and gradients are multiplied by 1e10. The activations before, which
    are all off, stop these gradients, so nothing may come between the two.
    """
    h = h.to(torch.promote_types(h.dtype, torch.float32))  # half precision has no 1e-10
    return h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 1e-10)


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a file, read without running code in it. Raises InvalidModelError."""
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidModelError(f"{path} cannot be read: {error}") from error


def _find(contents: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The tensors with these names, from the first place in the file that has any of them."""
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
