"""Parity equations over GF(2): a few bits that say which of some doubtful bits are wrong.

Writer and reader have a long row of bits each. They differ in a few places, and the reader has a
list of places that contains all of these. The writer sends m sums modulo 2 of its bits, over fixed
pseudo-random subsets. The reader's sums differ from these by the sum of the columns of the wrong
places, so the wrong places are the solution of a linear system::

    equations      0 1 1 0 1 ...   x  difference of the bits  =  difference of the sums
    (m x length)   1 0 1 1 0 ...      (0 but at listed places)

With m equations and at most m - SPARE listed places it has exactly one solution, with a probability
of error of 2**-SPARE. If a wrong place is not on the list, it has no solution, with the same
probability of error.

A row is cut into blocks of at most ``MAX_LENGTH`` bits. All blocks use the same equations.
"""

from functools import cache

import numpy as np

MAX_EQUATIONS = 512  # of a block: the time to solve them grows with their square for each place
MAX_LENGTH = 1 << 18  # of a block; each 64 equations take two megabytes
SPARE = 20  # equations in addition to the listed places, which reveal a wrong solution

_KEY = 0x5354524150415249  # larger than any stream id, so it is not the key of a dither


@cache
def _equations(word: int) -> np.ndarray:
    """For each place of a block, its equations among 64 word + (0 .. 63), ``(length,) uint64``.

    Equation e has bit e % 64. numpy's Philox never changes (see dither.py).
    """
    key = np.array([_KEY, word], np.uint64)
    words = np.random.Philox(key=key).random_raw(MAX_LENGTH).astype("<u8")
    words.flags.writeable = False
    return words


def sums(bits: np.ndarray, equations: int) -> np.ndarray:
    """Sums modulo 2 of each block's bits, ``(blocks, words) uint64``.

    Args:
        bits: ``(length, blocks) bool``, a block in each column.
        equations: how many are needed; further bits in the last word are ignored.
    """
    length, blocks = bits.shape
    out = np.empty((blocks, -(-equations // 64)), np.uint64)
    for word in range(out.shape[1]):
        terms = np.where(bits, _equations(word)[:length, None], np.uint64(0))
        out[:, word] = np.bitwise_xor.reduce(terms, axis=0)
    return out


def wrong_places(listed: np.ndarray, difference: int, equations: int) -> list[int] | None:
    """The listed places that explain a difference of sums; None if none do.

    Places are used in the given order, likeliest first, until they suffice, so the likeliest
    explanation is found, and quickly. At most ``equations - SPARE`` are used.

    Args:
        listed: places in the block, ``(n,)``.
        difference: equation e in bit e, for the first ``equations``.
    """
    listed = listed[: max(equations - SPARE, 0)]
    words = [_equations(word)[listed] for word in range(-(-equations // 64))]
    mask = (1 << equations) - 1
    # By leading bit: a sum of columns, and the places in it as bits of a number.
    basis: dict[int, tuple[int, int]] = {}
    found = 0
    for i, column in enumerate(np.stack(words, axis=1)):
        if not difference:
            break
        vector, members = int.from_bytes(column.tobytes(), "little") & mask, 1 << i
        while vector:
            known = basis.get(vector.bit_length())
            if known is None:
                basis[vector.bit_length()] = vector, members
                break
            vector, members = vector ^ known[0], members ^ known[1]
        while known := basis.get(difference.bit_length()):
            difference, found = difference ^ known[0], found ^ known[1]
    if difference:
        return None
    return [place for i, place in enumerate(listed.tolist()) if found >> i & 1]
