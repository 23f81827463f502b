"""Detects picture files that were cut, or whose end was overwritten with zeros.

Decoders of JPEG, WebP and AVIF decode what is there and report no error. To find out whether data
is missing, the file is decoded again with other bytes in place of the missing ones: if the picture
changes, the decoder needed them.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import BrokenImageError

Decode = Callable[[bytes], bytes]
PADS = (b"\0", b"\x55", b"\xaa", b"\xff")
END_IS_LOST = "its end marker or metadata at its end are missing; the picture is whole"
MAX_LOST = 1 << 20  # so many missing bytes are padded at most; they can only be metadata
# So many zeros at the end of WebP data give a note, and so many make us decode it once more.
FEW_ZEROS, ZEROS = 4, 16
BLACK = 4096  # so many zero bytes at the end of uncompressed pixels give a note
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")  # ends the data of a JPEG scan


def check_end(data: bytes, format: str, decode: Decode, notes: list[str]) -> bytes:
    """The file, completed if only its end marker or metadata at its end are missing.

    ``decode`` returns a hash of a file's pixels. Raises BrokenImageError if pixels are missing.
    """
    return _CHECKS[format](data, decode, notes) if format in _CHECKS else data


def _same(candidates: Iterator[bytes], decode: Decode) -> bool:
    """Whether all files give the same pixels. One that cannot be decoded is different."""
    first = b""
    for candidate in candidates:
        try:
            pixels = decode(candidate)
        except Exception:  # decoders raise anything at all on damaged files
            return False
        first = first or pixels
        if pixels != first:
            return False
    return True


def _trailing_zeros(data: bytes) -> int:
    return len(data) - len(data.rstrip(b"\0"))


# --- JPEG ---


def _jpeg(data: bytes, decode: Decode, notes: list[str]) -> bytes:
    scans = _scans(data)
    if scans.end is None:
        # A zero or two may belong to the data.
        content = data.rstrip(b"\0") if _trailing_zeros(data) > 2 else data
        content = content.removesuffix(b"\xff")
        if scans.lacking or not _same(_endings(content, b"\xff\xd9", scans), decode):
            zeros = len(data) - len(content)
            how = f"its last {zeros} bytes are zeros" if zeros > 1 else "it has no end marker"
            raise BrokenImageError(f"the jpeg file is cut short: {how}, and pixels are missing")
        notes.append(END_IS_LOST)
        return content + b"\xff\xd9"
    return data


def check_scans(data: bytes, corner: np.ndarray, decode: Decode, notes: list[str]) -> None:
    """Detect missing data of a JPEG that has its end marker.

    libjpeg fills missing pixels with middle grey; ``corner`` are the last few pixels. Raises
    BrokenImageError if pixels are missing, except in a last block that was begun.
    """
    scans = _scans(data)
    is_filled = np.ptp(corner) == 0 and abs(int(corner.flat[0]) - 128) <= 1
    if scans.end is None or not (is_filled or scans.lacking):
        return
    if not _same(_endings(data[: scans.end], data[scans.end :], scans), decode):
        raise BrokenImageError("the jpeg file's data end early, and pixels are missing")
    if scans.lacking:
        notes.append("the last scans are missing: the picture is coarser than it was")


@dataclass(frozen=True)
class _Scans:
    """The place of a JPEG's end marker, if it has one, and whether scans are ``lacking``.

    ``restart`` is the restart marker with which the data would go on, if it has such markers.
    """

    end: int | None
    lacking: bool
    restart: bytes


def _endings(content: bytes, rest: bytes, scans: _Scans) -> Iterator[bytes]:
    """The JPEG with other bytes after its data. Only the decoder of a cut file would use them."""
    yield content + rest
    for start in dict.fromkeys((b"", scans.restart)):
        for pad in PADS:
            yield content + start + 64 * pad + rest


def _scans(data: bytes) -> _Scans:
    """Walk from marker to marker (ITU-T T.81, B.1)."""
    wanted: dict[int, set[int]] = {}  # by component, the coefficients that are not exact yet
    at, is_progressive, begin, restarts = 2, False, 0, False

    def result(end: int | None) -> _Scans:
        restart = b""
        if restarts:
            found = _RESTART.findall(data, begin, len(data) if end is None else end)
            restart = bytes([0xFF, 0xD0 + (found[-1][1] + 1) % 8 if found else 0xD0])
        return _Scans(end, not wanted or any(wanted.values()), restart)

    while (marker := _MARKER.search(data, at)) is not None:
        at, kind = marker.start(), data[marker.start() + 1]
        if kind == 0xD9:
            return result(at)
        at += 2
        if kind == 1 or kind == 0xD8:
            continue
        length = int.from_bytes(data[at : at + 2])
        body = data[at + 2 : at + length]
        at += length
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            is_progressive = kind in (0xC2, 0xC6, 0xCA, 0xCE)
            wanted = {one: set(range(64 if is_progressive else 1)) for one in body[6::3]}
        elif kind == 0xDD:
            restarts = any(body)
        elif kind == 0xDA and len(body) >= 4:
            begin = at
            first, last, shifts = body[-3:]
            for one in body[1 : 1 + 2 * body[0] : 2]:
                if not is_progressive:
                    wanted.pop(one, None)
                elif not shifts & 15:
                    wanted.get(one, set()).difference_update(range(first, last + 1))
            if not any(wanted.values()):
                wanted = {-1: set()}  # nothing is lacking any more
    return result(None)


def without_metadata(data: bytes) -> bytes:
    """A JPEG without comments and application segments, except those about its colour coding."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xD9, 0xDA):
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        is_metadata = 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE
        if not is_metadata or (segment[4:9] == b"Adobe" and len(segment) >= 16):
            parts.append(segment)
        at += 2 + length
    return b"".join([*parts, data[at:]])


# --- WebP, AVIF, JPEG 2000, and uncompressed pixels ---


def _webp(data: bytes, decode: Decode, notes: list[str]) -> bytes:
    lost = 8 + int.from_bytes(data[4:8], "little") - len(data)
    if lost > 0:
        return _padded(data, lost, "webp", decode, notes)
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        begin, end = at + 8, at + 8 + size
        zeros = _trailing_zeros(data[begin:end])
        if kind in (b"VP8 ", b"VP8L") and zeros >= FEW_ZEROS:
            # A plain area may be coded as zeros in VP8, but then the decoder needs all of them.
            few = zeros // 4
            other = data[: end - few] + few * b"\xff" + data[end:]
            lost = zeros >= ZEROS and (kind == b"VP8L" or _same(iter((data, other)), decode))
            if lost:
                raise BrokenImageError(
                    f"the webp file is cut short: its last {zeros} bytes are zeros"
                )
            notes.append(f"its last {zeros} bytes are zeros: a plain surface, or lost")
        at = end + size % 2
    return data


def _avif(data: bytes, decode: Decode, notes: list[str]) -> bytes:
    end = max((end for _, _, end in boxes(data, 0, len(data))), default=0)
    if end > len(data):
        return _padded(data, end - len(data), "avif", decode, notes)
    zeros = _trailing_zeros(data)
    if zeros and not _same((data[:-zeros] + zeros * pad for pad in PADS), decode):
        raise BrokenImageError(f"the avif file is cut short: its last {zeros} bytes are zeros")
    return data


def _padded(data: bytes, lost: int, format: str, decode: Decode, notes: list[str]) -> bytes:
    if lost > MAX_LOST or not _same((data + lost * pad for pad in PADS), decode):
        raise BrokenImageError(f"the {format} file is cut short: {lost} bytes are missing")
    notes.append(END_IS_LOST)
    return data + bytes(lost)


def _jpeg2000(data: bytes, decode: Decode, notes: list[str]) -> bytes:
    """Add the end marker if every tile-part has all its bytes. OpenJPEG does not check this."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or data.find(b"\xff\xd9", at) >= 0:  # no packet can hold these two bytes
        return data
    at += 2
    while at + 12 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == 0xFF90:  # SOT: the length of its tile-part counts from here
            length = int.from_bytes(data[at + 6 : at + 10]) - 2
        if length < 2:
            break
        at += 2 + length
    if at != len(data) or _trailing_zeros(data) >= ZEROS or not _tiles_are_there(data):
        raise BrokenImageError("the jpeg2000 file is cut short: its codestream has no end")
    notes.append(END_IS_LOST)
    return data + b"\xff\xd9"


def _tiles_are_there(data: bytes) -> bool:
    """Whether each tile in the SIZ marker has a tile-part (ISO 15444-1 A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51") + 8
    x1, y1, _, _, width, height, left, top = struct.unpack_from(">8I", data, at)
    tiles = -(-(x1 - left) // max(width, 1)) * -(-(y1 - top) // max(height, 1))
    found = {match[1] for match in re.finditer(rb"\xff\x90\0\n(..)", data, re.DOTALL)}
    return len(found) >= tiles


def _gif(data: bytes, decode: Decode, notes: list[str]) -> bytes:
    """Check for zeros at the end, which mean that data was overwritten. GIF needs no end marker."""
    if data.rstrip(b"\0\r\n").endswith(b";"):
        return data
    zeros = _trailing_zeros(data)
    if zeros > 2:  # one ends the data, one may stand for the marker
        start = data[: 1 - zeros]
        if not _same((start + (zeros - 1) * pad for pad in PADS), decode):
            raise BrokenImageError(f"the gif file is cut short: its last {zeros} bytes are zeros")
    notes.append(END_IS_LOST)
    return data


def _uncompressed(data: bytes, decode: Decode, notes: list[str]) -> bytes:
    if (zeros := _trailing_zeros(data)) >= BLACK:
        notes.append(f"its last {zeros} bytes are zeros: black, or lost")
    return data


_CHECKS: dict[str, Callable[[bytes, Decode, list[str]], bytes]] = {
    "jpeg": _jpeg,
    "webp": _webp,
    "avif": _avif,
    "jpeg2000": _jpeg2000,
    "gif": _gif,
    "bmp": _uncompressed,
    "ppm": _uncompressed,
    "tiff": _uncompressed,
}


def boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box of AVIF and JPEG 2000 files.

    In a file that was cut, the last box may end beyond ``end``.
    """
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        size = size or end - at
        if size < head:
            return
        yield data[at + 4 : at + 8], at + head, at + size
        at += size
