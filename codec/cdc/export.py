"""What coding needs beside the networks: tables, trees and the integer hyper-decoder.

They are computed once, when a model file is written, and travel in it: ``tensors`` makes all that a
file holds. A decoder computes none of them with a logarithm or an exponential of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..stream.entropy import Tables
from .latents.integer_hyper_decoder import FRACTION, export, scale_thresholds
from .latents.priors import MIN_SCALE
from .latents.trit_planes import FRACTIONS, Order, Trees, assign_layers, build_trees
from .networks.model import CDCModel

MAX_SCALE = 64.0
NUM_SCALES = 96


def scale_grid() -> np.ndarray:
    """The scales that a tree exists for, ``(96,) float64``, evenly spaced in their logarithm.

    7 % from one to the next: the loss of rate against exact scales is below 0.1 %.
    """
    return np.geomspace(MIN_SCALE, MAX_SCALE, NUM_SCALES)


def tensors(
    model: CDCModel,
    counts: np.ndarray | None = None,
    fractions: Sequence[float] = FRACTIONS,
    order: Order = "slope",
    half: bool = False,
) -> dict[str, Tensor]:
    """Everything a model file holds.

    Args:
        counts: of residuals at each quality and scale index (``CDCScheme.count_residuals``),
            ``(Q, 96, 731)``, for the layers' sizes and the trees' probabilities. Without them the
            scales are taken to be equally frequent, and residuals to be Gaussian.
        fractions, order: see ``assign_layers``.
        half: networks as float16, half the bytes. Coding is made for the rounded weights.
    """
    state = model.state_dict()
    if half:
        state = {name: value.half() for name, value in state.items()}
        model.load_state_dict(state)
    networks = {name: value.detach().cpu() for name, value in state.items()}
    trees = build_trees(scale_grid(), None if counts is None else counts.sum(0))
    histograms = np.ones((model.qualities, NUM_SCALES))
    if counts is not None:
        histograms = counts.sum(2) + 1e-6
    layers = [assign_layers(trees, h, fractions, order).layer for h in histograms]
    return networks | _coding(model, trees, np.stack(layers))


@torch.no_grad()
def _coding(model: CDCModel, trees: Trees, layers: np.ndarray) -> dict[str, Tensor]:
    qualities = range(model.qualities)
    hyper = Tables.from_pmfs(table for q in qualities for table in model.prior(q).tables())
    arrays = {f"trees.{n}": a for n, a in trees.to_arrays().items()}
    arrays |= {f"hyper.{n}": a for n, a in hyper.to_arrays().items()}
    arrays["layers"] = layers
    arrays["thresholds"] = scale_thresholds(trees.scales, logarithmic=model.log_scale)
    out = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    medians = torch.stack([model.prior(q).medians for q in qualities]).double().cpu()
    out["medians"] = (medians * FRACTION).round().to(torch.int64)
    scale_half = slice(model.latents, 2 * model.latents)
    offsets = torch.stack([model.hyper_bias(q)[scale_half] for q in qualities]).double().cpu()
    out["scale_offsets"] = (offsets * FRACTION).round().to(torch.int64)
    exported = export(model.hyper_decoder, scale_half)
    return out | {f"integers.{name}": value for name, value in exported.items()}
