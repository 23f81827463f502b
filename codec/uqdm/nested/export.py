"""A trained nested model as integers: what ``NestedScheme`` runs, and a model file holds."""

from typing import Any

import torch
from torch import Tensor

from ...numerics.lapped_transform import BANDS
from . import tuning
from .level_network import FINE
from .model import NestedModel
from .pixel_lattice import tables as pixel_tables
from .schedule import OUTPUTS, SHIFT_UNIT, digit_tables

_NETWORKS = ("network", "pass_network", "first_network", "pixel_network")


def model_config(model: NestedModel) -> dict[str, Any]:
    """What the model file says beside the tensors."""
    networks = {name: getattr(model, name) for name in _NETWORKS}
    return {
        "codec": "uqdm",
        "quantizer": "nested",
        "domain": "bands",
        "nested": model.config.to_dict(),
        **{name: x.config.to_dict() for name, x in networks.items() if x is not None},
    }


def _output_grid(model: NestedModel, level: int) -> tuple[Tensor, Tensor]:
    """Step and low end of the grids of tilt, width and shift at a level, ``(3,)`` each."""
    tilt, width = model.config.grids(min(level, model.config.levels - 1))
    step = torch.tensor([tilt.step, width.step, 1 / SHIFT_UNIT])
    return step, torch.tensor([tilt.low, width.low, 0.0])


@torch.no_grad()
def export(model: NestedModel) -> dict[str, Tensor]:
    """The integer model: everything ``NestedScheme`` needs, by name."""
    config, layout, levels = model.config, model.layout, model.config.levels
    out: dict[str, Tensor] = {}
    for name in _NETWORKS:
        if (network := getattr(model, name)) is not None:
            out |= {f"{name}.{key}": t.cpu() for key, t in network.export().items()}
    # Outputs come in steps of grids, tilts and widths of later levels in sixteenths: one
    # product and one rounding each, then integers are added up.
    grids = [_output_grid(model, level) for level in range(levels + 1)]
    step, low = (torch.stack(x) for x in zip(*grids, strict=True))
    fine = torch.tensor([FINE, FINE, 1.0])
    scale = out["network.head.scale"].view(1, len(OUTPUTS), BANDS)
    out["network.head.scale"] = (scale * fine[:, None] / step[1:, :, None]).flatten(1)
    scale = out["pass_network.head.scale"].view(1, 2, BANDS)
    later = torch.stack([step[level, :2] for level, _ in config.later_passes()])
    out["pass_network.head.scale"] = (scale * FINE / later[..., None]).flatten(1)
    rows = [step[0, [n]].expand(len(bands)) for n, bands in layout.rows()]
    scale = out["first_network.head.scale"] / torch.cat(rows)
    out["first_network.head.scale"] = scale.expand(layout.steps, -1)
    for name, at in (("first_bias", slice(1)), ("bias", slice(1, None))):
        bias = model.get_parameter(name).cpu() - low[at, :, None, None]
        bias = (bias / step[at, :, None, None]).round().clamp(-(2**20), 2**20)
        out[name] = bias.to(torch.int32)
    energy, theta = (t.double().cpu().numpy() for t in model.tails(True))
    tables = {"first": digit_tables(config, True, energy, theta)}
    energy, theta = (t.double().cpu().numpy() for t in model.tails(False))
    # The sets of just significant and of older coefficients start alike.
    kinds = [2 * level + kind for level in range(levels - 1) for kind in (0, 1, 1)]
    tables["refine"] = digit_tables(config, False, energy[kinds], theta[kinds])
    if model.pixel_network is not None:
        tables |= {"residual": pixel_tables(), "tuning": tuning.tables()}
    for name, one in tables.items():
        for key, array in one.to_arrays().items():
            out[f"tables.{name}.{key}"] = torch.from_numpy(array)
    return {name: t.contiguous() for name, t in out.items()}
