"""The figures of merit: how near a picture came to its original."""

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

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none
    import torch

    from codec.perception.features import Features

FEATURES = ["features", "frechet"]  # the figures that features are needed for
CALIBRATED = 225  # pixels a side, below which SSIMULACRA2 has not all of its six scales


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        title: what people read; ``words`` say what it means.
        sign: 1 where more is better, else -1.
        span: the qualities over which bits are compared; None where they are not.
        exact: what is recorded of a picture that came back as it was.
        pooled: of a set of pictures, not of one: statistics are recorded, and added up.
        shown: the figure that people read, of what is recorded or the mean of it.
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
        "The squared error of all pixels and channels, in decibels. More is better. It does not "
        "know what eyes see.",
        span=(28, 40),
        shown=lambda error: metrics.psnr_of_mean_mse([error]),
    ),
    "butteraugli": Metric(
        "Butteraugli",
        "A model of the eye that weighs the worst places most (its 3-norm): at 1 people begin to "
        "see a difference. Less is better.",
        sign=-1,
        span=(1, 5),
    ),
    "features": Metric(
        "Feature distance",
        "How far features of a network that tells things apart are from the original's, at each "
        "place: whether what one recognises is there, edges and textures where they were. Less is "
        "better.",
        sign=-1,
        digits=3,
    ),
    "frechet": Metric(
        "Frechet distance",
        "Whether all pictures together have the statistics of the originals, by the same features, "
        "times a thousand: blur and artefacts raise it, detail that might have been there does "
        "not. Noise does not lower it. Less is better.",
        sign=-1,
        digits=1,
        shown=lambda distance: 1000 * distance,
        pooled=True,
    ),
    "swd": Metric(
        "SWD",
        "Whether there are the same kinds of detail, wherever they are: the sliced Wasserstein "
        "distance of small patches, times a thousand. Noise lowers it where it should not: read it "
        "beside the others. Less is better.",
        sign=-1,
        digits=1,
        shown=lambda distance: 1000 * distance,
    ),
}


@functools.cache
def installed() -> tuple[str, ...]:
    """Names of the metrics that can be measured here. Raises OptionError without the first one."""
    if not can_judge():
        raise OptionError(
            "SSIMULACRA2 is not installed: pip install -e '.[eyes]' -c infra/constraints.txt"
        )
    lacking = [] if shutil.which("butteraugli_main") else ["butteraugli"]
    lacking += [] if features_installed() else FEATURES
    return tuple(name for name in METRICS if name not in lacking)


def butteraugli(original: np.ndarray, shown: np.ndarray) -> float | None:
    """The 3-norm, by libjxl's program. Raises RuntimeError with its words where it fails."""
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
"""Bytes, whether exact (1 or 0), and what each metric that was asked for records."""


class Original:
    """A picture to compare with, ``(H, W, 3) uint8``. Patches and features are looked at once."""

    def __init__(self, picture: np.ndarray, names: Sequence[str]) -> None:
        self.picture, self.names = picture, names
        self._lines = functools.cache(lambda: metrics.patch_lines(picture))
        self._features = functools.cache(lambda: features_of(picture))

    def statistics(self) -> str | None:
        """What a pooled metric compares with; None for a picture too small for it."""
        from codec.perception import frechet

        of = self._features()
        return None if of is None else frechet.to_text(frechet.moments(of))

    def compare(self, shown: np.ndarray, nbytes: int) -> Row:
        """Raises ValueError where the shape is another one."""
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
    """Of ``(H, W, 3) uint8``; None for a picture too small."""
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
