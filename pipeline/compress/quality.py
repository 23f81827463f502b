"""The quality that pictures must reach (``--target-quality``), and the layers that reach it."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from codec import Codec, EncodedImage
from codec.images.metrics import psnr
from codec.images.perception import EXACT, ssimulacra2

_TARGET = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)( ?dB)?", re.IGNORECASE)


class Measured(NamedTuple):
    """PSNR in dB after each layer, and the fewest layers that reach the target (None: none do)."""

    psnr: tuple[float, ...]
    needed: int | None


@dataclass(frozen=True)
class TargetQuality:
    """A SSIMULACRA2, or with ``decibels`` a PSNR in dB, that pictures must reach."""

    value: float
    decibels: bool = False

    def __str__(self) -> str:
        return f"{self.value:g}{'dB' if self.decibels else ''}"

    def measure(self, image: np.ndarray, shown: Sequence[np.ndarray]) -> Measured:
        """Judge a picture; ``shown`` has its pixels after each layer, all ``(H, W, 3) uint8``.

        SSIMULACRA2 takes long, so it is computed for few layers: for the last one, then by
        bisection. Pictures that are too small for it need all layers.
        """
        curve = tuple(psnr(image, one) for one in shown)
        if self.decibels:
            reached = (n for n, one in enumerate(curve, 1) if one >= self.value)
            return Measured(curve, next(reached, None))

        def reaches(layers: int) -> bool:
            if math.isinf(curve[layers - 1]):
                return self.value <= EXACT
            score = ssimulacra2(image, shown[layers - 1])
            return layers == len(shown) if score is None else score >= self.value

        return Measured(curve, _fewest(len(shown), reaches))


def shown_by_layers(codec: Codec, streams: Sequence[EncodedImage]) -> list[list[np.ndarray]]:
    """Each picture, ``(H, W, 3) uint8``, after each of its layers. Raises CorruptStreamError."""
    shown: list[list[np.ndarray]] = [[] for _ in streams]
    for pictures in codec.decode_progressively(streams):
        for stream, layers, picture in zip(streams, shown, pictures, strict=True):
            if len(layers) < stream.num_layers:
                layers.append(picture)
    return shown


def _fewest(most: int, reaches: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to ``most`` that ``reaches``; None if there is none."""
    if not reaches(most):
        return None
    below = 0
    while most - below > 1:
        middle = (below + most + 1) // 2
        below, most = (below, middle) if reaches(middle) else (middle, most)
    return most


def target_quality(text: str) -> TargetQuality:
    """``80`` is a SSIMULACRA2, ``38dB`` a PSNR. Raises ValueError for anything else."""
    found = _TARGET.fullmatch(text.strip())
    if found is None or not float(found[1]) > 0:
        raise ValueError(f"must be a SSIMULACRA2 (80) or a PSNR in dB (38dB): {text!r}")
    target = TargetQuality(float(found[1]), bool(found[2]))
    if not target.decibels and target.value > EXACT:
        raise ValueError(
            f"SSIMULACRA2 is {EXACT:g} at most: {text!r}; for PSNR say {text.strip()}dB"
        )
    return target
