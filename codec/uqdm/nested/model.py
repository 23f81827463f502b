"""The trainable nested model: networks, biases, table parameters, and its likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...numerics.lapped_transform import BANDS, BLOCK
from ...numerics.precision import mixed_precision
from .bands import to_bands, to_pictures
from .digit_choice import likely_digits
from .first_network import FirstLayout
from .integer_network import BandNetwork, NetworkConfig
from .pass_network import PassConfig, PassNetwork, digit_features
from .pixel_lattice import PLACES, to_cells
from .pixel_network import PlacesModel
from .schedule import (
    OUTPUTS,
    PIXEL_UNIT,
    SHIFT_UNIT,
    Features,
    Grid,
    NestedConfig,
    feature_units,
    lattice_of,
    level_digits,
    log_pmf,
    pass_mask,
)

_LN2 = 0.6931471805599453


class _Round(torch.autograd.Function):
    """Rounding whose gradient is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _on_grid(x: Tensor, grid: Grid) -> Tensor:
    index: Tensor = _Round.apply((x - grid.low) / grid.step)
    return index.clamp(0, grid.size - 1) * grid.step + grid.low


@dataclass
class _AtLevel:
    """Pictures at a level: their state before it, and the level's digits."""

    level: int
    images: Tensor
    coefficients: Tensor
    grid: Tensor
    digits: Tensor

    @property
    def pixels(self) -> int:
        return self.images.shape[0] * self.images.shape[2] * self.images.shape[3]


class NestedModel(nn.Module):
    """Trained by maximum likelihood of the digits themselves, one random level each.

    Attributes:
        network: the trunk, of levels 1 and on, and of what is expected after the last one.
        pass_network: what the later passes of these levels add.
        first_network: the light network of level 0 (``first_network.py``).
        first_bias: ``(passes of level 0 + 1, 3, 2, 192)`` for each output, significance class and
            band; the last row is that of previews.
        bias: ``(levels, 3, 2, 192)`` of levels 1 and on, and of what is expected after the last
            one. All are started from counted statistics, so that the untrained model is already a
            transform codec.
        first_energy, first_theta: ``(2, A - 1)`` tails of level 0's tables for high and low bands.
        energy, theta: ``(2 (levels - 1), 1)`` of the other levels, by level and significance.
        pixel_network: that of the lossless layer (``pixel_network.py``), where the model has one.
    """

    def __init__(
        self,
        config: NestedConfig,
        network: dict[str, Any] | None = None,
        pass_network: dict[str, Any] | None = None,
        first_network: dict[str, Any] | None = None,
        pixel_network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        size = {"steps": config.levels, "outputs": len(OUTPUTS) * BANDS}
        self.network = BandNetwork(NetworkConfig.from_dict({**(network or {}), **size}))
        later = config.later_passes()
        sizes = {"levels": config.levels - 1, "steps": len(later)}
        sizes["trunk"] = self.network.config.channels
        self.pass_network = PassNetwork(PassConfig.from_dict({**(pass_network or {}), **sizes}))
        self._later = {step: number for number, step in enumerate(later)}
        self.layout = FirstLayout.of(config)
        self.first_network = BandNetwork(self.layout.network(first_network or {}))
        self.pixel_network = None if pixel_network is None else PlacesModel(pixel_network)
        self.first_bias = nn.Parameter(torch.zeros(self.layout.steps, len(OUTPUTS), 2, BANDS))
        self.bias = nn.Parameter(torch.zeros(config.levels, len(OUTPUTS), 2, BANDS))
        first, rest = config.first_digits, config.digits
        square = torch.arange(2.0, first + 1) ** 2  # broad low bands: nearly Gaussian
        line = torch.arange(2.0, first + 1)  # sparse high bands: nearly Laplacian
        self.first_energy = nn.Parameter(torch.stack([line, square]))
        self.first_theta = nn.Parameter(torch.zeros(2, first - 1))
        sets = 2 * (config.levels - 1)
        self.energy = nn.Parameter(torch.arange(2.0, rest + 1).repeat(sets, 1))
        self.theta = nn.Parameter(torch.zeros(sets, rest - 1))

    def tails(self, first: bool) -> tuple[Tensor, Tensor]:
        """Energy and theta by set and magnitude, each ``(sets, A + 1)``."""
        energy = self.first_energy if first else self.energy
        theta = self.first_theta if first else self.theta
        zero, one = torch.zeros_like(energy[:, :1]), torch.ones_like(energy[:, :1])
        return torch.cat([zero, one, energy], 1), torch.cat([zero, zero, theta], 1)

    @torch.no_grad()
    def state_before(self, coefficients: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The grid before a level and the digits of the level, ``(B, h, w, 192)`` each.

        As far as can be told without a network: digits depend on the coefficients alone here.
        """
        config = self.config
        grid = torch.zeros_like(coefficients)
        for before in range(level):
            grid += level_digits(coefficients, grid, before, config) * self._units(before, grid)
        if level == config.levels:
            return grid, torch.zeros_like(grid)
        return grid, level_digits(coefficients, grid, level, config)

    @torch.no_grad()
    def encoded_states(
        self, images: Tensor, levels: int | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Grid and digits of each level as the encoder makes them, and the grid after the last.

        Of all levels, or of the first ``levels``. Pass by pass, each with the tables that the
        passes before it lead to, as in ``NestedScheme.encode``.
        """
        config = self.config
        coefficients = to_bands(images, config)
        grid, states = torch.zeros_like(coefficients), []
        for level in range(config.levels if levels is None else levels):
            stage = _AtLevel(level, images, coefficients, grid, torch.zeros_like(grid))
            board, trunk, outputs = lattice_of(grid), None, None
            if level:
                trunk, outputs = self._trunk_outputs([stage])
            for number in range(len(config.passes[level])):
                if level == 0:
                    known = grid + stage.digits * self._units(0, grid)
                    logits = self._first_outputs(known, [number])[..., :2, :]
                    logits = logits + self.first_bias[number, :2, 0]
                else:
                    assert trunk is not None
                    assert outputs is not None
                    logits = self._logits(stage, outputs[0])
                    if number:
                        logits = logits + self._added([(stage, trunk[0], number)], board)[0]
                mask = torch.from_numpy(pass_mask(config, level, number)).to(grid.device)
                coded = mask[board].expand_as(grid)
                log_p, rest = self._distribution(stage, logits, coded)
                most = log_p.shape[-1] // 2
                near = rest.round()
                chosen = likely_digits(rest, log_p, config.mendable).float() - most
                stage.digits[coded] = torch.where(near.abs() > most, near, chosen)
            states.append((grid, stage.digits))
            grid = grid + stage.digits * self._units(level, grid)
        return [*states, (grid, torch.zeros_like(grid))]

    def forward(
        self,
        images: Tensor,
        levels: Sequence[int],
        states: Sequence[tuple[Tensor, Tensor]],
        places: Sequence[int] = range(len(PLACES)),
    ) -> list[dict[str, Tensor]]:
        """Losses of pictures ``(B, 3, H, W) uint8`` at some levels.

        ``config.levels`` is what comes after the last level. Returned for each: ``bits`` per pixel
        that the level costs, and ``mse``, the error of the reconstruction before the level in
        squared Deltas per pixel. ``preview`` is the light network's, of level 1. After the last
        level, ``bits`` are those of a pixel network at some ``places``, as if all were like them. A
        network that is frozen is left out. ``states`` are those of ``encoded_states``.
        """
        coefficients = to_bands(images, self.config)
        stages = [_AtLevel(level, images, coefficients, *states[level]) for level in levels]
        losses: list[dict[str, Tensor]] = [{} for _ in levels]
        for stage, loss in zip(stages, losses, strict=True):
            if stage.level <= 1 and self.first_network.head.requires_grad:
                loss |= self._first_losses(stage)
        later = [i for i, stage in enumerate(stages) if stage.level]
        pixels = self.pixel_network is not None and self.pixel_network.bias.requires_grad
        if later and (self.network.head.requires_grad or pixels):
            found = self._later_losses([stages[i] for i in later], places)
            for i, loss in zip(later, found, strict=True):
                losses[i] |= loss
        return losses

    # -- level 0 ----------------------------------------------------------------------------------

    def _first_losses(self, stage: _AtLevel) -> dict[str, Tensor]:
        """Bits of level 0, or at level 1 the error of previews after it."""
        config, passes = self.config, self.layout.steps - 1
        board = lattice_of(stage.grid)
        if stage.level == 1:
            out = self._first_outputs(stage.grid, [passes])
            shift = self._shift(stage, out[..., OUTPUTS["shift"], :], self.first_bias[passes])
            return {"preview": self._error(stage, shift)}
        masks = torch.from_numpy(np.stack([pass_mask(config, 0, n) for n in range(passes)]))
        masks = masks.to(board.device)[:, board]
        known = torch.cumsum(masks, 0) - masks.long()
        values = stage.digits * self._units(0, stage.grid)
        states = torch.cat([stage.grid + values * m for m in known])
        outputs = self._first_outputs(states, list(range(passes))).chunk(passes)
        logits = outputs[0][..., :2, :] + self.first_bias[0, :2, 0]
        for number in range(1, passes):
            own = outputs[number][..., :2, :] + self.first_bias[number, :2, 0]
            logits = torch.where(masks[number].unsqueeze(-2), own, logits)
        return {"bits": self._bits(stage, logits)}

    def _first_outputs(self, grids: Tensor, steps: list[int]) -> Tensor:
        """The light network's outputs ``(B, h, w, 3, 192)``, 0 for bands that it does not have."""
        config, device = self.config, grids.device
        chosen = torch.from_numpy(self.layout.bands).to(device)
        units = self._units(0, grids)[chosen]
        seen = Features(config, device, self.layout.bands)(grids[..., chosen], units)
        step = torch.tensor(steps, device=device).repeat_interleave(len(grids) // len(steps))
        with mixed_precision(device):
            trunk = self.first_network.trunk(seen, lattice_of(grids), step)
        some = self.first_network.outputs(trunk)
        out = some.new_zeros((*some.shape[:-1], len(OUTPUTS), BANDS))
        parts = self.layout.rows()
        for (number, rows), part in zip(
            parts, some.split([len(rows) for _, rows in parts], -1), strict=True
        ):
            out[..., number, torch.from_numpy(rows).to(device)] = part
        return out

    # -- later levels -----------------------------------------------------------------------------

    def _trunk_outputs(
        self, stages: Sequence[_AtLevel]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The trunk and its outputs ``(b, h, w, 3, 192)``, of each stage."""
        config, device = self.config, stages[0].grid.device
        features = Features(config, device)
        seen = torch.cat([features(s.grid, feature_units(config, s.level, s.grid)) for s in stages])
        step = torch.tensor([s.level - 1 for s in stages], device=device)
        with mixed_precision(device):
            step = step.repeat_interleave(len(stages[0].grid))
            trunk = self.network.trunk(seen, lattice_of(seen), step)
        outputs = self.network.outputs(trunk).unflatten(-1, (len(OUTPUTS), BANDS))
        return trunk.chunk(len(stages)), outputs.chunk(len(stages))

    def _later_losses(
        self, stages: list[_AtLevel], places: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        config, board = self.config, lattice_of(stages[0].grid)
        trunks, outputs = self._trunk_outputs(stages)
        losses: list[dict[str, Tensor]] = []
        for stage, out in zip(stages, outputs, strict=True):
            shift = self._shift(stage, out[..., OUTPUTS["shift"], :], self.bias[stage.level - 1])
            losses.append({"mse": self._error(stage, shift)})
            if stage.level == config.levels and self.pixel_network is not None:
                bits = self._pixel_bits(stage.grid, shift, stage.images, places)
                losses[-1]["bits"] = bits
        passes = [
            (stage, trunk, number)
            for stage, trunk in zip(stages, trunks, strict=True)
            if stage.level < config.levels
            for number in range(1, len(config.passes[stage.level]))
        ]
        added = iter(self._added(passes, board) if passes else [])
        for stage, out, loss in zip(stages, outputs, losses, strict=True):
            if stage.level == config.levels:
                continue
            logits = start = self._logits(stage, out)
            for number in range(1, len(config.passes[stage.level])):
                mask = torch.from_numpy(pass_mask(config, stage.level, number)).to(board.device)
                logits = torch.where(mask[board].unsqueeze(-2), start + next(added), logits)
            loss["bits"] = self._bits(stage, logits)
        return losses

    def _logits(self, stage: _AtLevel, out: Tensor) -> Tensor:
        """Tilts and widths ``(b, h, w, 2, 192)`` by the trunk's outputs alone."""
        bias = self.bias[stage.level - 1, :2]
        significant = (stage.grid != 0).unsqueeze(-2)
        return out[..., :2, :] + torch.where(significant, bias[:, 1], bias[:, 0])

    def _added(self, passes: Sequence[tuple[_AtLevel, Tensor, int]], board: Tensor) -> list[Tensor]:
        """What the pass network adds to tilts and widths ``(b, h, w, 2, 192)``, of each pass.

        Passes are of a stage, with what the trunk has seen of it.
        """
        seen, device = [], board.device
        for stage, _, number in passes:
            masks = [pass_mask(self.config, stage.level, before) for before in range(number)]
            known = torch.from_numpy(np.logical_or.reduce(masks)).to(device)
            seen.append(digit_features(stage.digits * known[board]))
        levels = [stage.level - 1 for stage, _, _ in passes]
        steps = [self._later[stage.level, number] for stage, _, number in passes]
        level, step = (
            torch.tensor(n, device=device).repeat_interleave(len(seen[0])) for n in (levels, steps)
        )
        with mixed_precision(device):
            trunks = torch.cat([trunk for _, trunk, _ in passes])
            out = self.pass_network(trunks, torch.cat(seen), board, level, step)
        return list(out.unflatten(-1, (2, BANDS)).chunk(len(passes)))

    # -- both -------------------------------------------------------------------------------------

    def _distribution(
        self, stage: _AtLevel, logits: Tensor, coded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(n, 2 A + 1)`` of the coded digits, and what they stand for ``(n,)``.

        Args:
            logits: tilts and widths ``(b, h, w, 2, 192)``.
            coded: which coefficients have digits, ``(b, h, w, 192) bool``.
        """
        config, level = self.config, stage.level
        tilt_grid, width_grid = config.grids(level)
        tilt = _on_grid(logits[..., 0, :][coded], tilt_grid)
        width = _on_grid(logits[..., 1, :][coded], width_grid)
        if level:
            sets = (stage.grid != 0)[coded].long() + 2 * (level - 1)
        else:
            low = torch.from_numpy(config.low_bands()).to(coded.device)
            sets = low.expand_as(coded)[coded].long()
        energy, theta = self.tails(level == 0)
        log_p = log_pmf(tilt, width, energy[sets], theta[sets])
        rest = (stage.coefficients - stage.grid) / self._units(level, stage.grid)
        return log_p, rest[coded]

    def _units(self, level: int, like: Tensor) -> Tensor:
        return torch.from_numpy(self.config.units(level)).to(like.device)

    def _bits(self, stage: _AtLevel, logits: Tensor) -> Tensor:
        """Bits per pixel of a level, of each coefficient by the logits of its pass."""
        config = self.config
        coded = torch.from_numpy(config.level_bands(stage.level)).to(logits.device)
        log_p, rest = self._distribution(stage, logits, coded.expand_as(stage.grid))
        target = likely_digits(rest, log_p, config.mendable)
        return -log_p.gather(-1, target[:, None]).sum() / _LN2 / stage.pixels

    @staticmethod
    def _shift(stage: _AtLevel, out: Tensor, bias: Tensor) -> Tensor:
        """Where coefficients are expected before the stage's level, in Deltas of the level before.

        Args:
            bias: ``(3, 2, 192)``.
        """
        own = bias[OUTPUTS["shift"]]
        shift = out + torch.where(stage.grid != 0, own[1], own[0])
        return _on_grid(shift, Grid(-127 / SHIFT_UNIT, 1 / SHIFT_UNIT, 255))

    def _error(self, stage: _AtLevel, shift: Tensor) -> Tensor:
        error = (stage.coefficients - stage.grid) / self.config.unit(stage.level - 1) - shift
        return error.square().mean() * (BANDS / BLOCK**2)

    @torch.no_grad()
    def _prediction(self, grid: Tensor, shift: Tensor) -> Tensor:
        """Predicted pixels ``(B, 3, H, W)``, integers in 1/16 of a pixel value."""
        x = to_pictures(grid + shift, self.config)
        return torch.round(((x + 1) * 128 - 0.5).clamp(0, 255) * PIXEL_UNIT)

    def _pixel_bits(
        self, grid: Tensor, shift: Tensor, images: Tensor, places: Sequence[int]
    ) -> Tensor:
        """Bits per pixel of the lossless layer, if all its places were like these."""
        assert self.pixel_network is not None
        prediction = self._prediction(grid, shift)
        cells = [to_cells(x) for x in (prediction, images.float() * PIXEL_UNIT - prediction)]
        bits = torch.stack([self.pixel_network(*cells, place).sum(-1).mean() for place in places])
        return bits.mean()

    # -- what is trained --------------------------------------------------------------------------

    def train_only(self, part: str) -> None:
        """Freeze all but "first" (level 0), "levels", or "pixels" (the lossless layer)."""
        for name, parameter in self.named_parameters():
            own = {"first": "first", "pixel": "pixels"}.get(name.split("_")[0], "levels")
            parameter.requires_grad_(part in ("all", own))

    @property
    def trained_levels(self) -> list[int]:
        """Levels in which there is something to train; ``config.levels`` is after the last."""
        last, first = self.config.levels, self.first_network.head.requires_grad
        if self.network.head.requires_grad:
            return list(range(0 if first else 1, last + 1))
        return [0, 1] if first else [last]
