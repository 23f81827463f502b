"""The band network: every level's probabilities from what is decoded so far, in exact integers.

A network that shapes an entropy coder must give the same numbers on every device for ever, and
float convolutions do not (other batch size, other kernel, other last bit). So this network *is* an
integer network: weights in [-127, 127], activations in [-127, 127] or [0, 255], sums below 2**24.
Integers of that size are exact in float32, whatever the order of additions, with or without fused
multiply-add, on CPUs and on GPUs (TF32 and bfloat16 hold 8-bit factors exactly, too).
Requantisation is one IEEE multiplication and one rounding to even. No check, escalation or side
information is needed.

Training sees the same arithmetic through straight-through rounding ("fake quantisation").

    digits so far -> features (2 x 192, 8 bits) -> 1x1 -> h -> N x block -> 1x1 -> outputs (n x 192)
    block: h += W2 relu(W1 depthwise5x5(h))

All at 1/8 resolution, without normalisation, with gains and biases for each step of the schedule.
The receptive field is bounded (2 N blocks on each side) and zero padding is the only border effect,
so a tile with that halo gives exactly what the whole picture gives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.checks import check_shapes
from ...numerics.int8_products import Filters, Linear
from ...numerics.lapped_transform import BANDS
from ...numerics.strips import strips

ACTIVATION = 32.0  # activation units per 1.0: signed range +-3.97, rectified range 0 .. 7.97
RESIDUAL = 128.0  # units per 1.0 of the residual stream h
SIGNED, RECTIFIED, STREAM = 127.0, 255.0, 32767.0
KERNEL = 5
# Least and most of each size of a network. Sums of channels * 127 * 127 must stay below 2**24.
_SIZES = {
    "steps": (1, 1024),
    "outputs": (1, 1 << 16),
    "channels": (1, 1024),
    "hidden": (1, 512),
    "blocks": (0, 64),
    "inputs": (1, 1024),
    "colours": (1, 16),
}


@dataclass(frozen=True)
class NetworkConfig:
    """Width of the residual stream, number and inner width of the blocks, steps of the schedule.

    ``inputs`` and ``outputs`` count the numbers in each position, ``colours`` the lattices
    of positions, which have biases of their own.
    """

    steps: int
    outputs: int
    channels: int = 192
    hidden: int = 384
    blocks: int = 6
    inputs: int = 2 * BANDS
    colours: int = 5

    @property
    def halo(self) -> int:
        """Receptive field on each side, in blocks of 8 pixels."""
        return self.blocks * (KERNEL // 2)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        config = cls(**values)
        sizes = asdict(config)
        for name, (least, most) in _SIZES.items():
            if type(sizes[name]) is not int or not least <= sizes[name] <= most:
                raise ValueError(f"{name} must be {least} to {most}, not {sizes[name]!r}")
        # 2**24 bounds every sum: see the module's docstring.
        if config.hidden * 127 * 255 >= 1 << 24 or config.inputs * 127 * 127 >= 1 << 24:
            raise ValueError(f"hidden={config.hidden} is too wide for exact float32 sums")
        return config

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and type of every tensor of an exported network."""
        c, steps = self.channels, self.steps
        yield "stem.weight", (c, self.inputs), torch.int8
        yield "stem.bias", (steps, self.colours, c), torch.int32
        yield "stem.scale", (c,), torch.float32
        yield from self.block_tensors()

    def block_tensors(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Those of the blocks and the head alone."""
        c, hidden, steps = self.channels, self.hidden, self.steps
        for i in range(self.blocks):
            name = f"blocks.{i}."
            yield name + "gain", (steps, c), torch.float32
            yield name + "depthwise.weight", (c, 1, KERNEL, KERNEL), torch.int8
            yield name + "depthwise.scale", (c,), torch.float32
            yield name + "expand.weight", (hidden, c), torch.int8
            yield name + "expand.bias", (steps, hidden), torch.int32
            yield name + "expand.scale", (hidden,), torch.float32
            yield name + "project.weight", (c, hidden), torch.int8
            yield name + "project.scale", (c,), torch.float32
        yield "head.gain", (steps, c), torch.float32
        yield "head.weight", (self.outputs, c), torch.int8


class _FakeQuantize(torch.autograd.Function):
    """round(x * scale) clamped, divided by scale; the gradient passes between the bounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low / scale, high / scale
        return (x * scale).round_().clamp_(low, high).div_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        # A kernel of its own: a product with a mask is several times as slow on a CPU.
        return torch.ops.aten.hardtanh_backward(grads[0], x, *ctx.bounds), None, None, None


def fake_quantize(x: Tensor, scale: float, low: float, high: float) -> Tensor:
    """Rounded to integers of ``1 / scale`` within bounds, with straight-through gradients."""
    return _FakeQuantize.apply(x, scale, low, high)


def _weight_scale(weight: Tensor) -> Tensor:
    """Size of one integer step of each output channel's weights, ``(O, 1, ...)``."""
    return (
        weight.detach().flatten(1).abs().amax(1).clamp_min(1e-6).view(-1, *[1] * (weight.dim() - 1))
        / 127.0
    )


def fake_weight(weight: Tensor) -> Tensor:
    """Weights as their integers have them, with straight-through gradients."""
    scale = _weight_scale(weight)
    return weight + ((weight.detach() / scale).round() * scale - weight.detach())


def integer_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 weights, and what one unit of each output's is worth, ``(O,) float32``."""
    scale = _weight_scale(weight)
    return (weight / scale).round().to(torch.int8), scale.flatten().float()


class Block(nn.Module):
    """h += W2 relu(W1 depthwise5x5(h)), in training."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c, hidden = config.channels, config.hidden
        self.gain = nn.Parameter(torch.ones(config.steps, c))
        self.depthwise = nn.Parameter(torch.randn(c, 1, KERNEL, KERNEL) * 0.2)
        self.expand = nn.Parameter(torch.randn(hidden, c) * (2 / c) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(config.steps, hidden))
        self.project = nn.Parameter(torch.randn(c, hidden) * 0.1 * hidden**-0.5)

    def forward(self, h: Tensor, step: Tensor) -> Tensor:
        x = fake_quantize(h * self.gain[step][:, None, None], ACTIVATION, -SIGNED, SIGNED)
        with torch.autocast("cpu", enabled=False):  # whose kernels for bfloat16 are slower here
            x = F.conv2d(
                x.permute(0, 3, 1, 2),
                fake_weight(self.depthwise),
                padding=KERNEL // 2,
                groups=x.shape[-1],
            ).permute(0, 2, 3, 1)
        x = fake_quantize(x.float(), ACTIVATION, -SIGNED, SIGNED)
        x = F.linear(x, fake_weight(self.expand)).float() + self.bias[step][:, None, None]
        x = fake_quantize(x, ACTIVATION, 0.0, RECTIFIED)
        x = F.linear(x, fake_weight(self.project)).float()
        return h + fake_quantize(x, RESIDUAL, -STREAM, STREAM)


class BandNetwork(nn.Module):
    """The trainable network. ``export`` gives the integers that ``IntegerNetwork`` runs."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.stem = nn.Parameter(torch.randn(c, config.inputs) * config.inputs**-0.5)
        self.stem_bias = nn.Parameter(torch.zeros(config.steps, config.colours, c))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.head_gain = nn.Parameter(torch.ones(config.steps, c))
        self.head = nn.Parameter(torch.zeros(config.outputs, c))
        nn.init.normal_(self.head, std=1e-3)

    def forward(self, features: Tensor, lattice: Tensor, step: Tensor) -> Tensor:
        """Float outputs ``(B, h, w, outputs)`` before their own rounding.

        Args:
            features: ``(B, h, w, inputs)`` integers in [-127, 127] as floats or int8.
            lattice: ``(h, w)`` int64, that of each block.
            step: ``(B,)`` int64, which step of the schedule each picture is at.
        """
        return self.outputs(self.trunk(features, lattice, step))

    def trunk(self, features: Tensor, lattice: Tensor, step: Tensor) -> Tensor:
        """All but the last layer, ``(B, h, w, channels)``."""
        h = F.linear(features / ACTIVATION, fake_weight(self.stem)).float()
        h = fake_quantize(h + self.stem_bias[step][:, lattice], RESIDUAL, -STREAM, STREAM)
        for block in self.blocks:
            h = block(h, step)
        return fake_quantize(h * self.head_gain[step][:, None, None], ACTIVATION, -SIGNED, SIGNED)

    def outputs(self, h: Tensor) -> Tensor:
        """The last layer's outputs of ``trunk``'s."""
        with torch.autocast(h.device.type, enabled=False):  # its output shapes the likelihood
            return F.linear(h, fake_weight(self.head))

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """Integer weights (int8), biases (int32) and float32 requantisation factors."""
        out: dict[str, Tensor] = {}
        out["stem.weight"], scale = integer_weight(self.stem)
        scale = scale / ACTIVATION
        out["stem.bias"] = (self.stem_bias / scale).round().to(torch.int32)
        out["stem.scale"] = scale * RESIDUAL
        out |= export_blocks(self)
        return {name: value.contiguous() for name, value in out.items()}


@torch.no_grad()
def export_blocks(network: nn.Module) -> dict[str, Tensor]:
    """Tensors of a network's ``blocks``, ``head_gain`` and ``head``."""
    out: dict[str, Tensor] = {}

    def integers(name: str, weight: Tensor) -> Tensor:
        """Store the int8 weight; return what one unit of it is worth, ``(O,) float32``."""
        out[name], scale = integer_weight(weight)
        return scale

    for i, block in enumerate(network.get_submodule("blocks").children()):
        assert isinstance(block, Block)
        name = f"blocks.{i}."
        out[name + "gain"] = block.gain.float() * (ACTIVATION / RESIDUAL)
        out[name + "depthwise.scale"] = integers(name + "depthwise.weight", block.depthwise)
        scale = integers(name + "expand.weight", block.expand)
        out[name + "expand.bias"] = (block.bias / (scale / ACTIVATION)).round().to(torch.int32)
        out[name + "expand.scale"] = scale
        scale = integers(name + "project.weight", block.project)
        out[name + "project.scale"] = scale * (RESIDUAL / ACTIVATION)
    out["head.gain"] = network.get_parameter("head_gain").float() * (ACTIVATION / RESIDUAL)
    out["head.scale"] = integers("head.weight", network.get_parameter("head")) / ACTIVATION
    return {name: value.contiguous() for name, value in out.items()}


def check_weights(tensors: Mapping[str, Tensor], largest_sum: int) -> None:
    """Raises ValueError where products would not be exact.

    Args:
        largest_sum: of the products alone; biases come on top.
    """
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and len(tensor) and int(tensor.min()) < -127:
            raise ValueError(f"the model's {name} has weights below -127")
    worst = max(float(t.abs().max()) for n, t in tensors.items() if n.endswith("bias"))
    if worst + largest_sum >= 1 << 24:
        raise ValueError("the model's biases are too large for exact sums")


class IntegerBlocks:
    """Exact inference of an exported network's blocks and head.

    What layers see are 8-bit integers, int8; the residual stream is integers, as float32.
    """

    def __init__(
        self, config: NetworkConfig, tensors: dict[str, Tensor], device: torch.device
    ) -> None:
        self.config = config
        check_weights(tensors, max(config.hidden, config.inputs, config.channels) * 127 * 127)
        self._t = {name: value.to(device) for name, value in tensors.items()}
        parts = [f"blocks.{i}.{{}}" for i in range(config.blocks)]
        self._filters = [
            Filters(*self._named(part.format("depthwise"), "weight", "scale")) for part in parts
        ]
        self._project = [
            Linear(*self._named(part.format("project"), "weight", "scale")) for part in parts
        ]
        self._expand = cache(self._make_expand)

    def _named(self, layer: str, *names: str) -> list[Tensor]:
        return [self._t[f"{layer}.{name}"] for name in names]

    def _make_expand(self, block: int, step: int) -> Linear:
        weight, scale, bias = self._named(f"blocks.{block}.expand", "weight", "scale", "bias")
        return Linear(weight, scale, bias[step])

    def blocks(self, h: Tensor, x: Tensor, step: int, places: Tensor | None = None) -> Tensor:
        """What the head sees, ``(B, h, w, channels) int8``, or of ``places`` ``(B, n, channels)``.

        Args:
            h: the residual stream ``(B, h, w, channels) float32``, which is used up.
            x: what the first block, or the head, sees of it (``see``); used up likewise.
            places: ``(n,)`` of the ``h * w``. The last block is computed for them only.
        """
        count = self.config.blocks
        for i in range(count):
            y = self._filters[i](x)
            if places is not None and i == count - 1:
                h, y = (z.flatten(1, 2).index_select(1, places) for z in (h, y))
                x = torch.empty_like(h, dtype=torch.int8)
            expand, rows = self._expand(i, step), None
            for seen, of, to in self.strips(y, h, x):
                rows = expand.room(len(seen)) if rows is None else rows[: len(seen)]
                self._filters[i].requantise(seen, rows[:, : expand.inputs])
                added = self._project[i](expand.rectified(rows)).round_().clamp_(-STREAM, STREAM)
                of.add_(added).clamp_(-STREAM, STREAM)
                self.see(of, to, step, i + 1)
        if places is not None and not count:
            x = x.flatten(1, 2).index_select(1, places)
        return x

    def see(self, h: Tensor, out: Tensor, step: int, block: int = 0) -> None:
        """What a block, or after the last one the head, sees of the residual stream."""
        name = f"blocks.{block}.gain" if block < self.config.blocks else "head.gain"
        out.copy_(torch.mul(h, self._t[name][step]).round_().clamp_(-SIGNED, SIGNED))

    def strips(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Views of some rows of each ``(..., channels)`` at a time; of ``(n,)`` some entries."""
        rows = (x if x.dim() == 1 else x.view(-1, x.shape[-1]) for x in tensors)
        return strips(self.config.hidden, *rows)

    def head(self, step: int, rows: Tensor | None = None) -> Linear:
        """Gives outputs ``(..., len(rows))``, all by default, of what the head sees.

        Every output is one IEEE product of an exact integer, hence the same everywhere.
        """
        weight, scale = self._named("head", "weight", "scale")
        if rows is None:
            return Linear(weight, scale[step])
        return Linear(weight[rows], scale[step, rows])


class IntegerNetwork(IntegerBlocks):
    """Exact inference of an exported ``BandNetwork``."""

    def __init__(
        self, config: NetworkConfig, tensors: dict[str, Tensor], device: torch.device
    ) -> None:
        check_shapes(tensors, config.tensors())
        super().__init__(config, tensors, device)
        self._stem = Linear(self._t["stem.weight"])

    @torch.inference_mode()
    def trunk(
        self, features: Tensor, lattice: Tensor, step: int, places: Tensor | None = None
    ) -> Tensor:
        """All but the last layer: ``(B, h, w, channels) int8``, which ``head`` takes.

        Args:
            features: ``(B, h, w, inputs) int8`` in [-127, 127].
            lattice: ``(h, w)`` int64, that of each block.
            step: the step of the schedule.
            places: see ``blocks``.
        """
        of_lattices, scale = self._t["stem.bias"][step].float(), self._t["stem.scale"]
        shape = (*features.shape[:-1], self.config.channels)
        h = torch.empty(shape, device=features.device)
        x = torch.empty_like(h, dtype=torch.int8)
        board = lattice.expand(features.shape[:-1]).flatten()
        for seen, own, of, to in self.strips(features, board, h, x):
            torch.mul(self._stem(seen).add_(of_lattices.index_select(0, own)), scale, out=of)
            of.round_().clamp_(-STREAM, STREAM)
            self.see(of, to, step)
        return self.blocks(h, x, step, places)
