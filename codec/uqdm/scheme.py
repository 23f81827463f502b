"""What a quantiser offers to ``UQDMCodec``, so that the codec packs any of them the same way.

A scheme turns pictures into integers, and into the integers that choose each one's probability
table; it knows nothing of headers, checksums or entropy-coded bytes.

Encoding is one call, ``encode``. Decoding alternates, layer by layer and pass by pass::

    state = scheme.start(sizes, stream_ids)
    for layer in range(layers):
        for number in range(scheme.passes(layer)):
            choices = scheme.choices(state, layer, number)      # one per picture
            symbols = ...                                       # entropy decoder, choices
            scheme.update(state, layer, number, symbols)
    pictures = scheme.reconstruct(state, layers)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..entropy import Tables

Realism = Literal["denoise", "flow"]
REALISMS: tuple[Realism, ...] = ("denoise", "flow")


@dataclass(frozen=True)
class Choice:
    """Which table codes each symbol of one pass of one picture.

    Attributes:
        index: table of each symbol, ``(n,) int32``.
        tables: the tables.
        offset: what is added to a decoded symbol to give its meaning, ``(n,) int32``; None for 0.
            It came out of the network as the index did, so both sides must agree on it as well.
    """

    index: np.ndarray
    tables: Tables
    offset: np.ndarray | None = None

    def check_bytes(self) -> bytes:
        """The bytes to checksum: everything here that encoder and decoder must agree on."""
        offset = b"" if self.offset is None else self.offset.astype("<i4").tobytes()
        return self.index.astype("<i4").tobytes() + offset


@dataclass(frozen=True)
class LayerSymbols:
    """One layer of one picture, ready for the entropy coder: a choice and its symbols per pass."""

    choices: tuple[Choice, ...]
    symbols: tuple[np.ndarray, ...]

    def parts(self) -> list[tuple[np.ndarray, np.ndarray, Tables]]:
        """``(symbols, index, tables)`` of each pass, as ``entropy.encode`` takes them."""
        return [
            (symbols, choice.index, choice.tables)
            for choice, symbols in zip(self.choices, self.symbols, strict=True)
        ]

    def index_bytes(self) -> bytes:
        """The bytes behind the layer's check of its table indices."""
        return b"".join(choice.check_bytes() for choice in self.choices)

    def symbol_bytes(self) -> bytes:
        """The bytes behind the layer's check of its symbols."""
        return b"".join(symbols.astype("<i4").tobytes() for symbols in self.symbols)


class Scheme(Protocol):
    """A quantiser with its network, of one model.

    Attributes:
        num_layers: layers of a complete stream; the last one makes the picture exact.
        archive_layers: layers worth storing when exactness is not asked for.
        uses_stream_id: whether the scheme draws a shared dither, keyed by the stream's id.
    """

    num_layers: int
    archive_layers: int
    uses_stream_id: bool

    def encode(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int], layers: int
    ) -> list[list[LayerSymbols]]:
        """The first ``layers`` layers of each picture ``(H, W, 3) uint8``."""
        ...

    def passes(self, layer: int) -> int:
        """How many passes a layer is coded in; each one sees the symbols of those before it."""
        ...

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> Any:
        """The decoder's state before the first layer, for pictures of ``(height, width)``."""
        ...

    def choices(self, state: Any, layer: int, number: int) -> list[Choice]:
        """The tables of pass ``number`` of a layer, one choice per picture."""
        ...

    def update(self, state: Any, layer: int, number: int, symbols: Sequence[np.ndarray]) -> None:
        """Put the decoded symbols of a pass, one ``(n,) int32`` array per picture, into state."""
        ...

    def reconstruct(
        self, state: Any, layers: int, realism: Realism = "denoise"
    ) -> list[np.ndarray]:
        """The pictures ``(H, W, 3) uint8`` as far as ``layers`` layers tell."""
        ...

    def sample(self, height: int, width: int, count: int, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples of the model, ``(height, width, 3) uint8``."""
        ...
