"""Helpers of the tests of loading: pictures by their keys, and keys of samples."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tests.pipeline.makers import picture

SIZES = [(9, 11), (9, 11), (12, 10), (8, 8)]


def keys_of(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["key"] for sample in samples]


def flat(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def expected(key: str, layers: int = 4) -> np.ndarray:
    number = int(key[1:])
    return picture(number, *SIZES[number % 4]) & (0xFF00 >> 2 * layers & 0xFF)
