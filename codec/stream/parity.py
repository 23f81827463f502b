"""Parity equations over GF(2): the few bits that tell which of some doubtful bits are wrong.

Writer and reader both hold a long row of bits, and the reader's differ from the writer's in a few
places, all of which are on a list that the reader knows. The writer sends m sums modulo 2 of its
bits, over fixed pseudo-random subsets. The sums of the reader's bits differ from them by the sum of
the columns of the wrong places, so those places are the solution of a linear system::

    equations      0 1 1 0 1 ...   x  difference of the bits  =  difference of the sums
    (m x length)   1 0 1 1 0 ...      (0 but at listed places)

With m equations and at most m - SPARE listed places it has one solution, but for a chance of
2**-SPARE, and with a place missing from the list it has none, but for the same chance.

A row is cut into blocks of at most ``MAX_LENGTH`` bits; all blocks use the same equations.
"""

from functools import cache

import numpy as np

MAX_EQUATIONS = 512  # of a block: solving takes time that grows with their square for each place
MAX_LENGTH = 1 << 18  # of a block; two megabytes for each 64 equations in use
SPARE = 20  # equations beyond the listed places, which tell a wrong solution from a right one

_KEY = 0x5354524150415249  # above any stream id, so not a dither's


@cache
def _equations(word: int) -> np.ndarray:
    """Which of equations 64 word + (0 .. 63) each place of a block is in, ``(length,) uint64``.

    Equation e has bit e % 64. numpy's Philox is fixed for ever (see dither.py).
    """
    key = np.array([_KEY, word], np.uint64)
    words = np.random.Philox(key=key).random_raw(MAX_LENGTH).astype("<u8")
    words.flags.writeable = False
    return words


def sums(bits: np.ndarray, equations: int) -> np.ndarray:
    """Sums modulo 2 of each block's bits, ``(blocks, words) uint64``.

    Args:
        bits: ``(length, blocks) bool``, a block in each column.
        equations: how many are needed, at most; what the last word holds beyond is no use.
    """
    length, blocks = bits.shape
    out = np.empty((blocks, -(-equations // 64)), np.uint64)
    for word in range(out.shape[1]):
        terms = np.where(bits, _equations(word)[:length, None], np.uint64(0))
        out[:, word] = np.bitwise_xor.reduce(terms, axis=0)
    return out


def wrong_places(listed: np.ndarray, difference: int, equations: int) -> list[int] | None:
    """Which of the listed places explain a difference of sums; None where none do.

    Places are taken in the given order, likeliest first, until they suffice, so that the likeliest
    explanation is found, and soon. At most ``equations - SPARE`` are looked at.

    Args:
        listed: places in the block, ``(n,)``.
        difference: equation e in bit e, for the first ``equations``.
    """
    listed = listed[: max(equations - SPARE, 0)]
    words = [_equations(word)[listed] for word in range(-(-equations // 64))]
    mask = (1 << equations) - 1
    # By leading bit: a sum of columns, and as bits of a number which of the places it is of.
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
