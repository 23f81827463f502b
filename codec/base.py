"""What a codec is: pictures in, layered streams out, any prefix of layers back to pictures.

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
        """Size, layers and bytes, never the bytes themselves; also of a damaged stream."""
        try:
            size = f"{self.width}x{self.height}"
        except StrataError:
            size = "damaged header"
        return f"EncodedImage({size}, {self.num_layers} layers, {self.nbytes} bytes)"

    @cached_property
    def info(self) -> bitstream.StreamHeader:
        """The header's fields. Raises CorruptStreamError when it cannot be read."""
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
        """Bytes of header and layers together: what the rates are computed from."""
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
        """One self-contained file; any prefix of it still holds its whole layers."""
        return bitstream.pack_file(self.header, self.layers)

    @classmethod
    def from_bytes(cls, data: bytes, *, allow_truncated: bool = False) -> "EncodedImage":
        """Read ``to_bytes`` back.

        With ``allow_truncated`` a file cut in mid-layer gives the layers that are whole;
        otherwise it raises CorruptStreamError, as any damage does.
        """
        header, layers = bitstream.unpack_file(data, allow_truncated=allow_truncated)
        return cls(header, layers)


class Codec(ABC):
    """A model that turns pictures into layered streams and back.

    Attributes:
        name: short name of the model, as given to ``load_codec`` where it is a shipped one.
        codec: name of the codec family (``uqdm``, ``cdc``).
        model_id: sha256 (hex) of the model file, which identifies the model.
        num_layers: layers of a complete stream.
        archive_layers: layers worth storing when bit-exactness is not asked for.
        lossless: whether the last layer makes the picture exact.
        model_path: the one file (safetensors, with its configuration inside) that decodes.
        encode_options: names of the options that ``encode`` takes.
        decode_options: names of the options that ``decode``, ``decode_small`` and
            ``decode_progressively`` take.
        resource_options: those of encoding that only bound memory: a job may go on with others.
        max_pixels: decoding refuses streams that claim a larger picture, before it allocates
            anything for it. May be set, where streams are trusted, up to ``bitstream.MAX_PIXELS``.
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

        ``layers`` stops after that many layers (cheaper than truncating later). Raises TypeError
        for a picture that is not in a list, ValueError for arrays, modes and layers that the model
        cannot have.
        """

    def begin_encode(
        self, images: "Sequence[np.ndarray | Image]", *, layers: int | None = None, **options: Any
    ) -> Callable[[], list[EncodedImage]]:
        """The first half of ``encode``, which needs the device; what it returns does the rest.

        The second half (entropy coding) may be called in another thread, while the device does
        the next pictures; a ``coder_process.Coding`` can also run in another process. Errors of the
        pictures may come from either half.
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
        """Previews: what ``decode`` gives, made no longer than ``max_side`` pixels.

        Pictures are scaled down, filtered against aliasing, and never up. Codecs that can decode
        at a reduced size do, and their previews are close to, but not bit for bit, a reduced
        ``decode``. ``layers`` and ``options`` are those of ``decode``, and so are the errors;
        ValueError unless ``max_side`` is at least 1.
        """
        sizes = [resizing.fit(stream.height, stream.width, max_side) for stream in encoded]
        pictures = self.decode(encoded, layers=layers, **options)
        return [resizing.shrink(x, *size) for x, size in zip(pictures, sizes, strict=True)]

    def check_options(self, purpose: Purpose, options: Mapping[str, Any]) -> None:
        """Whether ``encode`` or ``decode`` would take these options, without doing either.

        Raises TypeError naming codec, option and the options there are; ValueError for a value
        that the model cannot have.
        """
        known = self.encode_options if purpose == "encode" else self.decode_options
        unknown = sorted(options.keys() - known)
        if unknown:
            raise TypeError(
                f"{self.codec} has no option {', '.join(unknown)} to {purpose} with "
                f"(it has {', '.join(sorted(known)) or 'none'})"
            )

    def head_id(self, options: Mapping[str, Any]) -> str:
        """The sha256 (hex) of the head file that pictures decoded so depend on; "" for none.

        A model's id does not cover it: see ``codec.models.heads``.
        """
        return ""

    def decode_progressively(
        self, encoded: Sequence[EncodedImage], **options: Any
    ) -> Iterator[list[np.ndarray]]:
        """The pictures after the first layer, after the second, and so on to the last there is.

        A stream with fewer layers than others stays as it is. Codecs that can go on from one layer
        to the next do so, which costs far less than decoding every prefix from its beginning.
        """
        for layers in range(1, max((len(stream.layers) for stream in encoded), default=0) + 1):
            yield self.decode(encoded, layers=layers, **options)
