"""The metrics: how near is a decoded picture to its original?"""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codec.images import metrics
from codec.images.perception import EXACT, SMALLEST, can_judge, ppm, ssimulacra2
from codec.perception import features_installed

from ..running.options import OptionError

if TYPE_CHECKING:  # importing torch takes seconds, and --help does not need it
    import torch

    from codec.perception.features import Features

FEATURES = ["features", "frechet"]  # the metrics that need a network of features
CALIBRATED = 225  # pixels per side; SSIMULACRA2 has fewer than its six scales on smaller pictures


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        title: its name in tables; ``words`` explain it.
        sign: 1 if more is better, otherwise -1.
        span: the qualities between which bits are compared; None if they are not compared.
        exact: the recorded value of an exact picture.
        pooled: it is a figure of a set of pictures: statistics are recorded and added up.
        shown: computes the figure for tables from a recorded value or a mean of such values.
    """

    title: str
    words: str
    sign: int = 1
    digits: int = 2
    span: tuple[float, float] | None = None
    exact: float = 0.0
    shown: Callable[[float], float] = float
    pooled: bool = False


METRICS = {
    "ssimulacra2": Metric(
        "SSIMULACRA2",
        "How good a picture looks to people, calibrated by their votes: 30 is low quality, 50 "
        "medium, 70 high, and 90 cannot be told from the original in a flicker test.",
        digits=1,
        span=(30, 90),
        exact=EXACT,
    ),
    "ms_ssim": Metric(
        "MS-SSIM, dB",
        "Whether structures of the brightness are kept, at five scales: -10 log10(1 - MS-SSIM). "
        "More is better.",
        span=(12, 26),
        exact=1.0,
        shown=metrics.ms_ssim_decibel,
    ),
    "psnr": Metric(
        "PSNR, dB",
        "The squared error of all pixels and channels, in decibels. More is better. It is not a "
        "model of the eye.",
        span=(28, 40),
        shown=lambda error: metrics.psnr_of_mean_mse([error]),
    ),
    "butteraugli": Metric(
        "Butteraugli",
        "A model of the eye that gives the worst places the most weight (its 3-norm): at 1 people "
        "begin to see a difference. Less is better.",
        sign=-1,
        span=(1, 5),
    ),
    "features": Metric(
        "Feature distance",
        "The distance of features of a network for classification from those of the original, at "
        "each place: whether objects, edges and textures are still where they were. Less is "
        "better.",
        sign=-1,
        digits=3,
    ),
    "frechet": Metric(
        "Frechet distance",
        "Whether all pictures together have the statistics of the originals, with the same "
        "features, times a thousand: blur and artefacts raise it, plausible detail does not. Noise "
        "does not lower it. Less is better.",
        sign=-1,
        digits=1,
        shown=lambda distance: 1000 * distance,
        pooled=True,
    ),
    "swd": Metric(
        "SWD",
        "Whether the picture has the same kinds of detail, wherever they are: the sliced "
        "Wasserstein distance of small patches, times a thousand. Noise can lower it, so read it "
        "together with the others. Less is better.",
        sign=-1,
        digits=1,
        shown=lambda distance: 1000 * distance,
    ),
}


@functools.cache
def installed() -> tuple[str, ...]:
    """Names of the metrics that are installed. Raises OptionError without SSIMULACRA2."""
    if not can_judge():
        raise OptionError(
            "SSIMULACRA2 is not installed: pip install -e '.[eyes]' -c infra/constraints.txt"
        )
    lacking = [] if shutil.which("butteraugli_main") else ["butteraugli"]
    lacking += [] if features_installed() else FEATURES
    return tuple(name for name in METRICS if name not in lacking)


def butteraugli(original: np.ndarray, shown: np.ndarray) -> float | None:
    """The 3-norm, from libjxl's program; None for a picture that is too small.

    Raises RuntimeError with the program's message if it fails.
    """
    if min(shown.shape[:2]) < SMALLEST:
        return None
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, "original.ppm"), Path(name, "shown.ppm")]
        for path, picture in zip(paths, (original, shown), strict=True):
            path.write_bytes(ppm(picture))
        command = ["butteraugli_main", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        return float(done.stdout.rpartition("3-norm:")[2])
    except ValueError:
        raise RuntimeError(f"butteraugli_main failed: {done.stderr.strip()[-500:]}") from None


Row = list[float | str | None]
"""Bytes, whether exact (1 or 0), and the recorded value of each metric."""


class Original:
    """A picture to compare with, ``(H, W, 3) uint8``. Keeps its patches and features."""

    def __init__(self, picture: np.ndarray, names: Sequence[str]) -> None:
        self.picture, self.names = picture, names
        self._lines = functools.cache(lambda: metrics.patch_lines(picture))
        self._features = functools.cache(lambda: features_of(picture))

    def statistics(self) -> str | None:
        """The original's statistics for pooled metrics; None if the picture is too small."""
        from codec.perception import frechet

        of = self._features()
        return None if of is None else frechet.to_text(frechet.moments(of))

    def compare(self, shown: np.ndarray, nbytes: int) -> Row:
        """The row of a decoded picture. Raises ValueError if its shape is another one."""
        if shown.shape != self.picture.shape:
            raise ValueError(f"expected a picture of {self.picture.shape}, got {shown.shape}")
        if np.array_equal(self.picture, shown):
            return [nbytes, 1, *(self._exact(name) for name in self.names)]
        of = functools.cache(lambda: features_of(shown))
        return [nbytes, 0, *(self._measure(name, shown, of) for name in self.names)]

    def _exact(self, name: str) -> float | str | None:
        return self.statistics() if METRICS[name].pooled else METRICS[name].exact

    def _measure(
        self, name: str, shown: np.ndarray, of: Callable[[], "list[torch.Tensor] | None"]
    ) -> float | str | None:
        if name == "swd":
            return metrics.sliced_wasserstein(self._lines(), metrics.patch_lines(shown))
        if name in FEATURES:
            own, seen = self._features(), of()
            if own is None or seen is None:
                return None
            from codec.perception import features, frechet

            if name == "frechet":
                return frechet.to_text(frechet.moments(seen))
            return float(features.feature_distance(own, seen))
        return _MEASURES[name](self.picture, shown)


def features_of(picture: np.ndarray) -> "list[torch.Tensor] | None":
    """The features of a picture, ``(H, W, 3) uint8``; None if it is too small."""
    import torch

    from codec.perception import features

    if min(picture.shape[:2]) < features.SMALLEST:
        return None
    with torch.inference_mode():
        return _network()(features.as_unit(picture))


@functools.cache
def _network() -> "Features":
    from codec.perception.features import Features

    return Features()


_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "ssimulacra2": ssimulacra2,
    "ms_ssim": metrics.ms_ssim,
    "psnr": metrics.mse,
    "butteraugli": butteraugli,
}
