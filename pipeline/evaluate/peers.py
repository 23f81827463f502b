"""The other codecs of an evaluation: their settings, and how they encode and decode.

Every setting asks for the codec's smallest file, on one thread, without metadata.
"""

import bisect
import functools
import importlib.metadata
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from codec.images.perception import ppm

_JPEG, _JPEG_444 = (8, 18, 35, 60, 82), (75, 88, 93, 96)
_WEBP = (1, 12, 35, 60, 80, 91, 97)
_AVIF, _AVIF_444 = (0, 12, 28, 45), (20, 40, 58, 75, 88, 94)
_AVIF_TUNED = (0, 15, 35, 55, 75, 90)
_JXL = (20, 12, 7, 4, 2.3, 1.3, 0.8, 0.5)  # distances
_RATIOS = (250, 100, 45, 22, 11, 6)  # of JPEG 2000, relative to 24 bits per pixel
# JPEG and AVIF halve the resolution of colours by default, which is costly at high qualities. So
# they are also measured without that, and a curve takes the cheapest points. WebP has no choice.
FULL = {"subsampling": "4:4:4"}


@dataclass(frozen=True)
class Setting:
    """One point of a peer: a name, and arguments for its encoder."""

    name: str
    arguments: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Peer:
    """A codec to compare with.

    Attributes:
        name: for ``--peers``; ``title`` is its name in tables.
        library: the encoder, its version and its effort; empty if it is not installed.
        settings: those that are measured.
        encode, decode: a picture, ``(H, W, 3) uint8``, to the bytes of a file and back.
        scale: many settings, from the smallest file to the largest, in which ``near`` searches;
            empty for a lossless codec.
        missing: says how to install it.
    """

    name: str
    title: str
    library: str
    settings: tuple[Setting, ...]
    encode: Callable[[np.ndarray, Setting], bytes]
    decode: Callable[[bytes], np.ndarray]
    scale: tuple[Setting, ...] = ()
    missing: str = "this Pillow was built without it"

    @property
    def lossless(self) -> bool:
        return not self.scale

    def near(self, picture: np.ndarray, nbytes: int) -> bytes:
        """The picture's file whose size has the ratio nearest to 1 to ``nbytes``."""
        file = functools.cache(lambda number: self.encode(picture, self.scale[number]))
        above = bisect.bisect_left(range(len(self.scale)), nbytes, key=lambda n: len(file(n)))
        around = [n for n in (above - 1, above) if 0 <= n < len(self.scale)]
        return min(map(file, around), key=lambda data: abs(math.log(len(data) / nbytes)))


def _save(picture: np.ndarray, setting: Setting) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, **setting.arguments)
    return file.getvalue()


def _open(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _jxl_encode(picture: np.ndarray, setting: Setting) -> bytes:
    options = ["-e", "7", "--num_threads=0", "-d", f"{setting.arguments['distance']:g}"]
    return _through("cjxl", ppm(picture), "in.ppm", "out.jxl", options)


def _jxl_decode(data: bytes) -> np.ndarray:
    return _open(_through("djxl", data, "in.jxl", "out.ppm", ["--num_threads=0"]))


def _through(program: str, data: bytes, source: str, result: str, options: Sequence[str]) -> bytes:
    """Convert a file with a program of libjxl. Raises RuntimeError with the program's message."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, source), Path(name, result)]
        paths[0].write_bytes(data)
        done = subprocess.run([program, *map(str, paths), *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()[-500:]}")
        return paths[1].read_bytes()


def _jxl_library() -> str:
    if not (shutil.which("cjxl") and shutil.which("djxl")):
        return ""
    said = subprocess.run(["cjxl", "--version"], capture_output=True, text=True).stdout
    return f"cjxl {said.split()[1].lstrip('v')}, effort 7"


def _pillow(version: str | None, library: str, effort: str = "") -> str:
    if version is None:
        return ""
    words = f"{library} {version} in Pillow {importlib.metadata.version('pillow')}"
    return f"{words}, {effort}" if effort else words


def _avif_library(tune: str) -> str:
    library = _pillow(features.version_module("avif"), "libavif", f"speed 6, tune {tune}")
    if not library:
        return ""
    from PIL import _avif

    encoders = [word for word in _avif.codec_versions().split(", ") if "[enc" in word]
    return f"{', '.join(encoders).replace(' [enc]:', ' ')}, {library}"


def _qualities(values: Sequence[int], arguments: Mapping[str, Any]) -> tuple[Setting, ...]:
    colours = f" {arguments['subsampling']}" if "subsampling" in arguments else ""
    return tuple(Setting(f"q{q}{colours}", {**arguments, "quality": q}) for q in values)


@functools.cache
def all_peers() -> dict[str, Peer]:
    """Every peer by name, including those that are not installed."""
    jpeg = {"format": "JPEG", "optimize": True, "progressive": True}
    webp = {"format": "WEBP", "method": 6}
    # mct is the colour transform, which makes it far better; without no_jp2, the box around the
    # codestream costs 85 bytes
    jpeg2000: dict[str, Any] = {"format": "JPEG2000", "mct": 1, "no_jp2": True}
    jpg = _pillow(features.version_codec("jpg"), "libjpeg-turbo", "progressive, optimised")
    j2k = _pillow(features.version_codec("jpg_2000"), "OpenJPEG")
    web = _pillow(features.version_module("webp"), "libwebp", "method 6")
    png = _pillow(features.version_codec("zlib"), "zlib", "optimised")
    programs = "its programs cjxl and djxl are not installed (Debian: apt install libjxl-tools)"

    def pillow(
        name: str, title: str, library: str, settings: Sequence[Setting], scale: Any = ()
    ) -> Peer:
        return Peer(name, title, library, tuple(settings), _save, _open, tuple(scale))

    def ratio(value: float) -> Setting:
        lossy = {"irreversible": True, "quality_mode": "rates", "quality_layers": [value]}
        return Setting(f"1:{value:g}", {**jpeg2000, **lossy})

    def distance(value: float) -> Setting:
        return Setting(f"d{value:g}", {"distance": value})

    def jxl(name: str, title: str, settings: Sequence[float], scale: Sequence[Setting]) -> Peer:
        library, points = _jxl_library(), tuple(map(distance, settings))
        return Peer(name, title, library, points, _jxl_encode, _jxl_decode, tuple(scale), programs)

    def avif(name: str, title: str, tune: str) -> Peer:
        plain = {"format": "AVIF", "speed": 6, "max_threads": 1, "advanced": {"tune": tune}}
        colours = plain | FULL
        if tune == "iq":  # the default
            settings = (*_qualities(_AVIF, plain), *_qualities(_AVIF_444, colours))
        else:
            settings = _qualities(_AVIF_TUNED, colours)
        return pillow(name, title, _avif_library(tune), settings, _qualities(range(100), colours))

    ratios = [ratio(round(float(value), 2)) for value in np.geomspace(480, 2, 200)]
    distances = [distance(round(float(value), 3)) for value in np.geomspace(25, 0.1, 150)]
    peers = [
        avif("avif", "AVIF", "iq"),
        avif("avif_ssimulacra2", "AVIF tuned", "ssimulacra2"),
        jxl("jxl", "JPEG XL", _JXL, distances),
        pillow("webp", "WebP", web, _qualities(_WEBP, webp), _qualities(range(101), webp)),
        pillow("jpeg2000", "JPEG 2000", j2k, [ratio(value) for value in _RATIOS], ratios),
        pillow(
            "jpeg",
            "JPEG",
            jpg,
            (*_qualities(_JPEG, jpeg), *_qualities(_JPEG_444, jpeg | FULL)),
            _qualities(range(1, 97), jpeg),
        ),
        jxl("jxl_lossless", "JPEG XL lossless", [0], ()),
        pillow(
            "webp_lossless",
            "WebP lossless",
            web,
            [Setting("", {**webp, "lossless": True, "quality": 100})],
        ),
        pillow(
            "jpeg2000_lossless",
            "JPEG 2000 lossless",
            j2k,
            [Setting("", {**jpeg2000, "irreversible": False})],
        ),
        pillow("png", "PNG", png, [Setting("", {"format": "PNG", "optimize": True})]),
    ]
    return {peer.name: peer for peer in peers}
