"""Progressive layers of a hyperprior's latent: ternary trees over r = round(y - mean).

Trit planes (Lee et al., "DPICT", CVPR 2022, section 3.2) write r with the most significant trit
first: the interval of all likely values is cut into thirds, the third that holds r is coded, and so
on down to a single value. Cut short anywhere, r is expected at the conditional mean of the interval
reached so far. Nothing is lost by it: the trits' probabilities multiply to that of r itself.

Here each scale index has one such tree, and each of its nodes (an interval that was reached) is
given the layer in which its trit is sent::

    scale index s -> root -- trit --> node -- trit --> ... -- trit --> r
                     layer 0          layer 0          layer 4

DPICT sends plane by plane, sorted within. With a layer for each node the order is free of planes:
nodes go by the squared error that a bit of theirs removes. What the decoder looks at is the stored
layer alone, so nothing is sorted or computed with floats there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from ...stream.entropy import PRECISION
from .trees import MAX_LAYERS, Trees, build_trees

__all__ = [
    "FRACTIONS",
    "MAX_RESIDUAL",
    "Order",
    "Progress",
    "Trees",
    "assign_layers",
    "build_trees",
]

Order = Literal["slope", "sigma", "planes"]

FRACTIONS = (0.03, 0.07, 0.14, 0.27, 0.45, 0.7, 1.0)  # of all bits, up to the end of each layer
MAX_RESIDUAL = 1 << 20  # no encoder comes near; float32 holds every such value exactly
_FINISHED = 255  # in the place of a layer, once r is known


def assign_layers(
    trees: Trees,
    scale_histogram: np.ndarray,
    fractions: Sequence[float] = FRACTIONS,
    order: Order = "slope",
) -> Trees:
    """Trees whose nodes are spread over ``len(fractions)`` layers.

    Args:
        trees: whose probabilities and conditional means count, and whose layers do not.
        scale_histogram: how often each scale index occurs in training data, ``(S,)``.
        fractions: share of all expected bits that the layers up to each one hold, ascending to 1.
        order: ``slope``: nodes by the expected fall in squared error for each bit of their trit
            (never a child before its parent); ``sigma``: whole elements by decreasing scale (arXiv
            2411.10185); ``planes``: one trit plane a layer, aligned at the last trit, whatever the
            fractions (DPICT).
    """
    histogram = np.asarray(scale_histogram, np.float64)
    cuts = np.asarray(fractions, np.float64)
    if histogram.shape != trees.scales.shape or not histogram.sum() > 0 or histogram.min() < 0:
        raise ValueError("the histogram must count each scale index")
    if not 1 <= len(cuts) <= MAX_LAYERS or cuts[-1] != 1 or np.diff(cuts, prepend=0).min() <= 0:
        raise ValueError("fractions must ascend to 1")
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {get_args(Order)}")
    if order == "planes":
        remaining = np.rint(np.log(trees.third) / math.log(3)).astype(np.uint8)
        return replace(trees, layer=remaining.max() - remaining)
    p = trees.tables.counts.reshape(-1, 4) / (1 << PRECISION)
    bits = -(p * np.log2(p)).sum(1)
    child = trees.first_child[:, None] + np.arange(3)
    inner = trees.first_child >= 0
    value = trees.low[:, None] + trees.third[:, None] * np.arange(3)
    mean = np.where(inner[:, None], trees.mean[child], value).astype(np.float64)
    slope = (p[:, :3] * (mean - trees.mean[:, None]) ** 2).sum(1) / bits
    visits = np.zeros(len(bits))
    visits[trees.root] = histogram
    level = trees.root
    while len(level):  # parents before children
        level = level[inner[level]]
        for trit in range(3):
            at = child[level, trit]
            visits[at] = visits[level] * p[level, trit]
            slope[at] = np.minimum(slope[at], slope[level])
        level = child[level].ravel()
    if order == "sigma":
        slope = np.repeat(np.arange(len(trees.scales)), np.diff(trees.root, append=len(bits)))
    # Mirrored nodes differ in their last bits only, and belong together.
    steps, rank = np.unique(-slope.astype(np.float32), return_inverse=True)
    share = np.cumsum(np.bincount(rank, visits * bits, len(steps)))
    last = np.abs(share[:, None] / share[-1] - cuts[:-1]).argmin(0)
    return replace(trees, layer=np.searchsorted(last, rank).astype(np.uint8))


@dataclass(eq=False)
class Progress:
    """What is known of one picture's residuals, for the encoder and the decoder alike.

    Attributes:
        trees: the model's.
        node: whose trit comes next for each element, ``(n,) int32``; -1 where r is known.
        value: r where it is known, else 0, ``(n,) int32``.
    """

    trees: Trees
    node: np.ndarray
    value: np.ndarray
    _layer: np.ndarray = field(repr=False)  # of ``node``: one byte, because it is scanned a lot

    @classmethod
    def start(cls, trees: Trees, scale_index: np.ndarray) -> "Progress":
        """Nothing but the scale indices ``(n,)`` is known."""
        if len(scale_index) and not 0 <= scale_index.min() <= scale_index.max() < len(trees.root):
            raise ValueError("a scale index is out of range")
        node = trees.root[scale_index]
        return cls(trees, node, np.zeros(len(node), np.int32), trees.layer[node])

    def pending(self, layer: int) -> np.ndarray:
        """Ascending positions ``(m,) int32`` of the elements that this pass of a layer codes.

        Each one's table in ``trees.tables`` is ``node[positions]``.
        """
        return np.flatnonzero(self._layer == layer).astype(np.int32)

    def symbols_for(self, positions: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        """What to code ``(m,) int32`` at some positions of all residuals r ``(n,)`` of the picture.

        A trit, 0 to 2; at a root, values above its interval follow as 3, 4, ..., and those below it
        as -1, -2, ...: the entropy coder's escapes. ValueError where r contradicts earlier trits.
        """
        node, r = self._at(positions), residuals[positions].astype(np.int64)
        offset = r - self.trees.low[node]
        third = self.trees.third[node].astype(np.int64)
        trit = offset // third
        outside = (trit < 0) | (trit > 2)
        if outside.any():
            if not self.trees.is_root[node[outside]].all():
                raise ValueError("a residual lies outside the interval its earlier trits gave")
            if np.abs(r[outside]).max() > MAX_RESIDUAL:
                raise ValueError(f"residuals must stay within +-{MAX_RESIDUAL}")
            trit[outside] = np.where(trit < 0, offset, offset - 3 * third + 3)[outside]
        return trit.astype(np.int32)

    def advance(self, positions: np.ndarray, symbols: np.ndarray) -> None:
        """Follow the symbols ``(m,) int32`` of a pass; ValueError where no encoder wrote them."""
        node = self._at(positions)
        if symbols.shape != node.shape:
            raise ValueError(f"{len(node)} elements, but {len(symbols)} symbols")
        low, third, child = (
            array[node] for array in (self.trees.low, self.trees.third, self.trees.first_child)
        )
        inside = (symbols >= 0) & (symbols <= 2)
        known = child < 0
        value = low + symbols * third
        if not inside.all():
            if not self.trees.is_root[node[~inside]].all():
                raise ValueError("an escape after the first trit")
            wide = symbols.astype(np.int64)
            wide = np.where(wide < 0, low + wide, low + 3 * third.astype(np.int64) - 3 + wide)
            if np.abs(wide[~inside]).max() > MAX_RESIDUAL:
                raise ValueError("an escaped residual is out of range")
            value = np.where(inside, value, wide).astype(np.int32)
            known |= ~inside
        node = np.where(known, -1, child + symbols).astype(np.int32)
        self.node[positions] = node
        self.value[positions] = np.where(known, value, 0)
        self._layer[positions] = np.where(known, _FINISHED, self.trees.layer[node])

    def expectation(self) -> np.ndarray:
        """Conditional mean of every r as far as it is known, ``(n,) float32``."""
        return np.where(self.node < 0, self.value, self.trees.mean[self.node]).astype(np.float32)

    def _at(self, positions: np.ndarray) -> np.ndarray:
        node: np.ndarray = self.node[positions]
        if (node < 0).any():
            raise ValueError("an element is already complete")
        return node
