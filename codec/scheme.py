"""What a model's quantiser offers to ``LayeredCodec``, so that any of them is packed the same way.

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
    """Which table codes each symbol of one pass of one picture; there may be none.

    Attributes:
        index: table of each symbol, ``(n,)`` integers; an encoder's may be narrower than int32.
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
    """One layer of one picture, ready for the entropy coder: a choice and its symbols per pass.

    ``protection`` helps decoders to find the choices' indices (protection.py).
    """

    choices: tuple[Choice, ...]
    symbols: tuple[np.ndarray, ...]
    protection: bytes = b""

    def __reduce__(self) -> tuple[Any, ...]:
        """For coder_process.py: of a small picture in few arrays, which are pickled sooner."""
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
        """The bytes behind the layer's check of its table indices."""
        return b"".join(choice.check_bytes() for choice in self.choices)

    def symbol_bytes(self) -> bytes:
        """The bytes behind the layer's check of its symbols."""
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
    """A quantiser with its network, of one model.

    All pictures of one call have the same size. What a picture becomes must not depend on those
    beside it. ``encode`` and ``reconstruct`` take the options that the codec declares, by name;
    ``*_`` is there for the type checker alone, to which it means "any further arguments".

    Attributes:
        num_layers: layers of a complete stream.
        archive_layers: layers worth storing when exactness is not asked for.
        uses_stream_id: whether the scheme draws a shared dither, keyed by the stream's id.
        protected: whether its indices come out of floats, so that layers carry protection bytes; it
            is a ``ProtectedScheme`` then.
        batch_pixels: pictures handed over at once hold at most this many pixels, unless it is a
            single one: bounds memory, not results.
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

        What does not need the device may be done as the layers are asked for, which is once and
        perhaps in another thread.
        """
        ...

    def passes(self, layer: int) -> int:
        """How many passes a layer is coded in; each one sees the symbols of those before it.

        A pass may have no symbols for some pictures, or for all of them.
        """
        ...

    def least_bits(self, height: int, width: int) -> float:
        """About what the first layer of any picture of this size takes at least, 0 if unknown.

        It must cost nothing that grows with the size: it is asked before ``start``, of sizes that
        a header merely claims.
        """
        ...

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> Any:
        """The decoder's state before the first layer, for pictures of ``(height, width)``."""
        ...

    def choices(self, state: Any, layer: int, number: int) -> list[Choice]:
        """The tables of pass ``number`` of a layer, one choice per picture."""
        ...

    def update(self, state: Any, layer: int, number: int, symbols: Sequence[np.ndarray]) -> None:
        """Put the decoded symbols of a pass, one ``(n,) int32`` array per picture, into state.

        Raises CorruptStreamError for symbols that no encoder writes. A ValueError, LookupError or
        ArithmeticError, here or in ``choices``, is reported as one.
        """
        ...

    def reconstruct(self, state: Any, layers: int, *_: Any, **options: Any) -> list[np.ndarray]:
        """The pictures ``(H, W, 3) uint8`` as far as ``layers`` layers tell; state stays as it is.

        ``layers`` are those that the state has seen, 0 for a state that was just started.
        """
        ...


class ProtectedScheme(Scheme, Protocol):
    """A scheme of which another device may round some numbers the other way.

    Its layers have one pass each, or none: the check of a layer's indices, which covers all of it,
    is compared before a symbol is decoded.
    """

    def choices(
        self, state: Any, layer: int, number: int, settle: Sequence[Settle] | None = None
    ) -> list[Choice]:
        """The tables of a layer; each picture's ``settle`` decides on its grid indices."""
        ...

    def recompute(self, state: Any, layer: int, pictures: Sequence[int]) -> None:
        """Let the next ``choices`` of this layer compute these pictures' parameters in float64."""
        ...
