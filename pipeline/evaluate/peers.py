"""Other codecs through their libraries: settings, files, and the prefixes of files that have any.

Every setting writes its codec's smallest file, with one thread, without metadata.
"""

import functools
import importlib.metadata
import importlib.util
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, features

_JPEG = (1, 3, 5, 8, 12, 18, 25, 35, 50, 65, 80, 90, 95)
_SCANS = (25, 50, 80, 95)  # qualities of which the file is cut at its scans too
_RATIOS = (480, 300, 200, 120, 80, 50, 30, 20, 12, 8, 6, 4)  # JPEG 2000's, against 24 bpp
# Libraries halve the resolution of colours by default, which is dear at high qualities: these are
# measured without it too, and a curve takes what is cheapest. WebP has no choice.
_JPEG_444, _AVIF_444 = (80, 90, 95, 98), (70, 80, 90, 95)
_WEBP = (0, 5, 10, 20, 30, 45, 60, 75, 85, 92, 97)
_AVIF = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
_JXL = (25, 20, 15, 11, 8, 6, 4, 3, 2, 1, 0.5, 0.2)  # distances: 1 is about where people see it
_EOI = b"\xff\xd9"


@dataclass(frozen=True)
class Prefix:
    """What is decoded of a file, ``data``, and how many bytes of the file it takes."""

    nbytes: int
    data: bytes


@dataclass(frozen=True)
class Setting:
    """One point of a peer, or one file cut at several: a name and arguments for its encoder."""

    name: str
    arguments: Mapping[str, Any] = field(hash=False)
    cut: bool = False


@dataclass(frozen=True)
class Peer:
    """A codec to compare with.

    Attributes:
        name: as given to ``--peers``; ``title`` is what tables say.
        library: which library does it, with its version; empty where it is not installed.
        missing: how to get it, in words.
        lossless: whether its files are exact.
    """

    name: str
    title: str
    library: str
    settings: tuple[Setting, ...]
    encode: Callable[[np.ndarray, Setting], bytes]
    decode: Callable[[bytes], np.ndarray]
    prefixes: Callable[[bytes], list[Prefix]]
    lossless: bool = False
    missing: str = "this Pillow was built without it"

    def files(self, picture: np.ndarray, setting: Setting) -> list[Prefix]:
        """The picture's file, after its prefixes if the setting cuts it."""
        data = self.encode(picture, setting)
        if setting.cut:
            return self.prefixes(data)
        return [Prefix(len(data), data)]


def _save(picture: np.ndarray, setting: Setting) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, **setting.arguments)
    return file.getvalue()


def _open(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _whole(data: bytes) -> list[Prefix]:
    return [Prefix(len(data), data)]


def jpeg_scans(data: bytes) -> list[Prefix]:
    """A progressive JPEG cut behind each of its scans. The whole file is the last.

    A prefix is closed by an end marker for the decoder, which is not counted: decoders show a file
    without it as well. Raises ValueError where ``data`` is no JPEG.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG file")
    ends, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + length
        if marker == 0xDA:  # entropy-coded bytes follow, until a marker other than RST (T.81, B.1)
            at = _next_marker(data, at)
            ends.append(at)
    if not ends:
        raise ValueError("the JPEG file has no scan")
    return [*(Prefix(end, data[:end] + _EOI) for end in ends[:-1]), Prefix(len(data), data)]


def _next_marker(data: bytes, at: int) -> int:
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        follower = data[at + 1]
        if follower != 0 and not 0xD0 <= follower <= 0xD7:
            return at
        at += 2
    return len(data)


def jpeg2000_layers(data: bytes) -> list[Prefix]:
    """A JPEG 2000 codestream of one tile, progression by layer, cut behind each of its layers.

    Each is a codestream of its own: its header says that it has so many layers, and nothing more
    was needed to decode it. The table of packet lengths (PLT), by which the cuts are found, is
    taken out first, and not counted. Raises ValueError for other codestreams.
    """
    header, lengths, packets = _tile(data)
    cod = header.find(b"\xff\x52")
    progression, layers = struct.unpack_from(">BH", header, cod + 5)  # ISO 15444-1, A.6.1
    if progression != 0 or len(lengths) % layers:
        raise ValueError("the codestream is not ordered by layer")
    each = len(lengths) // layers
    out = []
    for count in range(1, layers + 1):
        kept = packets[: sum(lengths[: count * each])]
        main = header[: cod + 6] + struct.pack(">H", count) + header[cod + 8 :]
        tile = struct.pack(">HHHIBB", 0xFF90, 10, 0, 14 + len(kept), 0, 1) + b"\xff\x93" + kept
        cut = main + tile + _EOI
        out.append(Prefix(len(cut), cut))
    return out


def _tile(data: bytes) -> tuple[bytes, list[int], bytes]:
    """Main header, lengths of packets, and the packets of a codestream of one tile."""
    at = data.find(b"\xff\x90")
    if data[:4] != b"\xff\x4f\xff\x51" or at < 0:
        raise ValueError("not a JPEG 2000 codestream")
    header = data[:at]
    _, _, _, psot, part, parts = struct.unpack_from(">HHHIBB", data, at)
    end = at + psot if psot else len(data) - 2
    if part != 0 or parts not in (0, 1) or data[end:] != _EOI:
        raise ValueError("the codestream has more than one tile or tile-part")
    at += 12
    packed = b""
    while data[at : at + 2] != b"\xff\x93":
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == 0xFF58:
            packed += data[at + 5 : at + 2 + length]
        at += 2 + length
    lengths, value = [], 0
    for byte in packed:  # seven bits each, the last byte of a number below 128 (A.7.3)
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            lengths.append(value)
            value = 0
    packets = data[at + 2 : end]
    if not lengths or sum(lengths) != len(packets):
        raise ValueError("the codestream has no table of its packets' lengths")
    return header, lengths, packets


def _jxl_encode(picture: np.ndarray, setting: Setting) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(picture, effort=7, numthreads=1, **setting.arguments))


def _jxl_decode(data: bytes) -> np.ndarray:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def _jxl_library() -> str:
    """Found without importing it, which takes a second."""
    if importlib.util.find_spec("imagecodecs") is None:
        return ""
    return f"imagecodecs {importlib.metadata.version('imagecodecs')}"


def _pillow(version: str | None, library: str) -> str:
    if version is None:
        return ""
    return f"Pillow {importlib.metadata.version('pillow')}, {library} {version}"


def _peer(name: str, title: str, library: str, settings: Sequence[Setting], **more: Any) -> Peer:
    functions = {"encode": _save, "decode": _open, "prefixes": _whole} | more
    return Peer(name, title, library, tuple(settings), **functions)


@functools.cache
def all_peers() -> dict[str, Peer]:
    """Every peer by name, also those whose library is missing here."""
    jpeg = {"format": "JPEG", "optimize": True}
    jpeg2000 = {
        "format": "JPEG2000",
        "mct": 1,  # the colour transform, without which it is far worse
        "no_jp2": True,  # the box around the codestream costs 85 bytes
    }
    lossy2000 = jpeg2000 | {"irreversible": True, "quality_mode": "rates"}
    layered2000 = lossy2000 | {"quality_layers": list(_RATIOS), "progression": "LRCP", "plt": True}
    webp, avif = {"format": "WEBP", "method": 6}, {"format": "AVIF", "max_threads": 1}
    jpg = _pillow(features.version_codec("jpg"), "libjpeg-turbo")
    j2k = _pillow(features.version_codec("jpg_2000"), "OpenJPEG")
    web = _pillow(features.version_module("webp"), "libwebp")
    avi = _pillow(features.version_module("avif"), "libavif")
    png = _pillow(features.version_codec("zlib"), "zlib")
    xl = _jxl_library()
    jxl: dict[str, Any] = {
        "encode": _jxl_encode,
        "decode": _jxl_decode,
        "missing": "pip install -e '.[jxl]' -c infra/constraints.txt installs it",
    }

    def qualities(
        values: tuple[int, ...], arguments: Mapping[str, Any], full: tuple[int, ...] = ()
    ) -> list[Setting]:
        plain = [Setting(f"q{q}", {**arguments, "quality": q}) for q in values]
        colours = {**arguments, "subsampling": "4:4:4"}
        return plain + [Setting(f"q{q} 4:4:4", {**colours, "quality": q}) for q in full]

    progressive = [
        replace(one, cut=one.arguments["quality"] in _SCANS and "subsampling" not in one.arguments)
        for one in qualities(_JPEG, {**jpeg, "progressive": True}, _JPEG_444)
    ]
    ratios = [Setting(f"1:{r}", {**lossy2000, "quality_layers": [r]}) for r in _RATIOS]
    one = [Setting("", {**jpeg2000, "irreversible": False})]
    peers = [
        _peer("jpeg", "JPEG", jpg, qualities(_JPEG, jpeg, _JPEG_444)),
        _peer("jpeg_progressive", "progressive JPEG", jpg, progressive, prefixes=jpeg_scans),
        _peer("jpeg2000", "JPEG 2000", j2k, ratios),
        _peer(
            "jpeg2000_layers",
            "JPEG 2000, one file",
            j2k,
            [Setting("", layered2000, cut=True)],
            prefixes=jpeg2000_layers,
        ),
        _peer("webp", "WebP", web, qualities(_WEBP, webp)),
        _peer("avif", "AVIF", avi, qualities(_AVIF, avif, _AVIF_444)),
        _peer("jxl", "JPEG XL", xl, [Setting(f"d{d:g}", {"distance": d}) for d in _JXL], **jxl),
        _peer(
            "png",
            "PNG",
            png,
            [Setting("", {"format": "PNG", "optimize": True})],
            lossless=True,
        ),
        _peer(
            "webp_lossless",
            "WebP lossless",
            web,
            [Setting("", {**webp, "lossless": True, "quality": 100})],
            lossless=True,
        ),
        _peer("jpeg2000_lossless", "JPEG 2000 lossless", j2k, one, lossless=True),
        _peer(
            "jxl_lossless",
            "JPEG XL lossless",
            xl,
            [Setting("", {"lossless": True})],
            lossless=True,
            **jxl,
        ),
    ]
    return {peer.name: peer for peer in peers}
