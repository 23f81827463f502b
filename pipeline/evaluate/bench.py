"""Pictures and one contender: files out of pictures, pictures out of files, figures out of both."""

import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


Measured = dict[Point, Row]
"""What came of one picture."""


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
        out: list[Measured] = [{} for _ in some]
        images = [rgb_of(one) for one in some]
        originals = [Original(image, self.metrics) for image in images]
        coded = model_files(self.codec, self.contender.spec, images)

        def look(original: Original, nbytes: int, shown: np.ndarray) -> Row:
            with self.clock.timed("measure", self.threads):
                return original.compare(shown, nbytes)

        while True:
            with self.clock.timed("device"):
                found = next(coded, None)
            if found is None:
                return out
            layers, nbytes, pictures = found
            rows = self.pool.map(look, originals, nbytes, pictures)
            for result, row in zip(out, rows, strict=True):
                result[Point(self.contender.setting, layers)] = row

    def _by_peer(self, one: Loaded) -> Measured:
        peer, image = peer_of(self.contender), rgb_of(one)
        original = Original(image, self.metrics)
        out = {}
        for setting in peer.settings:
            with self.clock.timed("device", self.threads):
                data = peer.encode(image, setting)
                shown = peer.decode(data)
            with self.clock.timed("measure", self.threads):
                out[Point(setting.name, 1)] = original.compare(shown, len(data))
        return out


def model_files(
    codec: Callable[[str], Codec], spec: Mapping[str, Any], images: list[np.ndarray]
) -> Iterator[tuple[int, list[int], list[np.ndarray]]]:
    """How many layers, and the bytes and pictures of these.

    Raises OptionError where the output folder's model shows streams by another head.
    """
    model = codec(spec["model_id"])
    if model.head_id(spec["decode"]) != spec["head"]:
        raise OptionError(
            "the output folder has another reconstruction head of the model than this release: "
            "give another --output"
        )
    streams = model.encode(images, layers=spec["layers"], **spec["encode"])
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
