"""What UQDM's quantisers offer beyond a ``Scheme``: two ways to decode, and samples."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ..scheme import LayerSymbols, Scheme

Realism = Literal["denoise", "flow"]
REALISMS: tuple[Realism, ...] = ("denoise", "flow")
BATCH_PIXELS = 1 << 21  # of pictures worked on at once; bounds memory


class UQDMScheme(Scheme, Protocol):
    """A quantiser of a UQDM model; its last layer makes the picture exact."""

    def encode(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int], layers: int
    ) -> list[list[LayerSymbols]]:
        """See ``Scheme.encode``; there are no options."""
        ...

    def reconstruct(
        self, state: Any, layers: int, realism: Realism = "denoise"
    ) -> list[np.ndarray]:
        """See ``Scheme.reconstruct``."""
        ...

    def sample(self, height: int, width: int, count: int, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples of the model, ``(height, width, 3) uint8``."""
        ...
