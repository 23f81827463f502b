"""The pass network: what a level's own digits tell about those that are still to come.

The trunk (``integer_network.py``) looks at a level's state once, before its first digit. Each later
pass of the level adds to the trunk's outputs what the digits of the passes before it say. That is
little work: a narrow network that sees the digits and what the trunk has seen.

    trunk -> 1x1 -> + <- 1x1 <- digits so far (2 x 192, 8 bits)
                    |
                    h -> N x block -> 1x1 -> added to the trunk's tilts and widths (2 x 192)

Integers all through, as in ``integer_network.py``, whose blocks it has.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.checks import check_shapes
from ...numerics.int8_products import Linear
from ...numerics.lapped_transform import BANDS
from .integer_network import (
    ACTIVATION,
    RESIDUAL,
    SIGNED,
    STREAM,
    Block,
    IntegerBlocks,
    NetworkConfig,
    export_blocks,
    fake_quantize,
    fake_weight,
    integer_weight,
)

DIGIT = 40.0  # what a digit of one is to the network; three and more are the same


@dataclass(frozen=True)
class PassConfig:
    """Sizes of the pass network.

    Attributes:
        channels, hidden, blocks: as in ``NetworkConfig``.
        trunk: channels of the trunk.
        levels: those after level 0.
        steps: passes that it is for: all but the first of each of these levels.
    """

    trunk: int
    levels: int
    steps: int
    channels: int = 96
    hidden: int = 192
    blocks: int = 2

    @property
    def network(self) -> NetworkConfig:
        """The network after both inputs have been added up."""
        sizes = {"channels": self.channels, "hidden": self.hidden, "blocks": self.blocks}
        return NetworkConfig.from_dict({**sizes, "steps": self.steps, "outputs": 2 * BANDS})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PassConfig":
        config = cls(**values)
        NetworkConfig.from_dict({"steps": 1, "outputs": 1, "inputs": config.trunk})
        assert config.network
        return config

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and type of the tensors before the blocks of an exported network."""
        c = self.channels
        yield "join.weight", (c, self.trunk), torch.int8
        yield "join.scale", (self.levels, c), torch.float32
        yield "stem.weight", (c, 2 * BANDS), torch.int8
        yield "stem.scale", (c,), torch.float32
        yield "stem.bias", (self.steps, self.network.colours, c), torch.int32


def digit_features(digits: Tensor) -> Tensor:
    """``(..., n)`` digits, 0 where there is none yet, to ``(..., 2 n) int8``."""
    signed = (digits * DIGIT).clamp_(-SIGNED, SIGNED).to(torch.int8)
    return torch.cat([signed, signed.abs()], -1)


class PassNetwork(nn.Module):
    """The trainable network."""

    def __init__(self, config: PassConfig) -> None:
        super().__init__()
        self.config = config
        c, network = config.channels, config.network
        self.join = nn.Parameter(torch.randn(c, config.trunk) * config.trunk**-0.5)
        self.join_gain = nn.Parameter(torch.ones(config.levels, c))
        self.stem = nn.Parameter(torch.randn(c, 2 * BANDS) * 0.3)
        self.stem_bias = nn.Parameter(torch.zeros(config.steps, network.colours, c))
        self.blocks = nn.ModuleList(Block(network) for _ in range(config.blocks))
        self.head_gain = nn.Parameter(torch.ones(config.steps, c))
        self.head = nn.Parameter(torch.zeros(network.outputs, c))
        nn.init.normal_(self.head, std=1e-3)

    def forward(
        self, trunk: Tensor, features: Tensor, lattice: Tensor, level: Tensor, step: Tensor
    ) -> Tensor:
        """Float outputs ``(B, h, w, 2 * 192)``: what is added to tilts and widths.

        Args:
            trunk: ``BandNetwork.trunk``'s output, ``(B, h, w, trunk)``.
            features: ``digit_features``, ``(B, h, w, 2 * 192)``.
            lattice: ``(h, w)`` int64, that of each block.
            level: ``(B,)`` int64, which of the levels each picture is at.
            step: ``(B,)`` int64, which of the passes.
        """
        seen = F.linear(trunk, fake_weight(self.join)).float()
        seen = seen * self.join_gain[level][:, None, None]
        told = F.linear(features / ACTIVATION, fake_weight(self.stem)).float()
        h = seen + told + self.stem_bias[step][:, lattice]
        h = fake_quantize(h, RESIDUAL, -STREAM, STREAM)
        for block in self.blocks:
            h = block(h, step)
        h = fake_quantize(h * self.head_gain[step][:, None, None], ACTIVATION, -SIGNED, SIGNED)
        with torch.autocast(h.device.type, enabled=False):  # its output shapes the likelihood
            return F.linear(h, fake_weight(self.head))

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """Integer weights (int8), biases (int32) and float32 requantisation factors."""
        out = export_blocks(self)
        out["join.weight"], scale = integer_weight(self.join)
        out["join.scale"] = scale / ACTIVATION * RESIDUAL * self.join_gain.float()
        out["stem.weight"], scale = integer_weight(self.stem)
        out["stem.scale"] = scale / ACTIVATION * RESIDUAL
        out["stem.bias"] = (self.stem_bias * RESIDUAL).round().to(torch.int32)
        return {name: value.contiguous() for name, value in out.items()}


class IntegerPasses(IntegerBlocks):
    """Exact inference of an exported pass network."""

    def __init__(
        self, config: PassConfig, tensors: dict[str, Tensor], device: torch.device
    ) -> None:
        network = config.network
        check_shapes(tensors, [*config.tensors(), *network.block_tensors()])
        super().__init__(network, tensors, device)
        self._join = cache(self._make_join)

    def _make_join(self, level: int) -> Linear:
        weight, scale = self._named("join", "weight", "scale")
        return Linear(weight, scale[level])

    @torch.inference_mode()
    def join(self, trunk: Tensor, level: int) -> Tensor:
        """What the passes of a level (counted from 0) see of the trunk.

        ``(..., channels) float32`` of ``(..., trunk) int8``.
        """
        return self._join(level)(trunk).round_().clamp_(-STREAM, STREAM)

    def of_bands(self, bands: Tensor) -> Linear:
        """What ``digit_features`` of some bands ``(n,)`` are multiplied with, to be added up."""
        return Linear(self._t["stem.weight"][:, torch.cat([bands, bands + BANDS])])

    @torch.inference_mode()
    def look(
        self, joined: Tensor, told: Tensor, lattice: Tensor, step: int, places: Tensor | None
    ) -> Tensor:
        """What the head sees in a pass: ``(B, h, w, channels) int8``, of places ``(B, n, ...)``.

        Args:
            joined: ``join``'s, ``(B, h, w, channels)``.
            told: sums of ``of_bands`` of all digits of the level so far, likewise.
            lattice: ``(h, w)`` int64, that of each block.
            step: which of the passes.
        """
        of_lattices, scale = self._t["stem.bias"][step].float(), self._t["stem.scale"]
        h = torch.empty_like(joined)
        x = torch.empty_like(h, dtype=torch.int8)
        board = lattice.expand(joined.shape[:-1]).flatten()
        for seen, sums, own, of, to in self.strips(joined, told, board, h, x):
            torch.mul(sums, scale, out=of).round_().add_(seen)
            of.add_(of_lattices.index_select(0, own)).clamp_(-STREAM, STREAM)
            self.see(of, to, step)
        return self.blocks(h, x, step, places)
