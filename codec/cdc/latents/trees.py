"""The ternary trees of a hyperprior's scales: what of a progressive latent a model file stores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ... import coder_process
from ...stream.entropy import Tables

MAX_LEVELS = 6
MAX_LAYERS = 64
MAX_COUNTED = 3**MAX_LEVELS // 2 + 1  # one further out than any tree reaches
_PRIOR_COUNT = 200.0  # observations that a Gaussian's own probabilities are worth beside counts
_TAU = 6.1094102  # -Phi^-1(5e-10): all but 1e-9 of the mass is within tau sigma of 0


@coder_process.shared
@dataclass(frozen=True, eq=False)
class Trees:
    """One ternary tree for each scale index (see trit_planes.py), all nodes in one numbering.

    Tree s occupies ``root[s] .. root[s + 1] - 1``, breadth first: node j of a tree has the children
    3 j + 1 .. 3 j + 3. Its root is the interval of the 3**levels[s] values around 0, and every node
    cuts its interval in three equal thirds. ValueError where the arrays do not fit together.

    Attributes:
        scales: standard deviation of each scale index, ascending, ``(S,) float64``.
        levels: trits from root to single value, ``(S,) uint8``.
        tables: one table of 3 symbols for each node; only a root's escape is ever used.
        mean: of r within each node's interval, ``(N,) float32``.
        layer: in which each node's trit is sent, ``(N,) uint8``, never before its parent's.
        root: derived, first node of each tree, ``(S,) int32``.
        first_child: derived, ``(N,) int32``; -1 where the trit leads to a single value.
        low: derived, the smallest value of each node's interval, ``(N,) int32``.
        third: derived, the number of values in a third of it, ``(N,) int32``.
        is_root: derived, ``(N,) bool``.
    """

    scales: np.ndarray
    levels: np.ndarray
    tables: Tables
    mean: np.ndarray
    layer: np.ndarray
    root: np.ndarray = field(init=False, repr=False)
    first_child: np.ndarray = field(init=False, repr=False)
    low: np.ndarray = field(init=False, repr=False)
    third: np.ndarray = field(init=False, repr=False)
    is_root: np.ndarray = field(init=False, repr=False)
    _passes: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_scales(self.scales)
        levels = self.levels
        if levels.shape != self.scales.shape or levels.dtype != np.uint8:
            raise ValueError("trees need one uint8 number of levels for each scale")
        if levels.min() < 1 or levels.max() > MAX_LEVELS:
            raise ValueError(f"trees have 1 to {MAX_LEVELS} levels")
        size = (3 ** levels.astype(np.int32) - 1) // 2
        root = np.cumsum(size) - size
        count = int(size.sum())
        if len(self.tables) != count or (np.diff(self.tables.start) != 4).any():
            raise ValueError(f"trees of {count} nodes need as many tables of 3 symbols")
        if self.tables.first.any():
            raise ValueError("a tree's tables must start at symbol 0")
        for name, dtype in (("mean", np.float32), ("layer", np.uint8)):
            array = getattr(self, name)
            if array.shape != (count,) or array.dtype != dtype:
                raise ValueError(f"trees of {count} nodes need as many {name}s")
        shapes = {int(n): _shape(int(n)) for n in np.unique(levels)}
        child, low, third = (
            np.concatenate([shapes[int(n)][part] for n in levels]).astype(np.int32)
            for part in range(3)
        )
        child = np.where(child < 0, -1, child + np.repeat(root, size)).astype(np.int32)
        if not ((low <= self.mean) & (self.mean <= low + 3 * third - 1)).all():
            raise ValueError("a conditional mean lies outside its interval")
        if self.layer.max() >= MAX_LAYERS:
            raise ValueError(f"there are at most {MAX_LAYERS} layers")
        is_root = np.zeros(count, bool)
        is_root[root] = True
        derived = {
            "root": root.astype(np.int32),
            "first_child": child,
            "low": low,
            "third": third,
            "is_root": is_root,
        }
        for name, array in derived.items():
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_passes", self._count_passes())

    def _count_passes(self) -> tuple[int, ...]:
        """Longest chain of nodes in each layer; ValueError if a child precedes its parent."""
        passes = [0] * self.num_layers
        chain = np.ones(len(self.layer), np.int64)  # nodes of the same layer that end here
        level = self.root
        while len(level):
            for layer in np.unique(self.layer[level]).tolist():
                longest = chain[level[self.layer[level] == layer]].max()
                passes[layer] = max(passes[layer], int(longest))
            level = level[self.first_child[level] >= 0]
            for trit in range(3):
                child = self.first_child[level] + trit
                if (self.layer[child] < self.layer[level]).any():
                    raise ValueError("a node's layer comes before its parent's")
                chain[child] += np.where(self.layer[child] == self.layer[level], chain[level], 0)
            level = np.concatenate([self.first_child[level] + trit for trit in range(3)])
        return tuple(passes)

    @property
    def num_layers(self) -> int:
        return int(self.layer.max()) + 1

    def passes(self, layer: int) -> int:
        """How many passes finish a layer, whatever the picture."""
        return self._passes[layer]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays a model file stores."""
        tables = {f"tables.{name}": array for name, array in self.tables.to_arrays().items()}
        own = {name: getattr(self, name) for name in ("scales", "levels", "mean", "layer")}
        return own | tables

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Trees":
        """Inverse of ``to_arrays``; ValueError where the arrays are no set of trees."""
        try:
            table = {name: arrays[f"tables.{name}"] for name in ("counts", "start", "first")}
            own = {name: arrays[name] for name in ("scales", "levels", "mean", "layer")}
        except KeyError as error:
            raise ValueError(f"trees lack their array {error}") from None
        return cls(tables=Tables.from_arrays(table), **own)


def _check_scales(scales: np.ndarray) -> None:
    if scales.ndim != 1 or scales.dtype != np.float64 or not 1 <= len(scales) <= 1 << 12:
        raise ValueError("scales must be a float64 vector")
    if not np.isfinite(scales).all() or scales[0] <= 0 or (np.diff(scales) <= 0).any():
        raise ValueError("scales must be positive and ascend")


def _shape(levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First child (within the tree, or -1), low and third of a tree's nodes, ``(n,)`` each."""
    low, third = [], []
    for depth in range(levels):
        width = 3 ** (levels - depth)
        low.append(np.arange(3**depth) * width - 3**levels // 2)
        third.append(np.full(3**depth, width // 3))
    count = (3**levels - 1) // 2
    child = 3 * np.arange(count) + 1
    child[child >= count] = -1
    return child, np.concatenate(low), np.concatenate(third)


def _masses(scale: float, levels: int) -> np.ndarray:
    """Gaussian mass of each unit bin around 0, ``(3**levels,) float64``."""
    half = 3**levels // 2
    edges = (np.arange(half + 2) - 0.5) / (scale * math.sqrt(2))
    above = np.array([math.erfc(x) / 2 for x in edges])  # exact far out, where 1 - Phi is not
    upper = above[:-1] - above[1:]
    return np.maximum(np.concatenate([upper[:0:-1], upper]), 1e-300)


def _counted(mass: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Probabilities of the values ``mass`` is of, from counts and from ``mass`` itself."""
    symmetric = counts + counts[::-1].astype(np.float64)
    half = len(mass) // 2
    inside = symmetric[MAX_COUNTED - half : MAX_COUNTED + half + 1]
    return (inside + _PRIOR_COUNT * mass) / (symmetric.sum() + _PRIOR_COUNT)


def build_trees(scales: np.ndarray, counts: np.ndarray | None = None) -> Trees:
    """Trees for Gaussians of ``scales (S,) float64``, ascending, all nodes in layer 0.

    DPICT's tree for sigma has l = max(1, ceil(log3(2 tau sigma))) levels; here at most 6, and what
    lies outside escapes instead of being clipped. ValueError where the scales are not usable.

    Args:
        counts: how often each r from -MAX_COUNTED to MAX_COUNTED occurred at each scale index,
            ``(S, 2 MAX_COUNTED + 1)``, those further out counted with the outermost. Residuals
            have longer tails than Gaussians; with counts the probabilities are theirs, taken as
            symmetric, and the Gaussian stands for ``_PRIOR_COUNT`` observations.
    """
    scales = np.asarray(scales, np.float64)
    _check_scales(scales)
    if counts is not None and counts.shape != (len(scales), 2 * MAX_COUNTED + 1):
        raise ValueError(f"counts of each scale must be of {2 * MAX_COUNTED + 1} residuals")
    levels = np.ceil(np.log(2 * _TAU * scales) / math.log(3)).clip(1, MAX_LEVELS).astype(np.uint8)
    pmfs, means = [], []
    for index, (scale, count) in enumerate(zip(scales.tolist(), levels.tolist(), strict=True)):
        mass = _masses(scale, count)
        if counts is not None:
            mass = _counted(mass, counts[index])
        moment = mass * np.arange(-(len(mass) // 2), len(mass) // 2 + 1)
        for depth in range(count):
            node = mass.reshape(3**depth, -1).sum(1)
            thirds = mass.reshape(3**depth, 3, -1).sum(2)
            if depth:  # a root's thirds lack what escapes
                thirds /= node[:, None]
            pmfs.append(thirds)
            mean = moment.reshape(3**depth, -1).sum(1) / node
            means.append(mean if depth else np.zeros(1))  # exactly, by symmetry
    tables = Tables.from_matrix(0, np.concatenate(pmfs))
    mean = np.concatenate(means).astype(np.float32)
    return Trees(scales, levels, tables, mean, np.zeros(len(mean), np.uint8))
