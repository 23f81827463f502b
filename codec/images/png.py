"""Checks PNG files before they are decoded, and drops chunks that pixels do not need.

Pillow fails on damaged or huge chunks that have nothing to do with pixels, and ignores missing
rows. So it gets a new file with only the chunks that it needs.
"""

import struct
import zlib
from dataclasses import dataclass, field

from ..errors import BrokenImageError, UnsupportedImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"fcTL", b"fdAT")
_COLOURS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"iCCP")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts that may hold the orientation: EXIF as ImageMagick writes it, and XMP.
_ORIENTING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_TEXT_KINDS = {b"Raw profile type iptc": "IPTC", b"Raw profile type xmp": "XMP"}
MAX_TEXT = 1 << 20  # unpacked; larger texts are not read
MAX_PROFILE = 1 << 24
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7: first column and row, and the steps, of each pass.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8)),
    *((2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


@dataclass
class Png:
    """A PNG file: its ``header`` (IHDR), packed ``rows``, and the chunks about its ``colours``.

    ``texts`` has the kinds of the texts that are left out: ``C2PA``, ``IPTC``, ``XMP``, ``text``.
    ``end_is_lost`` if the file stops before its end marker.
    """

    header: bytes
    rows: list[bytes] = field(default_factory=list)
    others: list[tuple[bytes, bytes]] = field(default_factory=list)
    colours: dict[bytes, bytes] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    end_is_lost: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return struct.unpack(">II", self.header[:8])

    @property
    def is_interlaced(self) -> bool:
        return self.header[12] != 0

    def to_bytes(self) -> bytes:
        """A PNG file with only the chunks that decoding needs."""
        rows = [(b"IDAT", data) for data in self.rows]
        return _file([(b"IHDR", self.header), *self.others, *rows])

    def mended(self) -> bytes:
        """The file with its missing end. Raises BrokenImageError if rows are missing."""
        return _file([(b"IHDR", self.header), *self.others, (b"IDAT", zlib.compress(self.check()))])

    def check(self) -> bytes:
        """The unpacked rows. Raises BrokenImageError if some are missing."""
        width, height = self.size
        depth, kind, interlaced = self.header[8], self.header[9], self.header[12]
        passes = _PASSES if interlaced else ((0, 0, 1, 1),)
        expected = 0
        for left, top, across, down in passes:
            columns, lines = -(-(width - left) // across), -(-(height - top) // down)
            if columns > 0 and lines > 0:
                expected += lines * (1 + -(-columns * depth * _CHANNELS.get(kind, 1) // 8))
        try:
            found = zlib.decompressobj().decompress(b"".join(self.rows), expected)
        except zlib.error as error:
            raise BrokenImageError(f"the png file's rows cannot be unpacked: {error}") from error
        if len(found) < expected:
            share = round(100 * len(found) / expected)
            raise BrokenImageError(f"the png file is cut short: it holds {share} % of its rows")
        return found


def read_png(data: bytes, notes: list[str]) -> Png:
    """Parse a file; ``notes`` gets what is ignored. Raises BrokenImageError."""
    if data[12:16] != b"IHDR" or len(data) < 33 or data[8:12] != b"\0\0\0\x0d":
        raise BrokenImageError("the png file does not begin with a whole IHDR chunk")
    if data[24] == 16:
        raise UnsupportedImageError("16 bits a channel; only 8 are supported")
    png, at = Png(data[16:29]), 8
    while True:
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or not kind.isalpha():
            png.end_is_lost = True
            if kind == b"IDAT":
                png.rows.append(data[at + 8 : end - 4])
            return png
        content = data[at + 8 : end - 4]
        if kind == b"IEND":
            return png
        if data[end - 4 : end] != zlib.crc32(content, zlib.crc32(kind)).to_bytes(4):
            if kind in _PIXELS or kind[:1].isupper():
                raise BrokenImageError(
                    f"the png file is damaged: wrong checksum of its {kind!r} chunk"
                )
            notes.append(f"damaged {kind.decode()} chunk ignored")
        elif kind == b"IHDR":
            if at != 8:
                raise BrokenImageError("the png file is damaged: it has two IHDR chunks")
        elif kind == b"IDAT":
            png.rows.append(content)
        elif kind in _COLOURS:
            png.colours[kind] = content
        elif kind in _TEXTS:
            if _is_readable(kind, content, notes):
                if content.startswith(_ORIENTING):
                    png.others.append((kind, content))
                elif (parts := content.partition(b"\0"))[2]:
                    png.texts.add(_TEXT_KINDS.get(parts[0], "text"))
        elif kind == b"caBX":
            png.texts.add("C2PA")
        elif kind == b"tRNS":
            png.others += _transparency(png.header, content, notes)
        elif kind in (*_PIXELS, b"eXIf") or kind[:1].isupper():
            png.others.append((kind, content))
        at = end


def profile_of(chunk: bytes) -> bytes:
    """The ICC profile in an iCCP chunk. Raises ValueError or zlib.error."""
    unpacking = zlib.decompressobj()
    profile = unpacking.decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE)
    if not unpacking.eof:
        raise ValueError(f"it is cut, or has more than {MAX_PROFILE} bytes")
    return profile


def _is_readable(kind: bytes, content: bytes, notes: list[str]) -> bool:
    """Whether a text can be read. Adds a note if it is damaged or too large."""
    size, packed = len(content), b""
    rest = content.partition(b"\0")[2]
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        if packed:
            size = len(zlib.decompressobj().decompress(packed, MAX_TEXT + 1))
    except zlib.error:
        notes.append(f"damaged text ({kind.decode()}) ignored")
        return False
    if size > MAX_TEXT:
        notes.append(f"text of more than {MAX_TEXT} bytes ({kind.decode()}) ignored")
    return size <= MAX_TEXT


def _transparency(header: bytes, content: bytes, notes: list[str]) -> list[tuple[bytes, bytes]]:
    """The tRNS chunk for Pillow, with its values scaled to 8 bits."""
    depth, kind = header[8], header[9]
    if kind == 3 and len(content) <= 256:
        return [(b"tRNS", content)]
    if kind not in (0, 2) or len(content) != 2 * _CHANNELS[kind]:
        notes.append("tRNS chunk of a wrong size or place ignored")
        return []
    most = (1 << depth) - 1
    values = [value & most for value in struct.unpack(f">{_CHANNELS[kind]}H", content)]
    scaled = [value * 255 // most if depth > 1 else value for value in values]
    return [(b"tRNS", struct.pack(f">{len(scaled)}H", *scaled))]


def _file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [SIGNATURE]
    for kind, content in [*chunks, (b"IEND", b"")]:
        checksum = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, checksum.to_bytes(4)]
    return b"".join(parts)
