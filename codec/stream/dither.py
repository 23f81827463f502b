"""Random numbers that encoder and decoder share: the same on every machine.

numpy's Philox, a counter-based generator, is keyed by the stream's id and by the draw. Its raw
words never change (NEP 19), and only exact operations turn them into floats. A device's own
generator, or normal variates computed with ``log`` and ``cos``, would differ between machines.
"""

import math
from statistics import NormalDist

import numpy as np

DITHER_LEVELS = 16  # as good as a continuous dither, and exact
_SHOWN = (0, 1 << 63)  # the key of ``unit_noise``, which belongs to no stream
_OCTET_DEVIATION = math.sqrt((256**2 - 1) / 12)
QUANTILES = 4096  # of the normal distribution; the outermost is at 3.7 standard deviations


def uniform(stream_id: int, draw: int, shape: tuple[int, ...]) -> np.ndarray:
    """Dither ``shape float64``: the 16 multiples of 1/16 centred in (-1/2, 1/2), equally likely."""
    count = math.prod(shape)
    octets = _words(stream_id, draw, -(-count // 16)).view(np.uint8)
    nibbles = np.stack([octets & 15, octets >> 4], axis=-1).reshape(-1)[:count]
    return (nibbles.reshape(shape) - 7.5) / DITHER_LEVELS


def normal(stream_id: int, draw: int, shape: tuple[int, ...], quantiles: np.ndarray) -> np.ndarray:
    """Standard normal noise ``shape float64``: equally likely entries of ``normal_quantiles()``.

    The table is an argument because it must come from the model file, not from this machine.
    """
    count = math.prod(shape)
    numbers = _words(stream_id, draw, -(-count // 4)).view("<u2")[:count] >> 4
    return quantiles[numbers.reshape(shape)]


def normal_quantiles() -> np.ndarray:
    """The table for ``normal`` that a new model stores, ``(4096,) float64``, with variance 1."""
    inverse = NormalDist().inv_cdf
    table = np.array([inverse((i + 0.5) / QUANTILES) for i in range(QUANTILES)])
    return table / table.std()


def unit_noise(shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise ``shape float32`` of mean 0 and variance 1; always the same for a shape.

    It is for reconstruction only, not for coding.
    """
    count = math.prod(shape)
    octets = _words(*_SHOWN, -(-count // 8)).view(np.uint8)[:count].reshape(shape)
    return (octets.astype(np.float32) - 127.5) * np.float32(1 / _OCTET_DEVIATION)


def _words(stream_id: int, draw: int, count: int) -> np.ndarray:
    key = np.array([stream_id, draw], np.uint64)
    return np.random.Philox(key=key).random_raw(count).astype("<u8")
