"""Pictures and one contender: files out of pictures, pictures out of files, figures out of both."""

import base64
import io
import math
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from codec import Codec
from codec.batches import one_by_one_on_error
from codec.images.metrics import PatchLines, bits_per_pixel

from ..running.options import OptionError
from ..running.stages import StageClock
from .contenders import Contender
from .measuring import SET_LINES, SET_PATCHES, Learned, Likeness, Original, Point
from .peers import Peer, all_peers

CROP = 192  # pixels a side of what is shown in the report
NEAR = math.log(1.6)  # how far a rate may be from the one at which pictures are shown


@dataclass(frozen=True, eq=False)
class Loaded:
    """A sample's picture on its way, or why there is none."""

    index: int
    key: str
    rgb: np.ndarray | None = None
    alpha: bool = False
    problem: str = ""
    filtered: str = ""


@dataclass(eq=False)
class Measured:
    """What came of one picture: by point its figures and patches, and crops to show."""

    points: dict[Point, Likeness] = field(default_factory=dict)
    lines: dict[Point, PatchLines] = field(default_factory=dict)
    shown: dict[float, dict[str, Any]] = field(default_factory=dict)
    original: PatchLines | None = None
    encode_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What measures a contender on pictures that are in memory.

    Attributes:
        codec: gives a model by its id.
        shown: positions of samples that are shown in the report, at rates near ``shown_bpp``.
    """

    contender: Contender
    codec: Callable[[str], Codec]
    clock: StageClock
    pool: ThreadPoolExecutor
    threads: int
    shown: tuple[int, ...] = ()
    shown_bpp: tuple[float, ...] = ()
    learned: Learned | None = None

    def measure(self, pictures: list[Loaded]) -> list[Measured | Exception]:
        """What came of each picture. One that fails does not take the others with it."""
        if not pictures:
            return []
        if self.contender.is_model:
            return one_by_one_on_error(self._by_model, pictures)

        def single(one: Loaded) -> Measured | Exception:
            return one_by_one_on_error(lambda some: [self._by_peer(some[0])], [one])[0]

        return list(self.pool.map(single, pictures))

    def _by_model(self, some: list[Loaded]) -> list[Measured]:
        spec, setting = self.contender.spec, self.contender.setting
        codec = self.codec(spec["model_id"])
        out = [Measured() for _ in some]
        images = [rgb_of(one) for one in some]
        originals = list(self.pool.map(lambda image: Original(image, self.learned), images))
        begun = time.perf_counter()
        with self.clock.timed("device"):
            streams = codec.encode(images, layers=spec["layers"], **spec["encode"])
        encode_s = time.perf_counter() - begun
        shares = [image.size / sum(x.size for x in images) for image in images]
        if spec["prefixes"]:
            decoded = codec.decode_progressively(streams, **spec["decode"])
        else:
            decoded = (codec.decode(streams, **spec["decode"]) for _ in range(1))  # when asked
        decode_s = 0.0
        layers = 0
        while True:
            begun = time.perf_counter()
            with self.clock.timed("device"):
                pictures = next(decoded, None)
            decode_s += time.perf_counter() - begun
            if pictures is None:
                break
            layers = layers + 1 if spec["prefixes"] else max(s.num_layers for s in streams)

            def look(position: int, layers: int = layers, pictures: Any = pictures) -> None:
                nbytes = streams[position].truncate(layers).nbytes
                with self.clock.timed("measure", self.threads):
                    self._take(
                        some[position],
                        out[position],
                        originals[position],
                        Point(setting, layers),
                        pictures[position],
                        nbytes,
                    )

            list(self.pool.map(look, range(len(some))))
        for result, share in zip(out, shares, strict=True):
            result.encode_s, result.decode_s = share * encode_s, share * decode_s
        return out

    def _by_peer(self, one: Loaded) -> Measured:
        """The seconds of a peer are means over its settings."""
        peer = _peer(self.contender)
        out, image = Measured(), rgb_of(one)
        original = Original(image, self.learned)
        for setting in peer.settings:
            begun = time.perf_counter()
            with self.clock.timed("device", self.threads):
                files = peer.files(image, setting)
            out.encode_s += (time.perf_counter() - begun) / len(peer.settings)
            for prefix, file in enumerate(files, start=1):
                begun = time.perf_counter()
                with self.clock.timed("device", self.threads):
                    shown = peer.decode(file.data)
                if prefix == len(files):
                    out.decode_s += (time.perf_counter() - begun) / len(peer.settings)
                with self.clock.timed("measure", self.threads):
                    point = Point(setting.name, prefix)
                    self._take(one, out, original, point, shown, file.nbytes)
        return out

    def _take(
        self,
        one: Loaded,
        out: Measured,
        original: Original,
        point: Point,
        shown: np.ndarray,
        nbytes: int,
    ) -> None:
        likeness, lines = original.compare(shown, nbytes)
        out.points[point], out.lines[point] = likeness, lines.first(SET_PATCHES, SET_LINES)
        out.original = original.lines
        if one.index not in self.shown:
            return
        bpp = bits_per_pixel(nbytes, shown.shape[1], shown.shape[0])
        for target in self.shown_bpp:
            distance = abs(math.log(bpp / target))
            best = out.shown.get(target, {"distance": NEAR})
            if distance < best["distance"]:
                out.shown[target] = {
                    "distance": distance,
                    "target": target,
                    "bpp": bpp,
                    "point": point.key,
                    "picture": _crop(shown),
                    "original": _crop(original.picture),
                }


def _peer(contender: Contender) -> Peer:
    """Raises OptionError where this worker would write other files than the driver."""
    peer = all_peers()[contender.spec["peer"]]
    if peer.library != contender.spec["library"]:
        raise OptionError(
            f"{platform.node()} has {peer.library or 'no library'} for {peer.title}, the driver "
            f"{contender.spec['library']}: install the same"
        )
    return peer


def rgb_of(one: Loaded) -> np.ndarray:
    assert one.rgb is not None
    return one.rgb


def _crop(picture: np.ndarray) -> str:
    """The middle of a picture as an exact WebP."""
    height, width = picture.shape[:2]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    out = io.BytesIO()
    piece = Image.fromarray(picture[top : top + CROP, left : left + CROP])
    piece.save(out, "WEBP", lossless=True, quality=80, method=4)
    return base64.b64encode(out.getvalue()).decode()
