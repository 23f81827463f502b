"""The size of a stream if coding took exactly what the probability tables say."""

from typing import Any

import numpy as np

from codec.layered import LayeredCodec
from codec.stream.entropy import Tables


def cross_entropy(symbols: np.ndarray, index: np.ndarray, tables: Tables) -> float:
    """Ideal length in bits of symbols under their tables, escapes' exact values included."""
    return float(tables.bits(symbols, index).sum())


def ideal_bits(codec: LayeredCodec, image: np.ndarray, **options: Any) -> list[float]:
    """Ideal length in bits of each layer of a picture."""
    finish = codec.begin_encode([image], **options)
    return [
        sum(cross_entropy(*part) for part in symbols.parts())
        for symbols in finish.pictures[0].layers
    ]
