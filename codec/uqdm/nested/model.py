"""The trainable nested model: network, biases, table parameters; its likelihood; its export."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...numerics import lapped_transform as bands
from ...numerics.lapped_transform import BANDS, BLOCK
from . import tuning
from .digit_choice import TRADE
from .first_network import FirstLayout
from .integer_network import BandNetwork, NetworkConfig
from .pixel_lattice import PLACES, to_cells
from .pixel_lattice import tables as pixel_tables
from .pixel_network import PlacesModel
from .schedule import (
    OUTPUTS,
    PIXEL_UNIT,
    SHIFT_UNIT,
    Features,
    Grid,
    NestedConfig,
    colours_of,
    digit_tables,
    feature_unit,
    level_digits,
    log_pmf,
    pass_mask,
    pixel_layout,
    residual_tables,
    to_bands,
    to_unit,
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


@torch.no_grad()
def _chosen(rest: Tensor, log_p: Tensor, reach: float) -> Tensor:
    """The digits of ``choosing.choose`` as entries of their distributions ``(n, 2 A + 1)``."""
    most = log_p.shape[-1] // 2
    near = rest.round()
    lower = near - near.sign()
    entries = torch.stack([near, lower], -1).clamp_(-most, most).add_(most).long()
    saved = (log_p.gather(-1, entries).diff(dim=-1) / _LN2).squeeze(-1)
    error = (rest - lower).abs()
    worth = (error.square() - (rest - near).square() < TRADE * saved) & (error <= reach)
    return torch.where(worth, entries[:, 1], entries[:, 0])


class NestedModel(nn.Module):
    """Trained by maximum likelihood of the digits themselves, one random step of the schedule each.

    Attributes:
        bias: ``(steps, 4, 2, 192)`` for each output, significance class and band; started from
            counted statistics, so that the untrained model is already a transform codec.
        first_energy, first_theta: ``(2, A - 1)`` tails of level 0's tables for high and low bands.
        energy, theta: ``(2 (levels - 1), 1)`` of the other levels, by level and significance.
        first_network: the light network of level 0 (``first_network.py``), where the model has one;
            the biases have a row more then, for the shift of its previews.
        pixel_network: that of the lossless layer (``pixel_network.py``), where the model has one.
    """

    coded: Tensor
    earlier: Tensor

    def __init__(
        self,
        config: NestedConfig,
        network: dict[str, Any] | None = None,
        first_network: dict[str, Any] | None = None,
        pixel_network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        size = {"steps": config.num_steps, "outputs": len(OUTPUTS) * BANDS}
        size = {**size, "colours": config.colours, **(network or {})}
        self.network = BandNetwork(NetworkConfig.from_dict(size))
        self.layout = FirstLayout.of(config)
        self.first_network: BandNetwork | None = None
        if first_network is not None:
            self.first_network = BandNetwork(self.layout.network(first_network))
        self.pixel_network = None if pixel_network is None else PlacesModel(pixel_network)
        rows = config.num_steps + (first_network is not None)
        self.bias = nn.Parameter(torch.zeros(rows, len(OUTPUTS), 2, BANDS))
        first, rest = config.first_digits, config.digits
        square = torch.arange(2.0, first + 1) ** 2  # broad low bands: nearly Gaussian
        line = torch.arange(2.0, first + 1)  # sparse high bands: nearly Laplacian
        self.first_energy = nn.Parameter(torch.stack([line, square]))
        self.first_theta = nn.Parameter(torch.zeros(2, first - 1))
        sets = 2 * (config.levels - 1)
        self.energy = nn.Parameter(torch.arange(2.0, rest + 1).repeat(sets, 1))
        self.theta = nn.Parameter(torch.zeros(sets, rest - 1))
        shape = (2, config.num_steps, config.colours, BANDS)
        masks = np.zeros(shape, bool)  # coded now / earlier in the level
        for level, number in config.steps():
            step = config.step_of(level, number)
            masks[0, step] = pass_mask(config, level, number)
            for before in range(number):
                masks[1, step] |= pass_mask(config, level, before)
        self.register_buffer("coded", torch.from_numpy(masks[0]), persistent=False)
        self.register_buffer("earlier", torch.from_numpy(masks[1]), persistent=False)
        self._steps = [*config.steps(), (config.levels, 0)]

    def tails(self, first: bool) -> tuple[Tensor, Tensor]:
        """Energy and theta by set and magnitude, each ``(sets, A + 1)``."""
        energy = self.first_energy if first else self.energy
        theta = self.first_theta if first else self.theta
        zero, one = torch.zeros_like(energy[:, :1]), torch.ones_like(energy[:, :1])
        return torch.cat([zero, one, energy], 1), torch.cat([zero, zero, theta], 1)

    @torch.no_grad()
    def grid_before(self, coefficients: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """State before ``step`` and the digits of its level, ``(B, h, w, 192)`` each.

        As far as can be told without a network: digits depend on the coefficients alone here.
        """
        config, (level, _) = self.config, self._steps[step]
        grid = torch.zeros_like(coefficients)
        for before in range(level):
            grid += level_digits(coefficients, grid, before, config) * config.unit(before)
        if level == config.levels:
            return grid, torch.zeros_like(grid)
        k = level_digits(coefficients, grid, level, config)
        earlier = self.earlier[step][colours_of(grid, config)]
        return grid + k * earlier * config.unit(level), k

    def forward(
        self, images: Tensor, steps: list[int], places: Sequence[int] = range(len(PLACES))
    ) -> list[dict[str, Tensor]]:
        """Losses of pictures ``(B, 3, H, W) uint8``, B a multiple of ``len(steps)``.

        Each step of the schedule takes its share of the batch. Returned for each step: ``bits`` per
        pixel that the step costs, and where a level has just ended ``mse``, the error of the
        reconstruction in squared Deltas per pixel; ``preview`` is the light network's after level
        0. A large network that is frozen is left out. A pixel network's bits are those of some
        ``places``, as if all were like them.
        """
        coefficients = to_bands(images, self.config)
        shares, pixels = coefficients.chunk(len(steps)), images.chunk(len(steps))
        grids = [self.grid_before(c, s) for c, s in zip(shares, steps, strict=True)]
        losses: list[dict[str, Tensor]] = [{} for _ in steps]
        for light in (False, True):
            chosen = [i for i, s in enumerate(steps) if light in self._networks(s)]
            if not chosen:
                continue
            outputs = self._outputs(
                [grids[i][0] for i in chosen], [steps[i] for i in chosen], light
            )
            with torch.autocast(images.device.type, enabled=False):  # likelihoods want float32
                for i, out in zip(chosen, outputs, strict=True):
                    losses[i] |= self._losses(
                        grids[i][0], shares[i], out, pixels[i], steps[i], light, places
                    )
        return losses

    def _networks(self, step: int) -> list[bool]:
        """Which networks a step trains: the large one (False), the light one (True), or both."""
        if self.first_network is None or step >= self.layout.steps:
            return [False]
        reconstructs = self._steps[step][1] == 0  # which is the large network's after level 0, too
        return [False, True] if reconstructs and self.network.head.requires_grad else [True]

    def train_first_only(self) -> None:
        """Freeze all that levels 1 and on are made of."""
        for name, parameter in self.named_parameters():
            # Of the biases only level 0's and its previews' rows get a gradient then.
            kept = name.startswith("first_") or name == "bias"
            parameter.requires_grad_(kept)

    def train_pixels_only(self) -> None:
        """Freeze all but the lossless layer's own network."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("pixel_network."))

    @property
    def trained_steps(self) -> list[int]:
        """Steps of the schedule in which there is something to train."""
        steps = list(range(self.config.num_steps))
        if self.network.head.requires_grad:
            return steps
        return steps[: self.layout.steps] if self.bias.requires_grad else steps[-1:]

    def _outputs(self, grids: list[Tensor], steps: list[int], light: bool) -> Sequence[Tensor]:
        """A network's outputs ``(B, h, w, 4, 192)`` for some steps' grids, in their order."""
        config, device = self.config, grids[0].device
        chosen = self.layout.bands if light else None
        features = Features(config, device, chosen)
        unit = [config.unit(0) if light else feature_unit(config, self._steps[s][0]) for s in steps]
        bands = slice(None) if chosen is None else torch.from_numpy(chosen).to(device)
        seen = torch.cat([features(g[..., bands], u) for g, u in zip(grids, unit, strict=True)])
        network = self.first_network if light else self.network
        assert network is not None
        step = torch.tensor(steps, device=device).repeat_interleave(len(grids[0]))
        out = network(seen, colours_of(grids[0], config), step).float()
        if light:
            some, out = out, out.new_zeros((*out.shape[:-1], len(OUTPUTS), BANDS))
            parts = self.layout.rows()
            for (number, rows), part in zip(
                parts, some.split([len(rows) for _, rows in parts], -1), strict=True
            ):
                out[..., number, torch.from_numpy(rows).to(device)] = part
        else:
            out = out.unflatten(-1, (len(OUTPUTS), BANDS))
        return out.chunk(len(steps))

    def _losses(
        self,
        grid: Tensor,
        coefficients: Tensor,
        out: Tensor,
        images: Tensor,
        step: int,
        light: bool,
        places: Sequence[int],
    ) -> dict[str, Tensor]:
        config, (level, number) = self.config, self._steps[step]
        preview = light and level > 0
        coder = level == 0 and self.first_network is not None  # whether the light network is
        significant = grid != 0
        bias = self.bias[config.num_steps if preview else step]
        bias = torch.where(significant[..., None, :], bias[:, 1], bias[:, 0])
        losses = {}
        if number == 0 and (level or not light):  # a level has just ended: it may be reconstructed
            shift = out[..., OUTPUTS["shift"], :] + bias[..., OUTPUTS["shift"], :]
            shift = _on_grid(shift, Grid(-127 / SHIFT_UNIT, 1 / SHIFT_UNIT, 255))
            unit = config.unit(level - 1)
            error = (coefficients - grid) / unit - shift
            losses["preview" if preview else "mse"] = error.square().mean() * (BANDS / BLOCK**2)
        if light != coder:
            return losses
        if level == config.levels:
            spread = out[..., OUTPUTS["spread"], :] + self.bias[step, OUTPUTS["spread"], 0]
            if self.pixel_network is None:
                losses["bits"] = self._residual_bits(grid, shift, spread, images)
            else:
                losses["bits"] = self._pixel_bits(grid, shift, images, places)
            return losses
        tilt_grid, width_grid = config.grids(level)
        tilt = _on_grid(out[..., OUTPUTS["tilt"], :] + bias[..., OUTPUTS["tilt"], :], tilt_grid)
        width = _on_grid(out[..., OUTPUTS["width"], :] + bias[..., OUTPUTS["width"], :], width_grid)
        coded = self.coded[step][colours_of(grid, config)]
        coded = coded.expand_as(grid)
        energy, theta = self.tails(level == 0)
        if level == 0:
            sets = torch.from_numpy(config.low_bands()).to(grid.device).expand_as(grid)
        else:
            sets = significant
        sets = sets[coded].long() + (2 * (level - 1) if level else 0)
        log_p = log_pmf(tilt[coded], width[coded], energy[sets], theta[sets])
        rest = ((coefficients - grid) / config.unit(level))[coded]
        target = _chosen(rest, log_p, config.mendable)
        nats = -log_p.gather(-1, target[:, None]).sum()
        losses["bits"] = nats / _LN2 / (images.shape[0] * images.shape[2] * images.shape[3])
        return losses

    def _residual_bits(self, grid: Tensor, shift: Tensor, spread: Tensor, images: Tensor) -> Tensor:
        """Bits per pixel of the lossless layer."""
        config = self.config
        prediction = self._prediction(grid, shift) / PIXEL_UNIT
        error = (to_unit(images) + 1) * 128 - 0.5 - prediction
        spread = _on_grid(pixel_layout(spread), config.spread)
        sigma = torch.exp2(spread)
        normal = torch.distributions.Normal(0.0, 1.0)
        mass = normal.cdf((error.abs() + 0.5) / sigma) - normal.cdf((error.abs() - 0.5) / sigma)
        bits = -torch.log2(mass.clamp_min(1e-7))
        return bits.sum() / (images.shape[0] * images.shape[2] * images.shape[3])

    @torch.no_grad()
    def _prediction(self, grid: Tensor, shift: Tensor) -> Tensor:
        """Predicted pixels ``(B, 3, H, W)``, integers in 1/16 of a pixel value."""
        x = bands.inverse(((grid + shift) * self.config.last_delta).permute(0, 3, 1, 2))
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

    @torch.no_grad()
    def start_from_statistics(self, images: list[Tensor]) -> None:
        """Set the biases from counts on pictures ``(B, 3, H, W) uint8``: the per-band baseline."""
        config = self.config
        coefficients = [to_bands(x, config) for x in images]
        for step, (level, number) in enumerate(self._steps):
            unit_before = config.unit(level - 1)
            parts = [(*self.grid_before(c, step), c) for c in coefficients]
            grid, k, c = (torch.cat([p[i].flatten(0, 2) for p in parts]) for i in range(3))
            coded = torch.ones_like(grid, dtype=torch.bool)
            if level < config.levels:
                mask = self.coded[step]
                coded = torch.cat(
                    [mask[colours_of(c, config)].expand_as(c).flatten(0, 2) for c in coefficients]
                )
            # Where low bands are all over the place, a flat start beats a two-humped one.
            least = 0.05 if level == 0 else -1.5
            for kind in range(2):
                member = ((grid != 0) == bool(kind)).float()
                counted = member * coded
                count = counted.sum(0) + 4.0
                zero = ((k == 0).float() * counted).sum(0) + 2.0
                odds = 2 * zero / (count - zero).clamp_min(0.25)
                self.bias[step, OUTPUTS["width"], kind] = odds.log().clamp(least, 10.0)
                if number == 0:
                    mean = ((c - grid) / unit_before * member).sum(0) / (member.sum(0) + 4.0)
                    self.bias[step, OUTPUTS["shift"], kind] = mean.clamp(-3.9, 3.9)
        if self.first_network is not None:
            self.bias[config.num_steps] = self.bias[self.layout.steps - 1]

    def model_config(self, **extra: Any) -> dict[str, Any]:
        """What the model file says beside the tensors."""
        networks: dict[str, Any] = {}
        if self.first_network is not None:
            networks["first_network"] = self.first_network.config.to_dict()
        if self.pixel_network is not None:
            networks["pixel_network"] = self.pixel_network.config.to_dict()
        if self.config.colours > 2:
            networks["format"] = 3
        if self.pixel_network is not None:
            networks["format"] = self.pixel_network.config.format
        return {
            "codec": "uqdm",
            "quantizer": "nested",
            "domain": "bands",
            "nested": self.config.to_dict(),
            "network": self.network.config.to_dict(),
            **networks,
            **extra,
        }

    def _output_grids(self) -> tuple[Tensor, Tensor]:
        """Step and low end of every output's grid, ``(steps of the schedule, 4)`` each."""
        config = self.config
        step, low = (
            torch.ones(len(self.bias), len(OUTPUTS)),
            torch.zeros(len(self.bias), len(OUTPUTS)),
        )
        last = (config.levels, 0)
        for row, (level, _) in enumerate([*self._steps, last][: len(self.bias)]):
            tilt, width = config.grids(min(level, config.levels - 1))
            step[row] = torch.tensor([tilt.step, width.step, 1 / SHIFT_UNIT, config.spread.step])
            low[row] = torch.tensor([tilt.low, width.low, 0.0, config.spread.low])
        return step, low

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """The integer model: everything ``NestedScheme`` needs, by name."""
        config = self.config
        out = {f"network.{name}": t for name, t in self.network.export().items()}
        step, low = self._output_grids()
        # Outputs come in grid steps: one product, one rounding, then integer biases.
        scale = out["network.head.scale"].view(1, len(OUTPUTS), BANDS)
        out["network.head.scale"] = (scale / step[: config.num_steps, :, None]).flatten(1)
        if self.first_network is not None:
            out |= {f"first_network.{name}": t for name, t in self.first_network.export().items()}
            parts = self.layout.rows()
            rows = [step[: self.layout.steps, [n]].expand(-1, len(bands)) for n, bands in parts]
            first = out["first_network.head.scale"]
            out["first_network.head.scale"] = first / torch.cat(rows, 1)
        bias = (self.bias - low[..., None, None]) / step[..., None, None]
        out["bias"] = bias.round().clamp(-(2**20), 2**20).to(torch.int32)
        for name in ("first", "refine"):
            energy, theta = (t.double().cpu().numpy() for t in self.tails(name == "first"))
            if (
                name == "refine"
            ):  # the sets of just significant and of older coefficients start alike
                kinds = [
                    2 * level + kind for level in range(config.levels - 1) for kind in (0, 1, 1)
                ]
                energy, theta = energy[kinds], theta[kinds]
            tables = digit_tables(config, name == "first", energy, theta)
            for key, array in tables.to_arrays().items():
                out[f"tables.{name}.{key}"] = torch.from_numpy(array)
        residual = residual_tables(config)
        if self.pixel_network is not None:
            residual = pixel_tables(self.pixel_network.config.bounded)
            out |= {f"pixel_network.{name}": t for name, t in self.pixel_network.export().items()}
        all_tables = {"residual": residual}
        if self.pixel_network is not None and self.pixel_network.config.tuned:
            all_tables["tuning"] = tuning.tables()
        for name, tables in all_tables.items():
            for key, array in tables.to_arrays().items():
                out[f"tables.{name}.{key}"] = torch.from_numpy(array)
        return {name: t.cpu().contiguous() for name, t in out.items()}
