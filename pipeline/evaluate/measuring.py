"""One picture against what came back of it, and the patches of a whole set of pictures."""

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from codec.images import metrics
from codec.images.metrics import BANDS, PatchLines

Learned = Callable[[np.ndarray, np.ndarray], float | None]
"""A learned distance of two ``(H, W, 3) uint8`` pictures; None where it has no opinion."""

# Of the set's patches: how many of each picture and level, on how many of the lines, and how finely
# their positions are told apart. Bins widen with the distance from 0 (asinh): a sixteenth of a
# level at 0, 12 % of the position far away.
SET_PATCHES, SET_LINES, SET_BINS, SET_REACH = 64, 32, 128, 1000.0
_EDGES = np.sinh(np.linspace(-1, 1, SET_BINS + 1) * np.arcsinh(SET_REACH))


@dataclass(frozen=True)
class Point:
    """Which file: a contender's setting, and how many of its layers (or scans)."""

    setting: str
    prefix: int

    @property
    def key(self) -> str:
        return f"{self.setting}|{self.prefix}"

    @classmethod
    def of_key(cls, key: str) -> "Point":
        setting, _, prefix = key.rpartition("|")
        return cls(setting, int(prefix))


@dataclass(frozen=True)
class Likeness:
    """How near a picture came to its original, and for how many bytes.

    ``learned`` is a learned distance (LPIPS), where one was asked for.
    """

    nbytes: int
    mse: float
    ms_ssim: float
    swd: float
    exact: bool
    learned: float | None = None

    def to_json(self) -> list[float | int | bool | None]:
        return [self.nbytes, self.mse, self.ms_ssim, self.swd, self.exact, self.learned]


class Original:
    """A picture to compare with. Its patches are looked at once."""

    def __init__(self, picture: np.ndarray, learned: Learned | None = None) -> None:
        self.picture = picture
        self.lines = metrics.patch_lines(picture)
        self._learned = learned

    def compare(self, shown: np.ndarray, nbytes: int) -> tuple[Likeness, PatchLines]:
        """Raises ValueError where the shape is another one."""
        learned = None if self._learned is None else self._learned(self.picture, shown)
        if np.array_equal(self.picture, shown):
            return Likeness(nbytes, 0.0, 1.0, 0.0, True, learned), self.lines
        error = metrics.mse(self.picture, shown)
        lines = metrics.patch_lines(shown)
        swd = metrics.sliced_wasserstein(self.lines, lines)
        similarity = metrics.ms_ssim(self.picture, shown)
        return Likeness(nbytes, error, similarity, swd, False, learned), lines


@dataclass
class PatchSet:
    """Patches of many pictures: counts of their positions on the lines, level by level.

    Attributes:
        counts: ``(levels, SET_LINES, SET_BINS) int64``. The bands come from the finest on, the
            low-pass rest is always the last level.
        moments: ``(levels, 3)``: pictures, sum of their means, sum of their mean squares.
    """

    counts: np.ndarray = field(
        default_factory=lambda: np.zeros((BANDS + 1, SET_LINES, SET_BINS), np.int64)
    )
    moments: np.ndarray = field(default_factory=lambda: np.zeros((BANDS + 1, 3)))

    def add(self, lines: PatchLines) -> None:
        """Add one picture."""
        last = len(lines.positions) - 1
        for number, positions in enumerate(lines.positions):
            level = BANDS if number == last else number
            some = positions[:SET_PATCHES, :SET_LINES]
            # what is beyond the last edge counts as being there
            bins = np.clip(np.searchsorted(_EDGES, some, side="right") - 1, 0, SET_BINS - 1)
            np.add.at(self.counts[level], (np.arange(SET_LINES)[None], bins), 1)
            self.moments[level] += (1, lines.mean[number], lines.power[number])

    def merge(self, other: "PatchSet") -> None:
        self.counts += other.counts
        self.moments += other.moments

    def distance(self, other: "PatchSet") -> float:
        """Sliced Wasserstein distance of two sets, as ``metrics.sliced_wasserstein`` is of two
        pictures, up to the width of the bins."""
        distances = []
        for level in range(BANDS + 1):
            here, there = self.moments[level], other.moments[level]
            if not here[0] or not there[0]:
                continue
            shares = [
                one.counts[level].cumsum(axis=1) / one.counts[level].sum(axis=1, keepdims=True)
                for one in (self, other)
            ]
            apart = np.abs(shares[0] - shares[1])  # at the bins' upper edges
            before = np.pad(apart[:, :-1], [(0, 0), (1, 0)])
            areas = ((apart + before) / 2 * np.diff(_EDGES)).sum(axis=1)
            mean, power = (here[1:] / here[0] + there[1:] / there[0]) / 2
            distances.append(areas.mean() / metrics.deviation(mean, power))
        return float(np.mean(distances)) if distances else 0.0

    def pack(self) -> str:
        """As text for a record: a few kilobytes."""
        data = self.counts.astype("<u4").tobytes() + self.moments.astype("<f8").tobytes()
        return base64.b64encode(zlib.compress(data, 6)).decode()

    @classmethod
    def unpack(cls, text: str) -> "PatchSet":
        data = zlib.decompress(base64.b64decode(text))
        size = (BANDS + 1) * SET_LINES * SET_BINS
        counts = np.frombuffer(data, "<u4", size).reshape(BANDS + 1, SET_LINES, SET_BINS)
        moments = np.frombuffer(data, "<f8", offset=4 * size).reshape(BANDS + 1, 3)
        return cls(counts.astype(np.int64), moments.copy())
