"""The stream format: header, layers, checksums, versions. Only here are bytes packed and parsed.

Header (everything little-endian; ``varint`` is LEB128)::

    uint8   version << 4 | codec        version 1 fixes constriction 0.5's ANS coder
    uint8   flags                       bit 0: layers carry protection bytes; bit 1: stream id
    varint  width, varint height        of the original picture, in pixels
    4 bytes model                       first bytes of the model's sha256
    4 bytes stream id                   only with flag bit 1: keys the shared dither

Layer::

    uint32  crc32 of (model id || header || layer number || all that follows)
    varint  length || protection        only with flag bit 0 (see protection.py)
    uint16  check of the table indices  only with flag bit 0: crc32 >> 16 of the choices of tables
    bytes   entropy-coded words         the coder starts with crc32 >> 8 of the choices of tables
                                        and of the symbols

A file is ``b"STRA"``, ``varint length || header``, then each layer as ``varint length || layer``.

docs/format.md is the specification. No memory is allocated here by a number that bytes only claim.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CorruptStreamError, UnknownModelError, UnsupportedImageError, layer_name

MAGIC = b"STRA"
VERSION = 1
CODECS = {"uqdm": 0, "cdc": 1}
MAX_SIDE = 1 << 20
MAX_PIXELS = 1 << 30  # beyond any camera
MAX_LAYERS = 64
MAX_HEADER_BYTES = 16  # two bytes, three for each side, model, stream id
MAX_LAYER_BYTES = (1 << 31) - 1  # the limit of a value in a Parquet column
# A decoder's default limit (``Codec.max_pixels``): a forged header must not make it allocate
# gigabytes.
DECODED_PIXELS = 1 << 28
_PROTECTED, _STREAM_ID = 1, 2


@dataclass(frozen=True)
class StreamHeader:
    """The decoded header of a stream. ``model`` is the first 8 hex digits of the model id."""

    codec: str
    width: int
    height: int
    model: str
    stream_id: int | None = None
    protected: bool = False


@dataclass(frozen=True)
class Layer:
    """The parsed content of one layer.

    Only layers of protected streams have ``index_check`` and ``protection``.
    """

    payload: bytes
    index_check: int | None = None
    protection: bytes = b""


def varint(value: int) -> bytes:
    """LEB128: seven bits per byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int, what: str, layer: int | None = None) -> tuple[int, int]:
    """The number at offset ``at``, and the offset of its end. Raises CorruptStreamError."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise CorruptStreamError(f"{what} ends early or is malformed", layer)
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            if not data[at - 1] and shift > 7:
                break  # a number has only one valid spelling
            return value, at
    raise CorruptStreamError(f"{what} holds a number that is longer than it needs to be", layer)


def check16(*parts: bytes) -> int:
    """16-bit check of the concatenation of ``parts``."""
    return _crc(parts) >> 16


def check24(*parts: bytes) -> int:
    """24-bit check of the concatenation of ``parts``; an entropy coder starts with so many bits."""
    return _crc(parts) >> 8


def _crc(parts: Sequence[bytes]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _possible(width: int, height: int) -> bool:
    return 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS


def pack_header(header: StreamHeader) -> bytes:
    """Raises UnsupportedImageError for a size that no reader would accept."""
    if not _possible(header.width, header.height):
        raise UnsupportedImageError(
            f"{header.width}x{header.height} is not a valid size: sides are 1 to {MAX_SIDE}, "
            f"pixels at most {MAX_PIXELS}"
        )
    flags = _PROTECTED * header.protected | _STREAM_ID * (header.stream_id is not None)
    out = bytes([VERSION << 4 | CODECS[header.codec], flags])
    out += varint(header.width) + varint(header.height) + bytes.fromhex(header.model)[:4]
    if header.stream_id is not None:
        out += struct.pack("<I", header.stream_id)
    return out


def unpack_header(data: bytes) -> StreamHeader:
    """Parse a header.

    Raises CorruptStreamError if it is damaged, UnknownModelError if it has another version.
    """
    if not 8 <= len(data) <= MAX_HEADER_BYTES:
        kind = "shorter" if len(data) < 8 else "longer"
        raise CorruptStreamError(f"the stream's header is {kind} than any header can be")
    version, codec_number, flags = data[0] >> 4, data[0] & 15, data[1]
    if version != VERSION:
        raise UnknownModelError(
            f"the stream has format version {version}, this release reads {VERSION}: "
            "update strata-images, or the bytes are not a Strata stream"
        )
    codec = next((name for name, number in CODECS.items() if number == codec_number), None)
    if codec is None or flags & ~(_PROTECTED | _STREAM_ID):
        raise CorruptStreamError("the stream's header names a codec or flag that does not exist")
    width, at = read_varint(data, 2, "the stream's header")
    height, at = read_varint(data, at, "the stream's header")
    if not _possible(width, height):
        raise CorruptStreamError(f"the stream's header claims an impossible size, {width}x{height}")
    end = at + 4 + 4 * bool(flags & _STREAM_ID)
    if len(data) != end:
        raise CorruptStreamError(f"the stream's header has {len(data)} bytes, expected {end}")
    stream_id = struct.unpack_from("<I", data, at + 4)[0] if flags & _STREAM_ID else None
    protected = bool(flags & _PROTECTED)
    model = data[at : at + 4].hex()
    return StreamHeader(codec, width, height, model, stream_id, protected)


def _layer_crc(model_id: str, header: bytes, number: int, body: bytes) -> int:
    crc = zlib.crc32(bytes.fromhex(model_id) + header + bytes([number]))
    return zlib.crc32(body, crc)


def pack_layer(model_id: str, header: bytes, number: int, layer: Layer) -> bytes:
    body = b""
    if header[1] & _PROTECTED:
        body += varint(len(layer.protection)) + layer.protection
        body += struct.pack("<H", layer.index_check)
    body += layer.payload
    return struct.pack("<I", _layer_crc(model_id, header, number, body)) + body


def unpack_layer(model_id: str, header: bytes, number: int, data: bytes) -> Layer:
    """Check and parse one layer. Raises CorruptStreamError with the layer's number."""
    if not 4 <= len(data) <= MAX_LAYER_BYTES:
        fault = "is cut short" if len(data) < 4 else "is longer than any layer can be"
        raise CorruptStreamError(f"{layer_name(number)} {fault} ({len(data)} bytes)", number)
    body = data[4:]
    if struct.unpack_from("<I", data)[0] != _layer_crc(model_id, header, number, body):
        raise CorruptStreamError(
            f"{layer_name(number)} does not match its checksum: it is damaged, or belongs to "
            "another picture or model; the layers before it still decode",
            number,
        )
    if not header[1] & _PROTECTED:
        return Layer(body)
    length, at = read_varint(body, 0, layer_name(number), number)
    end = at + length
    if end + 2 > len(body):
        raise CorruptStreamError(f"{layer_name(number)} is malformed", number)
    (index_check,) = struct.unpack_from("<H", body, end)
    return Layer(body[end + 2 :], index_check, body[at:end])


def pack_file(header: bytes, layers: Sequence[bytes]) -> bytes:
    return b"".join([MAGIC, *(varint(len(part)) + part for part in (header, *layers))])


def unpack_file(data: bytes, *, allow_truncated: bool) -> tuple[bytes, tuple[bytes, ...]]:
    """Split a file into its header and layers without decoding them."""
    if data[:4] != MAGIC:
        raise CorruptStreamError("this is not a Strata file: it does not begin with 'STRA'")
    length, at = read_varint(data, 4, "the file's header")
    if length > MAX_HEADER_BYTES or at + length > len(data):
        raise CorruptStreamError(f"the file's header cannot have {length} bytes")
    header = data[at : at + length]
    unpack_header(header)
    at += length
    layers: list[bytes] = []
    while at < len(data):
        number = len(layers)
        if number == MAX_LAYERS:
            raise CorruptStreamError(f"the file has more than {MAX_LAYERS} layers", number)
        try:
            length, start = read_varint(data, at, layer_name(number), number)
            if start + length > len(data):
                raise CorruptStreamError(f"{layer_name(number)} is cut short", number)
        except CorruptStreamError:
            if allow_truncated:
                break
            raise
        layers.append(data[start : start + length])
        at = start + length
    return header, tuple(layers)
