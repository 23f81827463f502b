"""Reconstruction heads: what else a decoder can show of the same stream than expectations.

A conditional mean is right for squared error and blurs what it is not sure of. A head sees what the
trunk sees of a block, the means of its 192 coefficients and, if it draws, noise; it moves the
coefficients. It is trained on top of a model that stays as it is, so it changes no stream and no
model id, and is a file of its own:

    trunk (int8), means, noise -> 1x1 -> h -> N x block -> 1x1 -> shift, expected error
    block: h += W2 relu(W1 depthwise5x5(h))
    shown: means * (1 + gain) + shift + loudness * expected error * noise

All at 1/8 resolution, in floats: heads are not exact. A picture is the same in any batch, and in
any tiles to within rounding; on another device pixels may differ by one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidModelError
from ...models.checks import build
from ...numerics.lapped_transform import BANDS
from ...numerics.tiles import Piece, in_tiles
from ...stream.dither import unit_noise
from .integer_network import ACTIVATION
from .level_network import TILE
from .schedule import RATIO, SHIFT_UNIT

KERNEL = 5
_SIZES = {
    "levels": (1, 16),
    "trunk": (1, 1024),
    "channels": (1, 512),
    "hidden": (1, 1024),
    "blocks": (0, 16),
}
_LOUDNESS = 0.35  # of added noise in an untrained head, in expected errors
_ONE = 0.5413  # whose softplus is 1


@dataclass(frozen=True)
class HeadConfig:
    """Size of a head.

    Attributes:
        levels: of the model. A head knows what is shown after each of them.
        trunk: channels of the model's trunk.
        noise: whether it draws, or shows what it finds best.
    """

    levels: int
    trunk: int
    channels: int = 128
    hidden: int = 256
    blocks: int = 3
    noise: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeadConfig":
        """Raises ValueError or TypeError for what no head has."""
        config = cls(**values)
        for name, (least, most) in _SIZES.items():
            size = getattr(config, name)
            if type(size) is not int or not least <= size <= most:
                raise ValueError(f"{name} must be {least} to {most}, not {size!r}")
        if type(config.noise) is not bool:
            raise ValueError(f"noise must be true or false, not {config.noise!r}")
        return config

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class HeadNetwork(nn.Module):
    """The network, in training and at work.

    Attributes:
        scale: the usual error of a mean, ``(levels, 192)`` in intervals of the level: what goes in
            and out is in multiples of it. Measured before the training; 0 until then.
    """

    scale: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        c, outputs = config.channels, BANDS * (1 + config.noise)
        inputs = config.trunk + BANDS * (1 + config.noise)
        self.stem = nn.Linear(inputs, c)
        self.start = nn.Parameter(torch.zeros(config.levels, c))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.out = nn.Linear(c, outputs)
        self.level_out = nn.Parameter(torch.zeros(config.levels, outputs))
        self.gain = nn.Parameter(torch.zeros(config.levels, BANDS))
        if config.noise:
            self.loudness = nn.Parameter(torch.full((config.levels, BANDS), _LOUDNESS))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("scale", torch.zeros(config.levels, BANDS))

    @property
    def halo(self) -> int:
        """How far it looks on each side, in blocks of 8 pixels."""
        return self.config.blocks * (KERNEL // 2)

    def forward(self, trunk: Tensor, means: Tensor, noise: Tensor | None, level: Tensor) -> Tensor:
        """What each coefficient is moved by, ``(B, h, w, 192)`` in intervals of the level."""
        return self.look(trunk, means, noise, level)[0]

    def look(
        self, trunk: Tensor, means: Tensor, noise: Tensor | None, level: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What each coefficient is moved by, and of a head that draws the error it expects.

        Both ``(B, h, w, 192)`` in intervals of the level.

        Args:
            trunk: ``(B, h, w, trunk) int8`` or the same as floats.
            means: expected coefficients in intervals of the level, ``(B, h, w, 192)``.
            noise: of variance 1, likewise; None for a head that does not draw.
            level: ``(B,) int64``, after how many levels each picture is shown.
        """
        row = level - 1
        scale = self.scale[row][:, None, None]
        seen = [trunk.float() / ACTIVATION, torch.asinh(means / scale)]
        if noise is not None:
            seen.append(noise)
        h = self.stem(torch.cat(seen, -1)) + self.start[row][:, None, None]
        for block in self.blocks:
            h = block(h, row)
        out = self.out(F.relu(h)) + self.level_out[row][:, None, None]
        moved = means * self.gain[row][:, None, None]
        if noise is None:
            return moved + out * scale, None
        shift, size = out.chunk(2, -1)
        error = F.softplus(size + _ONE) * scale
        loudness = self.loudness[row][:, None, None]
        return moved + shift * scale + loudness * noise * error, error


class _Block(nn.Module):
    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        c, hidden = config.channels, config.hidden
        self.depthwise = nn.Conv2d(c, c, KERNEL, padding=KERNEL // 2, groups=c)
        self.expand = nn.Linear(c, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.levels, hidden))
        self.project = nn.Linear(hidden, c)
        nn.init.normal_(self.project.weight, std=0.1 * hidden**-0.5)

    def forward(self, h: Tensor, row: Tensor) -> Tensor:
        x = self.depthwise(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = F.relu(self.expand(x) + self.bias[row][:, None, None])
        return h + self.project(x)


class Head:
    """A trained head at work.

    Raises InvalidModelError where configuration and tensors do not make one, or one for a model of
    other levels.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        levels: int,
        trunk: int,
        device: torch.device,
    ) -> None:
        try:
            self.config = HeadConfig.from_dict(config)
        except (TypeError, ValueError) as error:
            raise InvalidModelError(f"not a reconstruction head: {error}") from error
        if (self.config.levels, self.config.trunk) != (levels, trunk):
            raise InvalidModelError("the reconstruction head is for a model of another size")
        network = build(lambda: HeadNetwork(self.config), tensors)
        if float(tensors["scale"].min()) <= 0:
            raise InvalidModelError("not a reconstruction head: its scale is not positive")
        network.load_state_dict({name: value.float() for name, value in tensors.items()})
        self._network = network.requires_grad_(False).eval().to(device)
        self._device = device

    def __call__(self, trunk: Tensor, expected: Tensor, level: int) -> Tensor:
        """Coefficients ``(B, h, w, 192)`` in 1/32 of the last Delta, as ``expected`` is.

        Args:
            trunk: what the trunk sees after the level, ``(B, h, w, channels) int8``.
        """
        unit = float(SHIFT_UNIT * RATIO ** (self.config.levels - level))
        means, noise = expected / unit, None
        if self.config.noise:
            drawn = unit_noise(tuple(expected.shape[1:]))
            noise = torch.from_numpy(drawn).to(self._device, non_blocking=True)

        def of(piece: Piece, at: Tensor | None) -> Tensor:
            own = None
            count = len(range(len(trunk))[piece.pictures])
            if noise is not None:
                own = noise[piece.seen].expand(count, -1, -1, -1)
            levels = torch.full((count,), level, device=self._device)
            seen = (x[piece.pictures, *piece.seen] for x in (trunk, means))
            moved = self._network(*seen, own, levels).flatten(1, 2)
            return moved if at is None else moved[:, at]

        moved = in_tiles(trunk.shape[:3], TILE, self._network.halo, of, self._device)
        return expected + moved.unflatten(1, trunk.shape[1:3]) * unit


def parameters(config: HeadConfig) -> int:
    """How many numbers a head has, which is what it multiplies for a block of 8x8 pixels, too."""
    return sum(math.prod(p.shape) for p in HeadNetwork(config).parameters())
