"""Pictures and one contender: files out of pictures, pictures out of files, figures out of both."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codec import Codec
from codec.batches import one_by_one_on_error

from ..running.options import OptionError
from ..running.stages import StageClock
from .contenders import Contender
from .measuring import Original, Row
from .peers import Peer, all_peers


@dataclass(frozen=True)
class Point:
    """Which file: a contender's setting, and how many of its layers."""

    setting: str
    prefix: int

    @property
    def key(self) -> str:
        return f"{self.setting}|{self.prefix}"

    @classmethod
    def of_key(cls, key: str) -> "Point":
        setting, _, prefix = key.rpartition("|")
        return cls(setting, int(prefix))


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
    """What came of one picture: figures by point, and seconds."""

    points: dict[Point, Row] = field(default_factory=dict)
    encode_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What measures a contender on pictures that are in memory.

    ``codec`` gives a model by its id; ``metrics`` are the names of what is measured.
    """

    contender: Contender
    codec: Callable[[str], Codec]
    clock: StageClock
    pool: ThreadPoolExecutor
    threads: int
    metrics: tuple[str, ...]

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
        out = [Measured() for _ in some]
        images = [rgb_of(one) for one in some]
        originals = [Original(image, self.metrics) for image in images]
        coded = model_files(self.codec, self.contender.spec, images)
        seconds: list[float] = []  # of encoding, then of decoding after each of the prefixes
        while True:
            begun = time.perf_counter()
            with self.clock.timed("device"):
                found = next(coded, None)
            seconds.append(time.perf_counter() - begun)
            if found is None:
                break
            layers, nbytes, pictures = found

            point = Point(self.contender.setting, layers)

            def look(original: Original, nbytes: int, shown: np.ndarray) -> Row:
                with self.clock.timed("measure", self.threads):
                    return original.compare(shown, nbytes)

            if layers:
                rows = self.pool.map(look, originals, nbytes, pictures)
                for result, row in zip(out, rows, strict=True):
                    result.points[point] = row
        for result, image in zip(out, images, strict=True):
            share = image.size / sum(each.size for each in images)
            result.encode_s, result.decode_s = share * seconds[0], share * sum(seconds[1:])
        return out

    def _by_peer(self, one: Loaded) -> Measured:
        """The seconds of a peer are means over its settings."""
        peer = peer_of(self.contender)
        out, image = Measured(), rgb_of(one)
        original = Original(image, self.metrics)
        for setting in peer.settings:
            begun = time.perf_counter()
            with self.clock.timed("device", self.threads):
                data = peer.encode(image, setting)
            encoded = time.perf_counter()
            with self.clock.timed("device", self.threads):
                shown = peer.decode(data)
            out.encode_s += (encoded - begun) / len(peer.settings)
            out.decode_s += (time.perf_counter() - encoded) / len(peer.settings)
            with self.clock.timed("measure", self.threads):
                out.points[Point(setting.name, 1)] = original.compare(shown, len(data))
        return out


def model_files(
    codec: Callable[[str], Codec], spec: Mapping[str, Any], images: list[np.ndarray]
) -> Iterator[tuple[int, list[int], list[np.ndarray]]]:
    """How many layers, and the bytes and pictures of these: first of none, once all are encoded."""
    model = codec(spec["model_id"])
    streams = model.encode(images, layers=spec["layers"], **spec["encode"])
    yield 0, [], []
    if not spec["prefixes"]:
        last = max(stream.num_layers for stream in streams)
        yield last, [s.nbytes for s in streams], model.decode(streams, **spec["decode"])
        return
    each = model.decode_progressively(streams, **spec["decode"])
    for layers, pictures in enumerate(each, start=1):
        yield layers, [stream.truncate(layers).nbytes for stream in streams], pictures


def peer_of(contender: Contender) -> Peer:
    """Raises OptionError where this worker would write other files than the driver."""
    peer = all_peers()[contender.spec["peer"]]
    if peer.library != contender.spec["library"]:
        raise OptionError(
            f"{platform.node()} has {peer.library or 'nothing'} for {peer.title}, the driver "
            f"{contender.spec['library']}: install the same"
        )
    return peer


def rgb_of(one: Loaded) -> np.ndarray:
    assert one.rgb is not None
    return one.rgb
