"""A ``Codec`` around any ``Scheme``: headers, layers, checks and entropy coding of its integers.

Everything about bytes is here, the same for every codec. Everything about pixels is in the schemes.
A codec is a subclass that names its options::

    class CDCCodec(LayeredCodec):
        codec, lossless = "cdc", False
        encode_options = frozenset({"quality"})
        decode_options = frozenset({"decoder", "steps", "noise_scale", "seed"})
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import arguments
from .base import Codec, EncodedImage
from .coder_process import Coding, Quantised
from .errors import CorruptStreamError, UnknownModelError, layer_name
from .images import resizing
from .numerics.precision import full_precision
from .scheme import Choice, ProtectedScheme, Scheme
from .stream import bitstream, entropy
from .stream.protection import Restorer

if TYPE_CHECKING:
    from PIL.Image import Image

# A header may claim any size. For a picture above so many pixels, memory is allocated only if the
# first layer has at least half of the bits that the likeliest symbols would take, less _SPARE_BITS.
_UNSUSPICIOUS_PIXELS = 1 << 16
_SPARE_BITS = 1024


class LayeredCodec(Codec):
    """A model on one device. Subclasses set ``codec``, ``lossless`` and the names of options.

    Options go to the scheme by name: those of encoding to ``Scheme.encode``, those of decoding to
    ``Scheme.reconstruct``. A subclass may extend ``check_options`` to check their values.

    Args:
        name, model_id, model_path: see ``Codec``.
        config: the configuration in the model file.
        device: where ``scheme`` computes.
    """

    def __init__(
        self,
        name: str,
        model_id: str,
        model_path: Path,
        config: dict[str, Any],
        scheme: Scheme,
        device: str,
    ) -> None:
        self.name, self.model_id, self.model_path, self.config = name, model_id, model_path, config
        self.device = device
        self.scheme = scheme
        self.num_layers = scheme.num_layers
        self.archive_layers = scheme.archive_layers
        # Corpora have many pictures of few sizes.
        self._least_bits = lru_cache(256)(self._compute_least_bits)

    # -- encoding ---------------------------------------------------------------------------------

    def encode(
        self, images: "Sequence[np.ndarray | Image]", *, layers: int | None = None, **options: Any
    ) -> list[EncodedImage]:
        """See ``Codec.encode``. Symbols are coded and freed as they come from the device."""
        out: dict[int, EncodedImage] = {}
        for chosen, quantised in self._quantise(images, layers, options):
            out |= zip(chosen, Coding(quantised)(), strict=True)
        return [out[i] for i in range(len(images))]

    def begin_encode(
        self, images: "Sequence[np.ndarray | Image]", *, layers: int | None = None, **options: Any
    ) -> Coding:
        """See ``Codec.begin_encode``. Holds all symbols until the second half has run."""
        out: dict[int, Quantised] = {}
        for chosen, quantised in self._quantise(images, layers, options):
            out |= zip(chosen, quantised, strict=True)
        return Coding([out[i] for i in range(len(images))])

    def _quantise(
        self, images: "Sequence[np.ndarray | Image]", layers: int | None, options: dict[str, Any]
    ) -> Iterator[tuple[list[int], list[Quantised]]]:
        """The device's half: the symbols of every picture, a batch at a time."""
        self.check_options("encode", options)
        arguments.check_layers(layers, self.num_layers)
        layers = self.num_layers if layers is None else layers
        arrays = arguments.pictures(images)
        for chosen in self._batches([image.shape[:2] for image in arrays]):
            batch = [np.ascontiguousarray(arrays[i]) for i in chosen]
            headers = [self._header(image) for image in batch]
            ids = [bitstream.unpack_header(h).stream_id or 0 for h in headers]
            with full_precision(self.device):
                streams = self.scheme.encode(batch, ids, layers, **options)
            pairs = zip(headers, streams, strict=True)
            yield chosen, [Quantised(self.model_id, *pair) for pair in pairs]

    def _header(self, image: np.ndarray) -> bytes:
        stream_id = None
        if self.scheme.uses_stream_id:
            # A hash of the pixels, so that the same picture gives the same file.
            stream_id = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "little")
        height, width = image.shape[:2]
        protected = self.scheme.protected
        return bitstream.pack_header(
            bitstream.StreamHeader(self.codec, width, height, self.model_id, stream_id, protected)
        )

    # -- decoding ---------------------------------------------------------------------------------

    def decode(
        self, encoded: Sequence[EncodedImage], *, layers: int | None = None, **options: Any
    ) -> list[np.ndarray]:
        """See ``Codec.decode``."""
        return self._decode(encoded, layers, lambda info: (info.height, info.width), options)

    def decode_small(
        self,
        encoded: Sequence[EncodedImage],
        *,
        max_side: int,
        layers: int | None = None,
        **options: Any,
    ) -> list[np.ndarray]:
        """See ``Codec.decode_small``. Streams of equal sizes are decoded together."""
        resizing.fit(1, 1, max_side)  # checks max_side, even if there is nothing to decode
        return self._decode(
            encoded, layers, lambda info: resizing.fit(info.height, info.width, max_side), options
        )

    def _decode(
        self,
        encoded: Sequence[EncodedImage],
        layers: int | None,
        size_of: Callable[[bitstream.StreamHeader], tuple[int, int]],
        options: dict[str, Any],
    ) -> list[np.ndarray]:
        """The pictures in the sizes (height, width) that ``size_of`` returns."""
        self.check_options("decode", options)
        out: dict[int, np.ndarray] = {}
        for group in self._groups(encoded, layers):
            for layer in range(group.layers):
                self._unpack(group.state, layer, group.streams)
            info = group.streams[0].info
            size = size_of(info)
            if size == (info.height, info.width):
                pictures = self._reconstruct(group.state, group.layers, **options)
            else:
                with full_precision(self.device):
                    pictures = self._reconstruct_small(group.state, group.layers, size, **options)
            out |= zip(group.chosen, pictures, strict=True)
        return [out[i] for i in range(len(encoded))]

    def _reconstruct(self, state: Any, layers: int, **options: Any) -> list[np.ndarray]:
        with full_precision(self.device):
            return self.scheme.reconstruct(state, layers, **options)

    def _reconstruct_small(
        self, state: Any, layers: int, size: tuple[int, int], **options: Any
    ) -> list[np.ndarray]:
        """Pictures shrunk to ``size`` (height, width). Codecs may override this by a faster way."""
        pictures = self.scheme.reconstruct(state, layers, **options)
        return [resizing.shrink(picture, *size) for picture in pictures]

    def decode_progressively(
        self, encoded: Sequence[EncodedImage], **options: Any
    ) -> Iterator[list[np.ndarray]]:
        """See ``Codec.decode_progressively``: every layer is decoded once."""
        self.check_options("decode", options)
        groups = list(self._groups(encoded, None))
        shown: list[Any] = [None] * len(encoded)

        def show(group: _Group, layers: int) -> None:
            pictures = self._reconstruct(group.state, layers, **options)
            for i, picture in zip(group.chosen, pictures, strict=True):
                shown[i] = picture

        for group in groups:
            if not group.layers:
                show(group, 0)
        for layer in range(max((group.layers for group in groups), default=0)):
            for group in groups:
                if layer < group.layers:
                    self._unpack(group.state, layer, group.streams)
                    show(group, layer + 1)
            yield list(shown)

    def _groups(self, encoded: Sequence[EncodedImage], layers: int | None) -> Iterator["_Group"]:
        """The streams in groups that are decoded together: of one size and number of layers."""
        arguments.check_streams(encoded)
        arguments.check_layers(layers, self.num_layers)
        most = self.num_layers if layers is None else layers
        headers = [self._checked(stream) for stream in encoded]
        sizes = [
            (header.height, header.width, min(len(stream.layers), most))
            for header, stream in zip(headers, encoded, strict=True)
        ]
        for header, stream in zip(headers, encoded, strict=True):
            self._check_size(header.height, header.width, stream)
        for chosen in self._batches(sizes):
            ids = [headers[i].stream_id or 0 for i in chosen]
            state = self.scheme.start([sizes[i][:2] for i in chosen], ids)
            yield _Group(chosen, [encoded[i] for i in chosen], sizes[chosen[0]][2], state)

    def _batches(self, sizes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Indices of equal sizes, in batches of at most ``batch_pixels`` (or one picture)."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(tuple(size), []).append(i)
        for size, members in groups.items():
            most = max(1, self.scheme.batch_pixels // (size[0] * size[1]))
            for at in range(0, len(members), most):
                yield members[at : at + most]

    def _checked(self, encoded: EncodedImage) -> bitstream.StreamHeader:
        header = encoded.info
        if header.codec != self.codec or header.model != self.model_id[:8]:
            raise UnknownModelError(
                f"the stream was written by {header.codec} model {header.model}..., "
                f"not by {self.name} ({self.model_id[:8]}...)"
            )
        flags = header.stream_id is not None, header.protected
        if flags != (self.scheme.uses_stream_id, self.scheme.protected):
            raise CorruptStreamError("the stream's header does not fit its model")
        if len(encoded.layers) > self.num_layers:
            raise CorruptStreamError(
                f"the stream has {len(encoded.layers)} layers, its model {self.num_layers}",
                self.num_layers,
            )
        return header

    def _check_size(self, height: int, width: int, encoded: EncodedImage) -> None:
        """Raises CorruptStreamError for a size for which no memory should be allocated."""
        claim = f"the stream claims a picture of {width}x{height} pixels"
        if width * height > self.max_pixels:
            raise CorruptStreamError(
                f"{claim}, more than this decoder's limit of {self.max_pixels}: if you trust it, "
                "raise the codec's max_pixels (--max-pixels)"
            )
        if width * height > _UNSUSPICIOUS_PIXELS:
            if not encoded.layers:
                raise CorruptStreamError(f"{claim}, but has no layers", 0)
            nbytes = len(encoded.layers[0])
            if self._least_bits(height, width) > 16 * nbytes + _SPARE_BITS:
                raise CorruptStreamError(f"{claim}, but {layer_name(0)} has only {nbytes} bytes", 0)

    def _compute_least_bits(self, height: int, width: int) -> float:
        with full_precision(self.device):
            return self.scheme.least_bits(height, width)

    def _unpack(self, state: Any, number: int, batch: Sequence[EncodedImage]) -> None:
        """Decode layer ``number`` of every stream of a batch into ``state``."""
        with _naming_layer(number), full_precision(self.device):
            packed = [
                bitstream.unpack_layer(self.model_id, stream.header, number, stream.layers[number])
                for stream in batch
            ]
            decoders = [_LayerDecoder(layer, number) for layer in packed]
            passes = self.scheme.passes(number)
            for part in range(passes):
                last = part == passes - 1
                if self.scheme.protected:
                    choices = _restored(cast(ProtectedScheme, self.scheme), state, number, packed)
                else:
                    choices = self.scheme.choices(state, number, part)
                symbols = [
                    decoder.decode(choice, last)
                    for decoder, choice in zip(decoders, choices, strict=True)
                ]
                self.scheme.update(state, number, part, symbols)
            if not passes:
                for decoder in decoders:
                    decoder.check_empty()


@dataclass(frozen=True)
class _Group:
    """Streams that are decoded together: their positions, the number of layers, and the state."""

    chosen: list[int]
    streams: list[EncodedImage]
    layers: int
    state: Any


def _restored(
    scheme: ProtectedScheme, state: Any, number: int, packed: Sequence[bitstream.Layer]
) -> list[Choice]:
    """The encoder's choices in a layer, computed on this device and corrected by the protection.

    If that fails for a picture, its choices are computed again in float64.
    """
    for again in (True, False):
        restorers = [Restorer(layer.protection) for layer in packed]
        choices = scheme.choices(state, number, 0, restorers)
        wrong = []
        for i, (layer, restorer) in enumerate(zip(packed, restorers, strict=True)):
            restorer.finish()
            if restorer.failed or bitstream.check16(choices[i].check_bytes()) != layer.index_check:
                wrong.append(i)
        if not wrong:
            break
        if not again:
            raise _other_probabilities(number)
        scheme.recompute(state, number, wrong)
    return choices


def _other_probabilities(number: int) -> CorruptStreamError:
    return CorruptStreamError(
        f"{layer_name(number)}: this device computes other probabilities than the encoder; the "
        "layers before it still decode",
        number,
    )


class _LayerDecoder:
    """Decodes one layer of one stream, pass by pass, and compares it with the layer's checks."""

    def __init__(self, layer: bitstream.Layer, number: int) -> None:
        self._layer, self._number = layer, number
        self._decoder = entropy.Decoder(layer.payload)
        self._index: list[bytes] = []
        self._symbols: list[bytes] = []

    def decode(self, choice: Choice, last: bool) -> np.ndarray:
        """Symbols ``(n,) int32`` of the next pass. After the ``last`` one, no bytes may be left."""
        self._index.append(choice.check_bytes())
        if last:
            self._check_tables()
        symbols = self._decoder.decode(choice.index, choice.tables)
        self._symbols.append(symbols.astype("<i4").tobytes())
        if last:  # before the symbols are used
            self._check_symbols()
        return symbols

    def check_empty(self) -> None:
        """Raises CorruptStreamError unless a layer without passes is empty."""
        self._check_tables()
        self._check_symbols()

    def _check_symbols(self) -> None:
        # The bytes have the right checksum, so the tables must be wrong.
        if not self._decoder.ends_with(bitstream.check24(*self._index, *self._symbols)):
            raise _other_probabilities(self._number)

    def _check_tables(self) -> None:
        check = self._layer.index_check
        if check is not None and bitstream.check16(*self._index) != check:
            raise _other_probabilities(self._number)


@contextmanager
def _naming_layer(number: int) -> Iterator[None]:
    """Turn errors that a layer's bytes cause into CorruptStreamError with the layer's number.

    A RuntimeError is left as it is, because torch also raises it for lack of memory.
    """
    try:
        yield
    except CorruptStreamError as error:
        if error.layer is not None:
            raise
        raise CorruptStreamError(f"{layer_name(number)}: {error}", number) from error
    except (ValueError, LookupError, ArithmeticError) as error:
        raise CorruptStreamError(
            f"{layer_name(number)} holds symbols that no encoder writes: {error!r}", number
        ) from error
