"""The lossless layer's network: one look around for each place, then a colour after the other.

What tells most of a pixel's red is the green of the same pixel, and to take that in needs no second
look around. So a network looks once at each of the four places of a cell (``pixel_lattice.py`` has
the lattice and the order): it gives a first guess of all three colours, and what it saw is kept. A
head for red and one for blue, small networks of that pixel alone, correct the guess by how far the
colours before were from what had been expected of them. All of it in exact integers, as
``integer_network.py`` has them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.checks import check_shapes
from ...numerics.int8_products import Linear
from ...numerics.precision import mixed_precision
from ...numerics.strips import strips
from ...numerics.tiles import pieces
from .integer_network import (
    ACTIVATION,
    BandNetwork,
    IntegerNetwork,
    NetworkConfig,
    fake_quantize,
    fake_weight,
    integer_weight,
)
from .pixel_lattice import (
    COLOURS,
    INPUTS,
    MEAN_UNIT,
    PASSES,
    PLACES,
    SPREAD,
    TILE,
    base_of_pass,
    features,
    known,
    logistic_bits,
    to_cells,
)
from .schedule import PIXEL_UNIT
from .tuning import ERRORS, Tuning

_MAX_HEADS = 512  # sums of 255 * 127 stay below 2**24
_LARGEST = 127.0  # of what a head sees
# 2**(j / 4) as float32: what follows multiplies them by powers of two, which is exact everywhere.
_QUARTERS = (1.0, 1.1892071, 1.4142135, 1.6817929)


@dataclass(frozen=True)
class PlacesConfig:
    """Sizes of the network that looks around, and the inner width of the heads."""

    network: NetworkConfig
    heads: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PlacesConfig":
        """Of a model's ``pixel_network``; sizes that follow may be left out."""
        heads = values["heads"]
        if type(heads) is not int or not 1 <= heads <= _MAX_HEADS:
            raise ValueError(f"pixel_network's heads must be 1 to {_MAX_HEADS}, not {heads!r}")
        sizes = {"steps": len(PLACES), "inputs": INPUTS, "outputs": 2 * len(PASSES), "colours": 1}
        if any(values.get(name, size) != size for name, size in sizes.items()):
            raise ValueError(f"pixel_network must have {sizes}")
        rest = {name: value for name, value in values.items() if name != "heads"}
        return cls(NetworkConfig.from_dict({**rest, **sizes}), heads)

    def to_dict(self) -> dict[str, int]:
        return {**self.network.to_dict(), "heads": self.heads}

    def inputs(self, number: int) -> int:
        """How many numbers the head of a pass sees."""
        return self.network.channels + ERRORS * (number % len(COLOURS))

    def tensors(self, number: int) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and type of every tensor of the head of a pass."""
        name = f"heads.{number}."
        yield name + "expand.weight", (self.heads, self.inputs(number)), torch.int8
        yield name + "expand.bias", (self.heads,), torch.int32
        yield name + "expand.scale", (self.heads,), torch.float32
        yield name + "project.weight", (2, self.heads), torch.int8
        yield name + "project.scale", (2,), torch.float32


def heads_of_passes() -> list[int]:
    """The passes that have a head: a place's first colour has none before it."""
    return [number for number in range(len(PASSES)) if number % len(COLOURS)]


def inverse_scales() -> Tensor:
    """``2**-spread`` for each spread of the grid, float32: the same numbers everywhere."""
    quarters = [round(-4 * spread) for spread in SPREAD.values().tolist()]
    return torch.tensor([_QUARTERS[q % 4] * 2.0 ** (q // 4) for q in quarters])


def errors_seen(error: Tensor, spread: Tensor, scales: Tensor) -> Tensor:
    """What a head sees of a colour before: ``(..., 3)`` integers in [-127, 127] as floats; exact.

    Args:
        error: decoded pixel less its expectation, integers in 1/16 of a pixel value.
        spread: which of the grid's spreads had been expected, int64.
        scales: ``inverse_scales()``, where the others are.
    """
    parts = [error / 4, error / 32, error * scales[spread]]
    return torch.stack(parts, -1).round_().clamp_(-_LARGEST, _LARGEST)


class _Head(nn.Module):
    """A colour's head: what was seen and the errors of the colours before, to a correction."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Parameter(torch.randn(hidden, inputs) * (2 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.project = nn.Parameter(torch.zeros(2, hidden))

    def forward(self, seen: Tensor) -> Tensor:
        with mixed_precision(seen.device):
            x = F.linear(seen, fake_weight(self.expand)).float() + self.bias
        x = fake_quantize(x, ACTIVATION, 0.0, 255.0)
        with torch.autocast(x.device.type, enabled=False):  # its output shapes the likelihood
            return F.linear(x, fake_weight(self.project))


class PlacesModel(nn.Module):
    """The trainable network, and the likelihood of the pixels of a place."""

    scales: Tensor

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.config = PlacesConfig.from_dict(values)
        self.network = BandNetwork(self.config.network)
        nn.init.zeros_(self.network.head)
        self.register_buffer("scales", inverse_scales(), persistent=False)
        self.bias = nn.Parameter(torch.tensor([0.0, 1.5]).repeat(len(PASSES), 1))
        heads = {str(n): self.config.inputs(n) for n in heads_of_passes()}
        hidden = self.config.heads
        self.heads = nn.ModuleDict({n: _Head(inputs, hidden) for n, inputs in heads.items()})

    def forward(self, prediction: Tensor, residual: Tensor, place: int) -> Tensor:
        """Bits of each pixel of a place, ``(B, h, w, 3)``, in the order of their colours' coding.

        Args:
            prediction, residual: cells ``(B, h, w, 3, 4)`` in 1/16 of a pixel value, all known.
        """
        first = place * len(COLOURS)
        seen = features(prediction, residual * known(first, residual.device))
        colours = torch.zeros(seen.shape[1:3], dtype=torch.long, device=seen.device)
        step = torch.full((len(seen),), place, device=seen.device)
        with mixed_precision(seen.device):
            trunk = self.network.trunk(seen, colours, step)
        guesses = self.network.outputs(trunk)
        bits: list[Tensor] = []
        errors: list[Tensor] = []
        for number in range(first, first + len(COLOURS)):
            out = guesses[..., 2 * number : 2 * number + 2]
            if errors:
                out = out + self.heads[str(number)](torch.cat([trunk, *errors], -1))
            base, error = (base_of_pass(x, number) / PIXEL_UNIT for x in (prediction, residual))
            mean = (out[..., 0] + self.bias[number, 0]) * MEAN_UNIT
            expected = (base + mean).clamp(0.0, 255.0)
            mean = expected - base
            spread = out[..., 1] + self.bias[number, 1]
            bits.append(logistic_bits(error - mean, spread, expected))
            errors.append(self._seen(error, mean.detach(), spread.detach()))
        return torch.stack(bits, -1)

    def _seen(self, error: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """A colour's errors for the heads after it, as the decoder will have them."""
        off = (error * PIXEL_UNIT).round() - (mean * PIXEL_UNIT).round()
        index = ((spread - SPREAD.low) / SPREAD.step).round().clamp(0, SPREAD.size - 1)
        return errors_seen(off, index.long(), self.scales) / ACTIVATION

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """Tensors of the model file: the integer network's, the heads', ``bias (12, 2) int32``."""
        out = self.network.export()
        # Outputs come in sixteenths of a pixel value and in steps of the grid of spreads.
        unit = torch.tensor([1 / (PIXEL_UNIT * MEAN_UNIT), SPREAD.step])
        low = torch.tensor([0.0, SPREAD.low])
        scale = out["head.scale"].view(-1, 2) / unit
        out["head.scale"] = scale.flatten().expand(len(PLACES), -1).contiguous()
        for number, head in self.heads.items():
            assert isinstance(head, _Head)
            name = f"heads.{number}."
            out[name + "expand.weight"], scale = integer_weight(head.expand)
            out[name + "expand.scale"] = scale
            bias = head.bias / (scale / ACTIVATION)
            out[name + "expand.bias"] = bias.round().to(torch.int32)
            out[name + "project.weight"], scale = integer_weight(head.project)
            out[name + "project.scale"] = scale / ACTIVATION / unit
        bias = (self.bias - low) / unit
        out["bias"] = bias.round().clamp(-(2**20), 2**20).to(torch.int32)
        return {name: value.contiguous() for name, value in out.items()}


@dataclass
class Look:
    """What a decoder keeps of a place from one of its passes to the next.

    Attributes:
        trunk: what the network saw, ``(B, h, w, channels) int8``; None before the first look.
        guesses: its rounded outputs for the place's three colours, ``(B, h, w, 6) float32``.
        expected: of each colour before, how far its expectation was from the levels' prediction, in
            1/16 of a pixel value, and which spread, ``(B, h, w)`` float32 and int64.
    """

    trunk: Tensor | None = None
    guesses: Tensor | None = None
    expected: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class PlacesNetwork:
    """The exported network at work.

    ``prediction`` and ``residual`` are pictures ``(B, 3, H, W)`` of whole blocks, float32 integers
    in 1/16 of a pixel value, the latter zero where nothing is known, as outside the picture.
    """

    def __init__(
        self, values: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
    ) -> None:
        config = self.config = PlacesConfig.from_dict(values)
        tensors, count = dict(tensors), len(PASSES)
        steps, outputs = config.network.steps, config.network.outputs
        check_shapes(tensors, [("head.scale", (steps, outputs), torch.float32)])
        check_shapes(tensors, [("bias", (count, 2), torch.int32)])
        bias = tensors.pop("bias")
        self._heads = {}
        for number in heads_of_passes():
            prefix = f"heads.{number}."
            own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
            check_shapes(own, config.tensors(number))
            self._heads[number] = _IntegerHead(prefix, own, device)
        if int(bias.abs().max()) > 1 << 20:
            raise ValueError("its biases are out of range")
        worst = max(head.worst for head in self._heads.values())
        if worst + max(map(config.inputs, self._heads)) * 127 * 127 >= 1 << 24:
            raise ValueError("the biases of its heads are too large for exact sums")
        self._bias = bias.to(device, torch.float32)
        self._scales = inverse_scales().to(device)
        self._network = IntegerNetwork(config.network, tensors, device)
        self.device = device

    def predict(
        self,
        prediction: Tensor,
        residual: Tensor,
        number: int,
        look: Look,
        tuning: Tuning | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The pass's predicted pixels in 1/16 of a value and spread indices, ``(B, H/2, W/2)``.

        ``look`` is what the pass before has left there; of a place's first pass it is replaced.
        """
        place, turn = divmod(number, len(COLOURS))
        if turn == 0:
            self._look(prediction, residual, place, look)
        assert look.guesses is not None
        del look.expected[turn:]
        out = look.guesses[..., 2 * turn : 2 * turn + 2] + self._bias[number]
        seen = self._seen(residual, number, look)
        if turn:
            out += self._heads[number](seen)
        (row, column), colour = PASSES[number]
        base = prediction[:, colour, row::2, column::2]
        if tuning is not None:
            tuning.correct(out, base, seen, number)
        mean = (base + out[..., 0].clamp(-4080, 4080)).clamp_(0, 255 * PIXEL_UNIT)
        spread = out[..., 1].clamp(0, SPREAD.size - 1)
        look.expected.append((mean - base, spread.long()))
        return mean, spread

    def _look(self, prediction: Tensor, residual: Tensor, place: int, look: Look) -> None:
        count, _, height, width = prediction.shape
        shape = (count, height // 2, width // 2)
        config, device = self._network.config, self.device
        trunk = torch.empty((*shape, config.channels), dtype=torch.int8, device=device)
        guesses = torch.empty((*shape, 2 * len(COLOURS)), device=device)
        rows = torch.arange(len(COLOURS) * 2, device=device) + place * len(COLOURS) * 2
        head = self._network.head(place, rows)
        for piece in pieces(*shape, TILE, config.halo):
            area = (slice(2 * s.start, 2 * s.stop) for s in piece.seen)
            of = (piece.pictures, slice(None), *area)
            seen = features(to_cells(prediction[of]), to_cells(residual[of])).to(torch.int8)
            colours = torch.zeros(seen.shape[1:3], dtype=torch.long, device=device)
            own = self._network.trunk(seen, colours, place)[:, *piece.inner]
            trunk[piece.pictures, *piece.tile] = own
            guesses[piece.pictures, *piece.tile] = head(own)
        look.trunk, look.guesses = trunk, guesses.round_()

    def _seen(self, residual: Tensor, number: int, look: Look) -> list[Tensor]:
        """What a pass's head sees of each cell, parts ``(B, h, w, n) int8``."""
        assert look.trunk is not None
        (row, column), _ = PASSES[number]
        seen = [look.trunk]
        for colour, (expected, spread) in zip(COLOURS, look.expected, strict=False):
            error = residual[:, colour, row::2, column::2] - expected
            seen.append(errors_seen(error, spread, self._scales).to(torch.int8))
        return seen


class _IntegerHead:
    """Exact inference of an exported head."""

    def __init__(self, prefix: str, tensors: dict[str, Tensor], device: torch.device) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype == torch.int8 and int(tensor.min()) < -127:
                raise ValueError(f"the model's {name} has weights below -127")
        t = {name.removeprefix(prefix): tensor.to(device) for name, tensor in tensors.items()}
        self._expand = Linear(t["expand.weight"], t["expand.scale"], t["expand.bias"])
        self._project = Linear(t["project.weight"], t["project.scale"])
        self.worst = max(abs(int(end)) for end in tensors[f"{prefix}expand.bias"].aminmax())

    @torch.inference_mode()
    def __call__(self, seen: list[Tensor]) -> Tensor:
        """``(..., 2)`` integers of parts ``(..., n) int8`` of what it sees."""
        flat = [x.flatten(0, -2) for x in seen]
        out = torch.empty((len(flat[0]), self._project.outputs), device=flat[0].device)
        ends = list(accumulate(x.shape[1] for x in flat))
        for to, *parts in strips(self._expand.outputs, out, *flat):
            x = self._expand.room(len(to))
            for part, end in zip(parts, ends, strict=True):
                x[:, end - part.shape[1] : end] = part
            to.copy_(self._project(self._expand.rectified(x)).round_())
        return out.view(*seen[0].shape[:-1], -1)
