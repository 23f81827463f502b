"""What coding needs beside the networks: tables, trees and the integer hyper-decoder.

They are computed once, when a model file is written, and travel in it: ``tensors`` makes all that a
file holds. A decoder computes none of them with a logarithm or an exponential of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..entropy import Tables
from . import integers
from .layers import FRACTIONS, Order, Trees, assign_layers, build_trees
from .model import CDCModel
from .priors import MIN_SCALE

MAX_SCALE = 64.0
NUM_SCALES = 96


def scale_grid() -> np.ndarray:
    """The scales that a tree exists for, ``(96,) float64``, evenly spaced in their logarithm.

    7 % from one to the next: the loss of rate against exact scales is below 0.1 %.
    """
    return np.geomspace(MIN_SCALE, MAX_SCALE, NUM_SCALES)


def tensors(
    model: CDCModel,
    histogram: np.ndarray | None = None,
    fractions: Sequence[float] = FRACTIONS,
    order: Order = "slope",
    half: bool = False,
) -> dict[str, Tensor]:
    """Everything a model file holds.

    Args:
        histogram: how often each scale index occurs ``(96,)``, for the layers' sizes; all alike
            where it is not known.
        fractions, order: see ``assign_layers``.
        half: networks as float16, half the bytes. Coding is made for the rounded weights.
    """
    if half:
        with torch.no_grad():
            for parameter in model.state_dict().values():
                parameter.copy_(parameter.half())
    networks = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if half:
        networks = {name: value.half() for name, value in networks.items()}
    histogram = np.ones(NUM_SCALES) if histogram is None else histogram + 1e-6
    trees = assign_layers(build_trees(scale_grid()), histogram, fractions, order)
    return networks | _coding(model, trees)


@torch.no_grad()
def _coding(model: CDCModel, trees: Trees) -> dict[str, Tensor]:
    qualities = range(model.qualities)
    scale_half = slice(model.latents, 2 * model.latents)
    hyper = Tables.from_pmfs(table for q in qualities for table in model.prior(q).tables())
    medians = torch.stack([model.prior(q).medians for q in qualities]).double()
    offsets = torch.stack([model.hyper_bias(q)[scale_half] for q in qualities]).double()
    # In the middle between neighbours' logarithms, whatever the hyper-decoder puts out.
    middles = np.sqrt(trees.scales[1:] * trees.scales[:-1])
    middles = np.log(middles) if model.log_scale else middles
    arrays: dict[str, Any] = {f"trees.{n}": a for n, a in trees.to_arrays().items()}
    arrays |= {f"hyper.{n}": a for n, a in hyper.to_arrays().items()}
    arrays["thresholds"] = np.round(middles * integers.FRACTION).astype(np.int64)
    out = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    out["medians"] = (medians.cpu() * integers.FRACTION).round().to(torch.int64)
    out["scale_offsets"] = (offsets.cpu() * integers.FRACTION).round().to(torch.int64)
    exported = integers.export(model.hyper_decoder.cpu(), scale_half)
    return out | {f"integers.{name}": value for name, value in exported.items()}
