"""What both of UQDM's quantisers have: two ways to decode, and a bound on memory."""

from typing import Literal

Realism = Literal["denoise", "flow"]
REALISMS: tuple[Realism, ...] = ("denoise", "flow")
BATCH_PIXELS = 1 << 21  # of pictures worked on at once; bounds memory
