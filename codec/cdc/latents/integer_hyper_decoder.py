"""Exact integer inference of a hyper-decoder: the scale indices that every machine agrees on.

The scale index of a latent chooses its probability table, so the decoder must find the encoder's
(Balle, Johnston, Minnen, "Integer networks for data compression with latent-variable models", ICLR
2019). Here a trained float network is turned into integers afterwards: 16-bit weights with one
float64 factor for each output channel, activations in units of 2**-12. Integers whose sums stay
below 2**53 are exact in float64, whatever the order of additions, the batch, the device or the
library; requantisation is one IEEE multiplication and one rounding to even.

A layer is a sum of matrix products, one for each tap of its kernel, over positions in one long row:
with zeros between the rows of a picture, and between pictures, a shift of the picture is a shift of
that row, and nothing is copied. A transposed convolution of stride s is s * s such layers, one for
each phase of its output. No convolution kernel of a library, which might be of Winograd's kind and
inexact, is involved.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidModelError
from ...numerics.tiles import pieces, scaled

FRACTION = 4096  # activation units per 1.0
_LIMIT = float(1 << 23)  # activations are clamped to +-2048.0
_WEIGHT = 32767.0
_MAX_TABLE = 1 << 20  # thresholds are in 2**-12: scales up to 256
_MAX_BIAS = float(1 << 50)  # of the accumulators' 2**53; the weights may have the rest

_Tap = tuple[int, int, Tensor]  # rows and columns away, weights (C_in, C_out)


@dataclass(frozen=True)
class _Convolution:
    """One layer: what each output phase sums, and how that becomes activations again."""

    phases: dict[tuple[int, int], list[_Tap]]
    bias: Tensor
    scale: Tensor
    stride: int
    reach: int  # largest distance of a tap

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, h, w, C_in)`` to ``(B, s h, s w, C_out)``, integers in float64."""
        b, h, w, channels = x.shape
        height, width = h + self.reach, w + self.reach  # the zeros after a row precede the next one
        margin = self.reach * (width + 1)
        rows = b * height * width
        flat = x.new_zeros(rows + 2 * margin, channels)
        flat[margin : -margin or None].view(b, height, width, channels)[:, :h, :w] = x
        s = self.stride
        out = x.new_empty(b, h, s, w, s, len(self.bias))
        for (row, column), taps in self.phases.items():
            total = self.bias.expand(rows, -1).clone()
            for down, right, weight in taps:
                start = margin + down * width + right
                total.addmm_(flat[start : start + rows], weight)
            total.mul_(self.scale).round_().clamp_(-_LIMIT, _LIMIT)
            out[:, :, row, :, column] = total.view(b, height, width, -1)[:, :h, :w]
        return out.view(b, h * s, w * s, -1)


@dataclass(frozen=True)
class _LeakyReLU:
    slope: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, (x * self.slope).round_(), x)


def export(hyper_decoder: nn.Sequential, out_channels: slice) -> dict[str, Tensor]:
    """Integer tensors of a trained hyper-decoder, as a model file stores them.

    Args:
        hyper_decoder: Conv2d and ConvTranspose2d, all of which keep or multiply the size, and
            LeakyReLU.
        out_channels: which of the outputs are wanted (those that give the scale).

    Raises InvalidModelError for other modules or other geometry.
    """
    tensors: dict[str, Tensor] = {}
    for i, module in enumerate(hyper_decoder):
        if isinstance(module, nn.LeakyReLU):
            tensors[f"{i}.slope"] = torch.tensor([module.negative_slope], dtype=torch.float64)
            continue
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or not _keeps_size(module):
            raise InvalidModelError(f"no exact arithmetic for {module}")
        transposed = isinstance(module, nn.ConvTranspose2d)
        weight = module.weight.detach().double().cpu()
        weight = weight.transpose(0, 1) if transposed else weight
        bias = weight.new_zeros(len(weight))
        if module.bias is not None:
            bias = module.bias.detach().double().cpu()
        if i == len(hyper_decoder) - 1:
            weight, bias = weight[out_channels], bias[out_channels]
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise InvalidModelError(f"layer {i} of the hyper-decoder is not finite")
        scale = weight.flatten(1).abs().amax(1) / _WEIGHT
        scale = torch.maximum(scale, bias.abs() * (FRACTION / _MAX_BIAS)).clamp_min(1e-12)
        geometry = [int(transposed), module.stride[0], int(module.padding[0])]
        tensors |= {
            f"{i}.weight": (weight / scale[:, None, None, None]).round().to(torch.int16),
            f"{i}.bias": (bias * FRACTION / scale).round().to(torch.int64),
            f"{i}.scale": scale,
            f"{i}.geometry": torch.tensor(geometry),
        }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    IntegerHyperDecoder(tensors, torch.device("cpu"))  # raises where it could not be run
    return tensors


def _keeps_size(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether the output is exactly stride times (transposed) or once as large as the input."""
    square = len({*module.kernel_size}) == len({*module.stride}) == len({*module.padding}) == 1
    plain = module.groups == 1 and {*module.dilation} == {1} and module.padding_mode == "zeros"
    if not (square and plain) or isinstance(module.padding, str):
        return False
    kernel, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
    if isinstance(module, nn.ConvTranspose2d):
        return {*module.output_padding} == {stride + 2 * padding - kernel}
    return stride == 1 and kernel == 2 * padding + 1


def scale_thresholds(scales: np.ndarray, *, logarithmic: bool = False) -> np.ndarray:
    """Geometric midpoints between neighbouring scales ``(S - 1,) int64``, in 2**-12 units.

    Computed once, for the model file. ``logarithmic``: the network's output is the natural
    logarithm of the scale, not the scale. ValueError where two scales share a threshold.
    """
    logarithms = np.log(np.asarray(scales, np.float64))
    middle = (logarithms[1:] + logarithms[:-1]) / 2
    thresholds = np.rint((middle if logarithmic else np.exp(middle)) * FRACTION).astype(np.int64)
    if (np.diff(thresholds) <= 0).any():
        raise ValueError("the scales are too close together, or do not ascend")
    return thresholds


class ScaleIndex:
    """How many thresholds each value reaches: a look into a table, where the table is not huge."""

    def __init__(self, thresholds: Tensor) -> None:
        """``thresholds (S - 1,) int64`` ascend; values will be on their device."""
        self._thresholds = thresholds.to(torch.float64)
        self._table = None
        # Entry n of the table is of the value first + n.
        self._first, last = (
            (int(thresholds[0]) - 1, int(thresholds[-1])) if len(thresholds) else (0, 0)
        )
        if (span := last - self._first) < _MAX_TABLE:
            values = torch.arange(span + 1, dtype=torch.float64, device=thresholds.device)
            self._table = self._search(values + self._first)

    def __call__(self, values: Tensor) -> Tensor:
        """``(...) int16`` of integers ``(...) float64``."""
        if self._table is None:
            return self._search(values)
        at = (values - self._first).clamp_(0, len(self._table) - 1).to(torch.int32)
        return self._table.index_select(0, at.flatten()).view(at.shape)

    def _search(self, values: Tensor) -> Tensor:
        found = torch.bucketize(values.contiguous(), self._thresholds, out_int32=True, right=True)
        return found.to(torch.int16)


class IntegerHyperDecoder:
    """Runs what ``export`` gave; InvalidModelError where a tensor is missing or not exact.

    Attributes:
        inputs, outputs: channels of the hyper-latent and of the output.
        factor: output positions for one position of the hyper-latent, on each side.
        halo: hyper-latent positions around a tile that its outputs depend on.
        max_positions: hyper-latent positions computed at once, halo apart: bounds the memory, and
            changes nothing else.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        max_positions: int = 1024,  # 2048 x 2048 pixels, some 200 MB
    ) -> None:
        self.device = device
        self.max_positions = max_positions
        self._layers: list[_Convolution | _LeakyReLU] = []
        channels: list[int] = []
        self.factor, spread = 1, 0
        for i in range(len({name.split(".")[0] for name in tensors})):
            name = f"layer {i} of the hyper-decoder"
            if f"{i}.slope" in tensors:
                slope = tensors[f"{i}.slope"]
                if slope.numel() != 1 or not 0 <= slope.item() <= 1:
                    raise InvalidModelError(f"{name} has no slope in 0 .. 1")
                self._layers.append(_LeakyReLU(float(slope.double())))
                continue
            try:
                parts = {n: tensors[f"{i}.{n}"] for n in ("weight", "bias", "scale", "geometry")}
            except KeyError as error:
                raise InvalidModelError(f"{name} lacks {error}") from None
            layer = _convolution(name, device, **parts)
            outputs, inputs = parts["weight"].shape[:2]
            if channels and inputs != channels[-1]:
                raise InvalidModelError(f"{name} takes {inputs} channels, not {channels[-1]}")
            channels += [outputs] if channels else [inputs, outputs]
            self._layers.append(layer)
            self.factor *= layer.stride
            spread = (spread + layer.reach) * layer.stride
        if not channels:
            raise InvalidModelError("the hyper-decoder has no layers")
        self.inputs, self.outputs = channels[0], channels[-1]
        self.halo = math.ceil(spread / self.factor)

    @torch.no_grad()
    def __call__(self, z_hat_units: Tensor) -> Tensor:
        """Outputs ``(B, M, f h, f w) float64``, integers in 2**-12 units.

        Args:
            z_hat_units: hyper-latent ``(B, C, h, w) float64``, integers in 2**-12 units.
        """
        out = self._empty(z_hat_units, torch.float64)
        for at, values in self._tiles(z_hat_units):
            out[at] = values
        return out

    @torch.no_grad()
    def scale_index(
        self, z_hat_units: Tensor, index: ScaleIndex, offsets: Tensor | None = None
    ) -> Tensor:
        """``index`` of the outputs ``(B, M, f h, f w) int16``, never holding all of them.

        Args:
            offsets: integers in 2**-12 units added to the outputs first, ``(B, M) float64``.
        """
        out = self._empty(z_hat_units, torch.int16)
        for at, values in self._tiles(z_hat_units):
            if offsets is not None:
                values = values + offsets[at[0], :, None, None].to(self.device)
            out[at] = index(values)
        return out

    def _empty(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        if z.dim() != 4 or z.shape[1] != self.inputs:
            raise ValueError(f"a hyper-latent {tuple(z.shape)} needs {self.inputs} channels")
        height, width = z.shape[2] * self.factor, z.shape[3] * self.factor
        return torch.empty(len(z), self.outputs, height, width, dtype=dtype, device=self.device)

    def _tiles(self, z: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Where each tile of the output belongs, and the tile ``(b, M, height, width)``.

        A tile sees the hyper-latent as far as ``halo`` around it, so that it comes out as if the
        whole picture had been computed at once.
        """
        f, halo, most = self.factor, self.halo, self.max_positions
        b, _, h, w = z.shape
        tall = h if h * w <= most else min(h, math.isqrt(most))
        size = tall, most // max(tall, 1)
        for piece in pieces(b, h, w, size, halo):
            x = z[piece.pictures, :, *piece.seen]
            x = x.to(self.device, torch.float64).permute(0, 2, 3, 1).clamp(-_LIMIT, _LIMIT)
            for layer in self._layers:
                x = layer(x)
            inner, tile = (scaled(area, f) for area in (piece.inner, piece.tile))
            yield (piece.pictures, slice(None), *tile), x[:, *inner].permute(0, 3, 1, 2)


def _convolution(
    name: str,
    device: torch.device,
    *,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    geometry: Tensor,
) -> _Convolution:
    """A layer from its stored tensors, sums checked."""
    wrong = InvalidModelError(f"{name} is damaged, or of a geometry that has no exact arithmetic")
    if weight.dtype != torch.int16 or weight.dim() != 4 or weight.numel() == 0:
        raise wrong
    outputs, _, kernel, columns = weight.shape
    if bias.dtype != torch.int64 or bias.shape != (outputs,) or geometry.shape != (3,):
        raise wrong
    if scale.dtype != torch.float64 or scale.shape != (outputs,) or columns != kernel:
        raise wrong
    transposed, stride, padding = geometry.tolist()
    if not (0 <= padding < kernel <= 15 and 1 <= stride <= kernel and transposed in (0, 1)):
        raise wrong
    same = transposed or (stride == 1 and kernel == 2 * padding + 1)
    if not same or not ((scale > 0) & (scale < 1e9)).all():
        raise wrong
    largest = weight.long().abs().flatten(1).sum(1) * int(_LIMIT)
    if bias.double().abs().max() > 2 * _MAX_BIAS or (largest + bias.abs()).max() >= 1 << 53:
        raise InvalidModelError(f"{name} has sums that float64 does not hold exactly")
    # Along one axis, output s q + phase reads input q + distance through the kernel's element j.
    axis = [[(j, j - padding) for j in range(kernel)]]
    if transposed:
        axis = [
            [
                (j, (phase + padding - j) // stride)
                for j in range((phase + padding) % stride, kernel, stride)
            ]
            for phase in range(stride)
        ]
    matrices = weight.to(device, torch.float64).permute(2, 3, 1, 0).contiguous()
    phases = {
        (row, column): [
            (down, right, matrices[j, k]) for j, down in axis[row] for k, right in axis[column]
        ]
        for row, column in product(range(stride), repeat=2)
    }
    reach = max(abs(distance) for taps in axis for _, distance in taps)
    return _Convolution(phases, bias.to(device, torch.float64), scale.to(device), stride, reach)
