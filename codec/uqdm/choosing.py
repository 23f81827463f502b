"""Which digits the encoder sends: those that are worth their bits.

Any digits decode. Those nearest to the coefficients are not the best: a digit that the tables hold
for unlikely may cost more bits than its error is worth, and the next level can still mend it. So a
digit is brought nearer to zero by one if that lowers J = D + lambda R (Sullivan and Wiegand 1998,
"Rate-distortion optimization for video compression"), D in squared Deltas of the level, R in bits
of the very table that will code it.
"""

import numpy as np

from ..scheme import Choice

# Squared Deltas of a level that a bit is worth there. A uniform quantiser at high rate would have
# ln 2 / 6 = .115, if there were no later levels. Measured: docs/experiments.md.
TRADE = 0.08


def choose(rest: np.ndarray, choice: Choice, reach: float) -> np.ndarray:
    """Digits ``(n,) int32`` for what is left of the coefficients.

    Args:
        rest: ``(n,)`` coefficients less their grid, in Deltas of the level, as they are coded.
        choice: the tables of these digits.
        reach: the largest error, in Deltas, that a digit may be given.
    """
    digits = np.rint(rest).astype(np.int32)
    places = np.flatnonzero(digits)
    rest, near, index = rest[places], digits[places], choice.index[places]
    lower = near - np.sign(near)
    saved = choice.tables.bits(near, index) - choice.tables.bits(lower, index)
    error = np.abs(rest - lower)
    worth = error**2 - (rest - near) ** 2 < TRADE * saved
    digits[places] = np.where(worth & (error <= reach), lower, near)
    return digits
