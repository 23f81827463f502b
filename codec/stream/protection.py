"""Protection bytes, with which a decoder on another device restores the encoder's grid indices.

A float network computes other last bits on another device, so a number close to a boundary of the
grid may be rounded to the other side. Calibration of a model measures how far numbers can differ
(calibration.py); its *guard* is a multiple of that. A number closer to a boundary than its guard is
*doubtful*. Only doubtful numbers can be rounded differently, by one step, which flips the lowest
bit of the index. So the encoder sends parity equations (parity.py) over the lowest bits of all
indices, and a decoder finds which of its doubtful numbers to move to the other side.

Encoder and decoder do not have the same doubtful numbers, but nearly the same number of them,
because noise moves as many towards a boundary as away from it. So the encoder sends an equation for
each of its doubtful numbers, some more for fluctuation, and ``parity.SPARE``.

Bytes of a layer, for each row of numbers in turn::

    varint blocks                 number i is bit i // blocks of block i % blocks
    for each block:
        uint8  count              equations / 8
        bytes  count              their sums modulo 2, equation e in bit e % 8 of byte e // 8
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import CorruptStreamError
from . import bitstream, parity

_DOUBTFUL = 352  # wanted in a block: the most for which ``_needed`` fits into MAX_EQUATIONS
_DEVIATIONS = 3.0  # counts of doubtful numbers differ by sqrt(n / 2) at most: 4 deviations


@dataclass(frozen=True)
class Rounded:
    """Numbers that were rounded to a grid, and their indices beyond the nearest boundary.

    Attributes:
        index: on the grid, ``(n,) int64``.
        other: the index beyond the nearest boundary, one more or one less, ``(n,) int64``.
        distance: from that boundary, as a multiple of the guard, ``(n,) float64``.
    """

    index: np.ndarray
    other: np.ndarray
    distance: np.ndarray

    @property
    def doubtful(self) -> np.ndarray:
        """Positions ``(m,)`` of numbers that another device may round differently, ascending."""
        return np.flatnonzero(self.distance <= 1)


Settle = Callable[[Rounded], np.ndarray]
"""A function that decides the indices ``(n,) int64`` that both sides use."""


def as_computed(rounded: Rounded) -> np.ndarray:
    """The indices that this device computed, right or wrong."""
    return rounded.index


class Protector:
    """The encoder's side: uses its own indices, and writes what a decoder needs.

    Attributes:
        data: the protection bytes so far.
    """

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, rounded: Rounded) -> np.ndarray:
        counts = _block_counts(rounded)
        sizes = [_needed(int(count)) for count in counts]
        bits = _blocks(rounded.index & 1 != 0, len(counts))
        words = parity.sums(bits, 8 * max(sizes)).astype("<u8")
        out = bytearray(bitstream.varint(len(counts)))
        for size, row in zip(sizes, words, strict=True):
            out.append(size)
            out += row.tobytes()[:size]
        self.data += bytes(out)
        return rounded.index


class Restorer:
    """The decoder's side: moves doubtful numbers so that the encoder's equations hold.

    Attributes:
        failed: whether some equations cannot be solved, because this device computes something else
            than the encoder.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.failed = False

    def __call__(self, rounded: Rounded) -> np.ndarray:
        """Raises CorruptStreamError if no encoder writes such bytes for these numbers."""
        received = self._read(len(rounded.index))
        blocks = len(received)
        bits = _blocks(rounded.index & 1 != 0, blocks)
        words = parity.sums(bits, 8 * max(map(len, received))).astype("<u8")
        doubtful = rounded.doubtful  # sorted below by block, and in a block the nearest first
        doubtful = doubtful[np.lexsort((rounded.distance[doubtful], doubtful % blocks))]
        begin = np.searchsorted(doubtful % blocks, np.arange(blocks + 1))
        index = rounded.index.copy()
        for block, (theirs, row) in enumerate(zip(received, words, strict=True)):
            ours = row.tobytes()[: len(theirs)]
            if ours == theirs:
                continue
            listed = doubtful[begin[block] : begin[block + 1]] // blocks
            difference = int.from_bytes(ours, "little") ^ int.from_bytes(theirs, "little")
            wrong = parity.wrong_places(listed, difference, 8 * len(theirs))
            if wrong is None:
                self.failed = True
                continue
            places = np.array(wrong) * blocks + block
            index[places] = rounded.other[places]
        return index

    def finish(self) -> None:
        """Raises CorruptStreamError if anything is left over."""
        if self._at != len(self._data):
            raise CorruptStreamError("more protection bytes than grid indices need")

    def _read(self, count: int) -> list[bytes]:
        """The sums of each block of ``count`` numbers."""
        blocks, self._at = bitstream.read_varint(self._data, self._at, "the protection")
        if not 1 <= blocks <= count or -(-count // blocks) > parity.MAX_LENGTH:
            raise CorruptStreamError(f"{count} grid indices cannot be in {blocks} blocks")
        out = []
        for _ in range(blocks):
            size = self._data[self._at] if self._at < len(self._data) else 0
            found = self._data[self._at + 1 : self._at + 1 + size]
            if not 1 <= size <= parity.MAX_EQUATIONS // 8 or len(found) < size:
                raise CorruptStreamError("the protection ends early or is malformed")
            out.append(found)
            self._at += 1 + size
        return out


def _block_counts(rounded: Rounded) -> np.ndarray:
    """The number of doubtful numbers in each block, with as few blocks as possible."""
    doubtful, total = rounded.doubtful, len(rounded.index)
    blocks = max(-(-total // parity.MAX_LENGTH), -(-len(doubtful) // _DOUBTFUL), 1)
    while True:
        counts = np.bincount(doubtful % blocks, minlength=blocks)
        if _needed(int(counts.max())) <= parity.MAX_EQUATIONS // 8:
            return counts
        blocks = min(blocks + 1 + blocks // 8, total)


def _needed(doubtful: int) -> int:
    """Bytes of sums for a block with so many doubtful numbers."""
    equations = doubtful + math.ceil(_DEVIATIONS * math.sqrt(doubtful)) + parity.SPARE
    return -(-equations // 8)


def _blocks(bits: np.ndarray, blocks: int) -> np.ndarray:
    """Bits ``(n,)`` by place and block, ``(length, blocks)``, padded with 0."""
    length = -(-len(bits) // blocks)
    out = np.zeros(length * blocks, bool)
    out[: len(bits)] = bits
    return out.reshape(length, blocks)
