"""The interface of a codec: it encodes pictures to layered streams, and decodes any first layers.

**Layer**: one independently stored piece of a stream; layer i needs layers 0..i-1.
**Truncating** keeps a prefix of layers, so ``layers=k`` always means "the first k".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import StrataError
from .images import resizing
from .stream import bitstream

if TYPE_CHECKING:
    from PIL.Image import Image

Purpose = Literal["encode", "decode"]


@dataclass(frozen=True)
class EncodedImage:
    """One picture as a packed header and a tuple of layers (each ``bytes``)."""

    header: bytes
    layers: tuple[bytes, ...]

    def __repr__(self) -> str:
        """The size and the numbers of layers and bytes. Works for damaged streams, too."""
        try:
            size = f"{self.width}x{self.height}"
        except StrataError:
            size = "damaged header"
        return f"EncodedImage({size}, {self.num_layers} layers, {self.nbytes} bytes)"

    @cached_property
    def info(self) -> bitstream.StreamHeader:
        """The header's fields. Raises CorruptStreamError if it cannot be read."""
        return bitstream.unpack_header(self.header)

    @property
    def width(self) -> int:
        return self.info.width

    @property
    def height(self) -> int:
        return self.info.height

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of header and layers together, from which rates are computed."""
        return len(self.header) + sum(map(len, self.layers))

    @property
    def bpp(self) -> float:
        """Bits per pixel of the original picture, header included."""
        return 8 * self.nbytes / (self.width * self.height)

    def truncate(self, layers: int) -> "EncodedImage":
        """The same stream cut after its first ``layers`` layers."""
        if layers < 0:
            raise ValueError(f"layers must not be negative, got {layers}")
        return EncodedImage(self.header, self.layers[:layers])

    def to_bytes(self) -> bytes:
        """The stream as a file. Any prefix of the file still has its whole layers."""
        return bitstream.pack_file(self.header, self.layers)

    @classmethod
    def from_bytes(cls, data: bytes, *, allow_truncated: bool = False) -> "EncodedImage":
        """Read ``to_bytes`` back.

        With ``allow_truncated``, a file that was cut inside a layer gives the whole layers before
        the cut. Otherwise it raises CorruptStreamError, as any damage does.
        """
        header, layers = bitstream.unpack_file(data, allow_truncated=allow_truncated)
        return cls(header, layers)


class Codec(ABC):
    """A model that turns pictures into layered streams and back.

    Attributes:
        name: short name of the model; ``load_codec`` takes that of a shipped model.
        codec: name of the codec family (``uqdm``, ``cdc``).
        model_id: sha256 (hex) of the model file, which identifies the model.
        num_layers: layers of a complete stream.
        archive_layers: how many layers an archive stores by default; lossless layers are not among
            them.
        lossless: whether the last layer makes the picture exact.
        model_path: the model file (safetensors, with its configuration inside).
        encode_options: names of the options that ``encode`` takes.
        decode_options: names of the options that ``decode``, ``decode_small`` and
            ``decode_progressively`` take.
        resource_options: encode options that only limit memory; a job may go on with other values.
        max_pixels: decoding refuses streams that claim a larger picture, before it allocates memory
            for it. It may be raised up to ``bitstream.MAX_PIXELS`` if streams are trusted.
    """

    max_pixels: int = bitstream.DECODED_PIXELS

    encode_options: frozenset[str] = frozenset()
    decode_options: frozenset[str] = frozenset()
    resource_options: frozenset[str] = frozenset()

    name: str
    codec: str
    model_id: str
    num_layers: int
    archive_layers: int
    lossless: bool
    model_path: Path

    @abstractmethod
    def encode(
        self, images: "Sequence[np.ndarray | Image]", *, layers: int | None = None, **options: Any
    ) -> list[EncodedImage]:
        """Encode pictures, each ``(H, W, 3) uint8`` of any size, or a PIL image of mode RGB or L.

        With ``layers``, only so many layers are made, which is cheaper than truncating later.
        Raises TypeError for a picture that is not in a list, ValueError for arrays, modes and
        layers that the model does not support.
        """

    def begin_encode(
        self, images: "Sequence[np.ndarray | Image]", *, layers: int | None = None, **options: Any
    ) -> Callable[[], list[EncodedImage]]:
        """Run the first half of ``encode``, which needs the device; returns the second half.

        The second half (entropy coding) may be called in another thread while the device encodes
        the next pictures; a ``coder_process.Coding`` can also run in another process. Either half
        may raise errors of the pictures.
        """
        encoded = self.encode(images, layers=layers, **options)
        return lambda: encoded

    @abstractmethod
    def decode(
        self, encoded: Sequence[EncodedImage], *, layers: int | None = None, **options: Any
    ) -> list[np.ndarray]:
        """Decode the first ``layers`` layers (default: all there are) to ``(H, W, 3) uint8``.

        A stream with fewer layers gives what it has; with none, the model's prior mean.
        Raises TypeError for a stream that is not in a list, ValueError for more layers than the
        model has, CorruptStreamError naming the layer; UnknownModelError for another model's
        stream.
        """

    def decode_small(
        self,
        encoded: Sequence[EncodedImage],
        *,
        max_side: int,
        layers: int | None = None,
        **options: Any,
    ) -> list[np.ndarray]:
        """Decode previews: pictures with no side longer than ``max_side`` pixels.

        Pictures are scaled down, filtered against aliasing, and never scaled up. Codecs that can
        decode at a reduced size do so; their previews are close to a reduced ``decode``, but not
        equal bit for bit. ``layers``, ``options`` and errors are those of ``decode``. Raises
        ValueError unless ``max_side`` is at least 1.
        """
        sizes = [resizing.fit(stream.height, stream.width, max_side) for stream in encoded]
        pictures = self.decode(encoded, layers=layers, **options)
        return [resizing.shrink(x, *size) for x, size in zip(pictures, sizes, strict=True)]

    def check_options(self, purpose: Purpose, options: Mapping[str, Any]) -> None:
        """Check whether ``encode`` or ``decode`` has these options.

        Raises TypeError, with the known options, for an unknown option; ValueError for a value that
        the model does not support.
        """
        known = self.encode_options if purpose == "encode" else self.decode_options
        unknown = sorted(options.keys() - known)
        if unknown:
            raise TypeError(
                f"{self.codec} has no option {', '.join(unknown)} to {purpose} "
                f"(it has {', '.join(sorted(known)) or 'none'})"
            )

    def head_id(self, options: Mapping[str, Any]) -> str:
        """The sha256 (hex) of the head file that decoding with these options uses; "" for none.

        The model's id does not depend on it: see ``codec.models.heads``.
        """
        return ""

    def decode_progressively(
        self, encoded: Sequence[EncodedImage], **options: Any
    ) -> Iterator[list[np.ndarray]]:
        """The pictures from the first layer, then from two layers, and so on to the last.

        A stream with fewer layers than others keeps its last picture. Codecs that can continue from
        layer to layer do so, which costs far less than decoding every prefix anew.
        """
        for layers in range(1, max((len(stream.layers) for stream in encoded), default=0) + 1):
            yield self.decode(encoded, layers=layers, **options)
