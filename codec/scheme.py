"""The interface between a model's quantiser and ``LayeredCodec``, which packs its integers.

A scheme turns pictures into symbols (integers), and chooses a probability table for each symbol. It
knows nothing of headers, checksums or entropy-coded bytes.

Encoding is one call, ``encode``. Decoding alternates, layer by layer and pass by pass::

    state = scheme.start(sizes, stream_ids)
    for layer in range(layers):
        for number in range(scheme.passes(layer)):
            choices = scheme.choices(state, layer, number)      # one per picture
            symbols = ...                                       # entropy decoder, choices
            scheme.update(state, layer, number, symbols)
    pictures = scheme.reconstruct(state, layers)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from .stream.entropy import Tables
from .stream.protection import Settle

_PICKLED_APART = 1 << 15  # symbols of a layer
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True)
class Choice:
    """The table of each symbol in one pass of one picture. A pass may have no symbols.

    Attributes:
        index: table of each symbol, ``(n,)`` integers; an encoder may use a smaller type than
            int32.
        tables: the tables.
        offset: is added to each decoded symbol, ``(n,) int32``; None for 0. Like the index it comes
            from the network, so both sides must agree on it.
    """

    index: np.ndarray
    tables: Tables
    offset: np.ndarray | None = None

    def check_bytes(self) -> bytes:
        """The bytes for the checksum: everything that encoder and decoder must agree on."""
        offset = b"" if self.offset is None else self.offset.astype("<i4").tobytes()
        return self.index.astype("<i4").tobytes() + offset


@dataclass(frozen=True)
class LayerSymbols:
    """One layer of one picture for the entropy coder: for each pass, a choice and the symbols.

    With ``protection`` a decoder can restore the indices of the choices (protection.py).
    """

    choices: tuple[Choice, ...]
    symbols: tuple[np.ndarray, ...]
    protection: bytes = b""

    def __reduce__(self) -> tuple[Any, ...]:
        """For coder_process.py: small pictures are put into few arrays, which pickle faster."""
        lengths = [len(symbols) for symbols in self.symbols]
        few = 0 < len(lengths) and sum(lengths) <= _PICKLED_APART
        if not few or any(c.offset is not None for c in self.choices):
            return LayerSymbols, (self.choices, self.symbols, self.protection)
        tables = [choice.tables for choice in self.choices]
        index = np.concatenate([_NONE, *(choice.index for choice in self.choices)])
        symbols = np.concatenate([_NONE, *self.symbols])
        return _unpickled, (tables, lengths, index, symbols, self.protection)

    def parts(self) -> list[tuple[np.ndarray, np.ndarray, Tables]]:
        """``(symbols, index, tables)`` of each pass, as ``entropy.encode`` takes them."""
        return [
            (symbols, choice.index, choice.tables)
            for choice, symbols in zip(self.choices, self.symbols, strict=True)
        ]

    def index_bytes(self) -> bytes:
        """The bytes for the layer's check of its table indices."""
        return b"".join(choice.check_bytes() for choice in self.choices)

    def symbol_bytes(self) -> bytes:
        """The bytes for the layer's check of its symbols."""
        return b"".join(symbols.astype("<i4").tobytes() for symbols in self.symbols)


def _unpickled(
    tables: list[Tables],
    lengths: list[int],
    index: np.ndarray,
    symbols: np.ndarray,
    protection: bytes,
) -> LayerSymbols:
    ends = list(accumulate(lengths))[:-1]
    choices = map(Choice, np.split(index, ends), tables)
    return LayerSymbols(tuple(choices), tuple(np.split(symbols, ends)), protection)


class Scheme(Protocol):
    """The quantiser of one model, with its network.

    All pictures of one call have the same size. The result for a picture must not depend on the
    other pictures of the call. ``encode`` and ``reconstruct`` take the codec's options by name.
    (``*_`` is there for type checkers, to allow further arguments.)

    Attributes:
        num_layers: layers of a complete stream.
        archive_layers: see ``Codec``.
        uses_stream_id: whether the scheme draws a shared dither, keyed by the stream's id.
        protected: whether its indices come from floats, so that layers carry protection bytes. It
            is a ``ProtectedScheme`` then.
        batch_pixels: most pixels in one call, unless it has a single picture. It limits memory and
            does not change results.
    """

    num_layers: int
    archive_layers: int
    uses_stream_id: bool
    protected: bool
    batch_pixels: int

    def encode(
        self,
        images: Sequence[np.ndarray],
        stream_ids: Sequence[int],
        layers: int,
        *_: Any,
        **options: Any,
    ) -> Sequence[Iterable[LayerSymbols]]:
        """The first ``layers`` layers of each picture ``(H, W, 3) uint8``.

        Layers may be computed lazily if that does not need the device. They are read once, perhaps
        in another thread.
        """
        ...

    def passes(self, layer: int) -> int:
        """The number of passes of a layer. Each pass knows the symbols of the earlier ones.

        A pass may have no symbols for some pictures, or for all.
        """
        ...

    def least_bits(self, height: int, width: int) -> float:
        """About the fewest bits of the first layer of a picture of this size, 0 if unknown.

        Its cost must not grow with the size: it is called before ``start``, for sizes that a header
        merely claims.
        """
        ...

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> Any:
        """The decoder's state before the first layer, for pictures of ``(height, width)``."""
        ...

    def choices(self, state: Any, layer: int, number: int) -> list[Choice]:
        """The tables of pass ``number`` of a layer, one choice for each picture."""
        ...

    def update(self, state: Any, layer: int, number: int, symbols: Sequence[np.ndarray]) -> None:
        """Add the decoded symbols of a pass to the state, one ``(n,) int32`` array per picture.

        Raises CorruptStreamError for symbols that no encoder writes. A ValueError, LookupError or
        ArithmeticError here or in ``choices`` is reported as one.
        """
        ...

    def reconstruct(self, state: Any, layers: int, *_: Any, **options: Any) -> list[np.ndarray]:
        """The pictures ``(H, W, 3) uint8`` from ``layers`` layers. Does not change the state.

        ``layers`` is the number of layers in the state, 0 for a new state.
        """
        ...


class ProtectedScheme(Scheme, Protocol):
    """A scheme with floats, which another device may round differently.

    Its layers have at most one pass, because the check of a layer's indices, which covers all of
    the layer, is compared before any symbol is decoded.
    """

    def choices(
        self, state: Any, layer: int, number: int, settle: Sequence[Settle] | None = None
    ) -> list[Choice]:
        """The tables of a layer. Each picture's ``settle`` decides its grid indices."""
        ...

    def recompute(self, state: Any, layer: int, pictures: Sequence[int]) -> None:
        """Let the next ``choices`` of this layer compute these pictures' parameters in float64."""
        ...
