"""Measures one contender: encodes pictures, decodes them, compares."""

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
    """One file of a contender: its setting, and the number of its first layers."""

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
    """A sample's picture, ``(H, W, 3) uint8``, or why there is none."""

    index: int
    key: str
    rgb: np.ndarray | None = None
    alpha: bool = False
    problem: str = ""
    filtered: str = ""


Measured = dict[Point, Row]
"""The figures of one picture."""


@dataclass(frozen=True)
class Bench:
    """Measures a contender on pictures in memory.

    ``codec`` returns a model by its id; ``metrics`` are the names of the metrics.
    """

    contender: Contender
    codec: Callable[[str], Codec]
    clock: StageClock
    pool: ThreadPoolExecutor
    threads: int
    metrics: tuple[str, ...]

    def measure(self, pictures: list[Loaded]) -> list[Measured | Exception]:
        """The figures of each picture, or its error. An error concerns only its picture."""
        if not pictures:
            return []
        if self.contender.is_model:
            return one_by_one_on_error(self._by_model, pictures)

        def single(one: Loaded) -> Measured | Exception:
            return one_by_one_on_error(lambda ones: [self._by_peer(ones[0])], [one])[0]

        return list(self.pool.map(single, pictures))

    def _by_model(self, loaded: list[Loaded]) -> list[Measured]:
        out: list[Measured] = [{} for _ in loaded]
        images = [rgb_of(one) for one in loaded]
        originals = [Original(image, self.metrics) for image in images]
        coded = model_files(self.codec, self.contender.spec, images)

        def compare(original: Original, nbytes: int, shown: np.ndarray) -> Row:
            with self.clock.timed("measure", self.threads):
                return original.compare(shown, nbytes)

        while True:
            with self.clock.timed("device"):
                found = next(coded, None)
            if found is None:
                return out
            layers, nbytes, pictures = found
            rows = self.pool.map(compare, originals, nbytes, pictures)
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
    """For each number of layers: that number, and the bytes and the pictures of the streams.

    Raises OptionError if the model in the output folder has another reconstruction head.
    """
    model = codec(spec["model_id"])
    if model.head_id(spec["decode"]) != spec["head"]:
        raise OptionError(
            "the model in the output folder has another reconstruction head than the one of this "
            "release: choose another --output"
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
    """The contender's peer. Raises OptionError if this worker has another version of it."""
    peer = all_peers()[contender.spec["peer"]]
    if peer.library != contender.spec["library"]:
        raise OptionError(
            f"{platform.node()} has {peer.library or 'nothing'} for {peer.title}, the driver has "
            f"{contender.spec['library']}: install the same version"
        )
    return peer


def rgb_of(one: Loaded) -> np.ndarray:
    assert one.rgb is not None
    return one.rgb
