"""EXIF as cameras write it: an orientation, a place (GPS) and a thumbnail, in a JPEG file."""

import io
import struct
from collections.abc import Sequence

from PIL import Image

THUMBNAIL = 80  # pixels; cameras write 160, which would be most of a small file
_SHORT, _LONG, _RATIONAL, _ASCII = 3, 4, 5, 2
_SIZES = {_SHORT: 2, _LONG: 4, _RATIONAL: 8, _ASCII: 1}
Entry = tuple[int, int, bytes]  # tag, type, value


def with_exif(data: bytes, picture: Image.Image, orientation: int) -> bytes:
    """The JPEG file ``data`` with an EXIF segment behind its first marker."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    thumbnail = io.BytesIO()
    small.save(thumbnail, "JPEG", quality=60)
    segment = b"Exif\0\0" + _tiff(orientation, thumbnail.getvalue())
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def _tiff(orientation: int, thumbnail: bytes) -> bytes:
    """Three directories, one after the other: of the picture, of its place, of the thumbnail."""

    def shorts(number: int) -> bytes:
        return struct.pack("<H", number)

    def longs(number: int) -> bytes:
        return struct.pack("<I", number)

    def degrees(*numbers: int) -> bytes:
        return b"".join(struct.pack("<II", number, 1) for number in numbers)

    camera, place = b"Strata camera\0", 8
    for _ in range(2):  # the second time with the places that the first one tells
        first: list[Entry] = [
            (0x010F, _ASCII, camera),
            (0x0112, _SHORT, shorts(orientation)),
            (0x8825, _LONG, longs(place)),
        ]
        gps: list[Entry] = [
            (0x0001, _ASCII, b"N\0"),
            (0x0002, _RATIONAL, degrees(52, 31, 12)),
            (0x0003, _ASCII, b"E\0"),
            (0x0004, _RATIONAL, degrees(13, 24, 36)),
        ]
        place = 8 + len(_directory(8, first, 0))
        after = place + len(_directory(place, gps, 0))
        second: list[Entry] = [
            (0x0103, _SHORT, shorts(6)),
            (0x0201, _LONG, longs(0)),
            (0x0202, _LONG, longs(len(thumbnail))),
        ]
        second[1] = (0x0201, _LONG, longs(after + len(_directory(after, second, 0))))
    body = _directory(8, first, after) + _directory(place, gps, 0) + _directory(after, second, 0)
    return b"II*\0" + longs(8) + body + thumbnail


def _directory(start: int, entries: Sequence[Entry], following: int) -> bytes:
    """A directory that lies at ``start``; what is longer than four bytes lies behind it."""
    behind = start + 2 + 12 * len(entries) + 4
    head, tail = struct.pack("<H", len(entries)), b""
    for tag, kind, value in entries:
        head += struct.pack("<HHI", tag, kind, len(value) // _SIZES[kind])
        if len(value) <= 4:
            head += value.ljust(4, b"\0")
        else:
            head += struct.pack("<I", behind + len(tail))
            tail += value + b"\0" * (len(value) % 2)
    return head + struct.pack("<I", following) + tail
