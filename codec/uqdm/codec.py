"""UQDM as a ``Codec``: headers, layers, checks and entropy coding around a quantiser's integers.

One codec, two kinds of model, told apart by the configuration in the model file: ``quantizer:
universal`` in ``domain: pixels`` (the paper's), ``quantizer: nested`` in ``domain: bands`` (ours).
Everything about bytes is here and the same for both; everything about pixels is in their schemes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import bitstream, entropy
from ..base import Codec, EncodedImage
from ..errors import CorruptStreamError, InvalidModelError, UnknownModelError
from .nested_scheme import NestedScheme
from .scheme import REALISMS, LayerSymbols, Realism, Scheme
from .universal import UniversalScheme

SCHEMES: dict[tuple[str, str], Callable[..., Scheme]] = {
    ("nested", "bands"): NestedScheme,
    ("universal", "pixels"): UniversalScheme,
}
# Pictures handed to a scheme at once hold at most this many pixels: bounds memory, not results.
BATCH_PIXELS = 1 << 21


class UQDMCodec(Codec):
    """A UQDM model on one device."""

    codec = "uqdm"
    lossless = True

    def __init__(
        self,
        name: str,
        model_id: str,
        model_path: Path,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        device: str,
    ) -> None:
        kind = (config.get("quantizer"), config.get("domain"))
        if kind not in SCHEMES:
            known = ", ".join("/".join(k) for k in SCHEMES)
            raise InvalidModelError(f"model {name}: no such quantizer/domain {kind}; have {known}")
        self.name, self.model_id, self.model_path, self.config = name, model_id, model_path, config
        self.device = device
        self.scheme = SCHEMES[kind](config, tensors, device)
        self.num_layers = self.scheme.num_layers
        self.archive_layers = self.scheme.archive_layers

    def encode(
        self, images: Sequence[np.ndarray], *, layers: int | None = None, **options: Any
    ) -> list[EncodedImage]:
        """See ``Codec.encode``. Takes no options."""
        if options:
            raise TypeError(f"uqdm encodes without options, got {', '.join(options)}")
        layers = self.num_layers if layers is None else layers
        if not 0 <= layers <= self.num_layers:
            raise ValueError(f"layers must be 0 to {self.num_layers}, got {layers}")
        for i, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(
                    f"picture {i} must be (H, W, 3) uint8, got {image.shape} {image.dtype}"
                )
        out: list[EncodedImage | None] = [None] * len(images)
        for chosen in _batches([image.shape[:2] for image in images]):
            batch = [np.ascontiguousarray(images[i]) for i in chosen]
            headers = [self._header(image) for image in batch]
            ids = [bitstream.unpack_header(h).stream_id or 0 for h in headers]
            for i, header, stream in zip(
                chosen, headers, self.scheme.encode(batch, ids, layers), strict=True
            ):
                packed = (self._pack(header, n, symbols) for n, symbols in enumerate(stream))
                out[i] = EncodedImage(header, tuple(packed))
        return [encoded for encoded in out if encoded is not None]

    def decode(
        self,
        encoded: Sequence[EncodedImage],
        *,
        layers: int | None = None,
        realism: Realism = "denoise",
        **options: Any,
    ) -> list[np.ndarray]:
        """See ``Codec.decode``.

        ``realism="denoise"`` gives the best PSNR; ``"flow"`` gives up some of it for likely detail.
        """
        _no_options(options)
        out: list[np.ndarray | None] = [None] * len(encoded)
        for group in self._groups(encoded, layers, realism):
            for layer in range(group.layers):
                self._unpack(group.state, layer, group.streams)
            pictures = self.scheme.reconstruct(group.state, group.layers, realism)
            for i, picture in zip(group.chosen, pictures, strict=True):
                out[i] = picture
        return [picture for picture in out if picture is not None]

    def decode_progressively(
        self, encoded: Sequence[EncodedImage], *, realism: Realism = "denoise", **options: Any
    ) -> Iterator[list[np.ndarray]]:
        """See ``Codec.decode_progressively``: every layer is decoded once."""
        _no_options(options)
        groups = list(self._groups(encoded, None, realism))
        shown: list[Any] = [None] * len(encoded)
        for group in groups:  # of streams without any layer
            for i, picture in zip(
                group.chosen, self.scheme.reconstruct(group.state, 0, realism), strict=True
            ):
                shown[i] = picture
        for layer in range(max((group.layers for group in groups), default=0)):
            for group in groups:
                if layer < group.layers:
                    self._unpack(group.state, layer, group.streams)
                    pictures = self.scheme.reconstruct(group.state, layer + 1, realism)
                    for i, picture in zip(group.chosen, pictures, strict=True):
                        shown[i] = picture
            yield list(shown)

    def _groups(
        self, encoded: Sequence[EncodedImage], layers: int | None, realism: Realism
    ) -> Iterator["_Group"]:
        """Streams that are decoded together: equal sizes, and equal numbers of layers."""
        if realism not in REALISMS:
            raise TypeError(f"realism must be one of {REALISMS}, got {realism!r}")
        if layers is not None and layers < 0:
            raise ValueError(f"layers must not be negative, got {layers}")
        most = self.num_layers if layers is None else layers
        headers = [self._checked(stream) for stream in encoded]
        sizes = [
            (header.height, header.width, min(len(stream.layers), most))
            for header, stream in zip(headers, encoded, strict=True)
        ]
        for chosen in _batches(sizes):
            ids = [headers[i].stream_id or 0 for i in chosen]
            state = self.scheme.start([sizes[i][:2] for i in chosen], ids)
            yield _Group(chosen, [encoded[i] for i in chosen], sizes[chosen[0]][2], state)

    def cross_entropy(self, image: np.ndarray) -> list[float]:
        """Ideal length in bits of each layer of a picture under the model's tables."""
        stream_id = bitstream.unpack_header(self._header(image)).stream_id or 0
        return [
            sum(entropy.cross_entropy(*part) for part in symbols.parts())
            for symbols in self.scheme.encode([image], [stream_id], self.num_layers)[0]
        ]

    def sample(self, height: int, width: int, count: int = 1, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples of the model, ``(height, width, 3) uint8`` each."""
        return self.scheme.sample(height, width, count, seed=seed)

    def _header(self, image: np.ndarray) -> bytes:
        stream_id = None
        if (
            self.scheme.uses_stream_id
        ):  # of the pixels, so that the same picture gives the same file
            stream_id = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "little")
        height, width = image.shape[:2]
        return bitstream.pack_header(
            bitstream.StreamHeader("uqdm", width, height, self.model_id, stream_id)
        )

    def _checked(self, encoded: EncodedImage) -> bitstream.StreamHeader:
        header = encoded.info
        if header.codec != self.codec or header.model != self.model_id[:8]:
            raise UnknownModelError(
                f"the stream was written by {header.codec} model {header.model}..., "
                f"not by {self.name} ({self.model_id[:8]}...)"
            )
        if (header.stream_id is not None) != self.scheme.uses_stream_id:
            raise CorruptStreamError("the stream's header does not fit its model")
        if len(encoded.layers) > self.num_layers:
            raise CorruptStreamError(
                f"the stream has {len(encoded.layers)} layers, its model {self.num_layers}",
                self.num_layers,
            )
        return header

    def _pack(self, header: bytes, number: int, symbols: LayerSymbols) -> bytes:
        layer = bitstream.Layer(
            entropy.encode(symbols.parts()),
            bitstream.check16(symbols.index_bytes()),
            bitstream.check16(symbols.symbol_bytes()),
        )
        return bitstream.pack_layer(self.model_id, header, number, layer)

    def _unpack(self, state: Any, number: int, batch: Sequence[EncodedImage]) -> None:
        """Decode layer ``number`` of every stream of a batch into ``state``."""
        layers = [
            bitstream.unpack_layer(self.model_id, stream.header, number, stream.layers[number])
            for stream in batch
        ]
        decoders = [entropy.Decoder(layer.payload) for layer in layers]
        checks = [(b"", b"")] * len(batch)
        passes = self.scheme.passes(number)
        for part in range(passes):
            symbols = []
            for i, choice in enumerate(self.scheme.choices(state, number, part)):
                index_bytes, symbol_bytes = checks[i]
                index_bytes += choice.check_bytes()
                if part == passes - 1 and bitstream.check16(index_bytes) != layers[i].index_check:
                    raise CorruptStreamError(
                        f"layer {number}: this device computes other probabilities than the "
                        "encoder's did; the layers before it still decode",
                        number,
                    )
                values = decoders[i].decode(choice.index, choice.tables)
                checks[i] = index_bytes, symbol_bytes + values.astype("<i4").tobytes()
                symbols.append(values)
            self.scheme.update(state, number, part, symbols)
        for layer, decoder, (_, symbol_bytes) in zip(layers, decoders, checks, strict=True):
            decoder.finish()
            if bitstream.check16(symbol_bytes) != layer.symbol_check:
                raise CorruptStreamError(f"layer {number} decodes to other symbols", number)


@dataclass(frozen=True)
class _Group:
    """Streams decoded together: their positions, how many layers to decode, and the state."""

    chosen: list[int]
    streams: list[EncodedImage]
    layers: int
    state: Any


def _no_options(options: dict[str, Any]) -> None:
    if options:
        raise TypeError(f"uqdm takes realism and layers only, got {', '.join(options)}")


def _batches(sizes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Indices of equal sizes together, at most BATCH_PIXELS at once (one picture at least)."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(tuple(size), []).append(i)
    for size, members in groups.items():
        most = max(1, BATCH_PIXELS // (size[0] * size[1]))
        for at in range(0, len(members), most):
            yield members[at : at + most]


def load(
    name: str,
    path: Path,
    model_id: str,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    device: str,
) -> UQDMCodec:
    """Make a codec of a model file's content."""
    return UQDMCodec(name, model_id, path, config, tensors, device)
