"""ICC profiles made by hand (ICC.1:2001-04), so that tests need no files."""

import struct

# Primaries of sRGB adapted to D50, and the white of the profile connection space.
RED, GREEN, BLUE = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
WHITE = (0.9642, 1.0, 0.8249)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def _desc(text: str) -> bytes:
    data = text.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(data)) + data + bytes(12 + 67)


def _profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _desc("hand made"), b"cprt": b"text\0\0\0\0CC0\0", b"wtpt": _xyz(WHITE)} | tags
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"\0" * 4, 0x02400000, kind, space, pcs)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += b"".join(map(_fixed, WHITE))
    return header + bytes(128 - len(header)) + table + body


def rgb(gamma: float, red=RED, green=GREEN, blue=BLUE) -> bytes:
    """A matrix profile."""
    curves = {name: _gamma(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    colorants = {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    return _profile(b"RGB ", b"mntr", b"XYZ ", colorants | curves)


def grey(gamma: float) -> bytes:
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk(corners: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """A lookup profile: 8-bit Lab at the 16 corners of the cube, mid-grey where not given."""
    ramp = bytes(range(256))
    grid = b""
    for number in range(16):
        corner = (number >> 3 & 1, number >> 2 & 1, number >> 1 & 1, number & 1)
        grid += bytes(corners.get(corner, (128, 128, 128)))
    identity = b"".join(map(_fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": lut})
