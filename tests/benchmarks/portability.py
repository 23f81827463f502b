#!/usr/bin/env python
"""Whether streams decode wherever a model's numbers come out a little different.

    python tests/benchmarks/portability.py --model uqdm cdc-small runs/universal \\
        --data px64-*.tar --pictures 1000 --part settings noise --out docs/results/portability.json
    python tests/benchmarks/portability.py --model runs/universal --data px64-*.tar \\
        --part beyond --trials 10000 --out docs/results/portability.json
    python tests/benchmarks/portability.py --model runs/universal --data kodak.tar \\
        --part overhead --pictures 2 --out docs/results/portability.json

``settings``: pictures are encoded in one way and decoded in 48: in batches of 1, 7 and 64, on one
thread and two, with mkldnn and without, in both memory layouts, in float32 and float64; with mkldnn
in NHWC and float32 in what the processor is faster at, 8-bit integers perhaps. The first
``--fully`` pictures are decoded in all of them; the others, with ``--ways 5``, in the five that
differ most from the encoder's and from one another.
``noise``: decoded with every parameter of a universal model's prior off by up to its guard. A model
whose tables are chosen by integers has no such number: its sums of products are added up in
another order, in pieces, of factors cut to bfloat16, which is what devices may do, and all that
is not integers (transforms, means) is off by up to 1e-5 of itself.
``beyond``: noise of several guards, in float32 and in float64: an error, or the very picture.
``overhead``: bytes and processor time that protection takes. Calibrate a universal model first.

Results are added to ``--out``, one entry for each part and model, after every 64 pictures; what is
there already, of the same model and number of pictures, is not measured again. A lossy model
decodes exactly if its symbols do (the checks say so); how far its pixels are off is counted.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave a shared core alone

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec import CorruptStreamError, EncodedImage, load_codec
from codec.layered import LayeredCodec
from codec.numerics.precision import without_bytes, without_mkldnn
from codec.stream import bitstream, protection
from codec.uqdm.paper.calibration import squares
from codec.uqdm.paper.scheme import UniversalScheme
from codec.uqdm.paper.windows import Execution
from tests.benchmarks import pictures

CHUNK = 64
FLOAT_NOISE = 1e-5
BEYOND = (2.0, 8.0, 32.0, 128.0)  # guards
BEYOND_SIDE = 16


@dataclass(frozen=True)
class Setting:
    """One way to decode."""

    batch: int = 64
    threads: int = 1
    mkldnn: bool = True
    channels_last: bool = False
    double: bool = False

    def __str__(self) -> str:
        return (
            f"batch {self.batch}, threads {self.threads}, {'' if self.mkldnn else 'no '}mkldnn, "
            f"{'NHWC' if self.channels_last else 'NCHW'}, float{64 if self.double else 32}"
        )


SETTINGS = [
    Setting(*values)
    for values in product((1, 7, 64), (1, 2), (True, False), (False, True), (False, True))
]


class Products(TorchFunctionMode):
    """Lets products of float32 tensors come out as another device might compute them.

    Those of 8-bit integers are none: see ``without_bytes``.

    Args:
        change: given the function and its arguments; None leaves a product as it is.
    """

    def __init__(self, change: Callable[..., Tensor | None]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.mm:
            rows, matrix = args
            changed = self.change(F.linear, rows, matrix.t())
            if changed is not None:
                return changed
        if func in (F.linear, F.conv2d, F.conv_transpose2d) and args[0].dtype == torch.float32:
            changed = self.change(func, *args, **kwargs)
            if changed is not None:
                return changed
        return func(*args, **kwargs)


def in_double(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    wide = [a.double() if isinstance(a, Tensor) else a for a in args]
    x, weight, *rest = wide
    alone = kwargs.keys() == {"padding", "groups"} and kwargs["groups"] == x.shape[1] == len(weight)
    if func is F.conv2d and alone and not rest:
        return _each_channel(x, weight, kwargs["padding"]).float()
    return func(*wide, **kwargs).float()


def _each_channel(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """A convolution of each channel alone, for which torch takes six times as long in float64."""
    x = F.pad(x, [padding] * 4)
    kernel = weight.shape[2:]
    rows, columns = x.shape[2] - kernel[0] + 1, x.shape[3] - kernel[1] + 1
    out = x.new_zeros(*x.shape[:2], rows, columns)
    for i, j in product(*map(range, kernel)):
        out.addcmul_(x[:, :, i : i + rows, j : j + columns], weight[:, 0, i, j, None, None])
    return out


def in_layout(memory_format: torch.memory_format) -> Callable[..., Tensor | None]:
    """What computes convolutions of pictures that lie in memory like this."""

    def change(func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        if func is F.linear:
            return None
        return func(x.contiguous(memory_format=memory_format), *args, **kwargs)

    return change


def other_device(rng: np.random.Generator) -> Callable[..., Tensor]:
    """Sums of integers in another order and of cut factors; noise in everything else."""

    def change(
        func: Callable[..., Tensor], x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        integers = bool((x == x.round()).all()) and bool((weight == weight.round()).all())
        if not integers:
            usual = func(x, weight, *args, **kwargs)
            off = rng.uniform(-FLOAT_NOISE, FLOAT_NOISE, tuple(usual.shape)).astype(np.float32)
            return usual * (1 + torch.from_numpy(off))
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
        if func is not F.linear:
            return func(x, weight, *args, **kwargs)
        order = torch.from_numpy(rng.permutation(x.shape[-1]))
        out: Any = 0
        for piece in order.split(int(rng.integers(8, 65))):
            out = out + func(x[..., piece], weight[:, piece])
        return out

    return change


@contextmanager
def way(codec: LayeredCodec, setting: Setting) -> Iterator[None]:
    """Computes in this way inside."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        if isinstance(codec.scheme, UniversalScheme):
            usual = codec.scheme.execution
            codec.scheme.execution = Execution(
                torch.float64 if setting.double else torch.float32,
                setting.batch,
                setting.threads,
                setting.mkldnn,
                setting.channels_last,
            )
            stack.callback(setattr, codec.scheme, "execution", usual)
        else:
            if not setting.mkldnn:
                stack.enter_context(without_mkldnn())
            if setting.double:
                stack.enter_context(Products(in_double))
            last = setting.channels_last
            if setting.double or not last:
                stack.enter_context(without_bytes())
            layout = torch.channels_last if last else torch.contiguous_format
            stack.enter_context(Products(in_layout(layout)))
        torch.set_num_threads(setting.threads)
        stack.callback(torch.set_num_threads, threads)
        yield


def decode(
    codec: LayeredCodec, streams: Sequence[EncodedImage], batch: int
) -> list[np.ndarray | None]:
    """Pictures, in batches; None for those that do not decode."""
    out: list[np.ndarray | None] = []
    for at in range(0, len(streams), batch):
        some = streams[at : at + batch]
        try:
            out += codec.decode(some)
        except CorruptStreamError:
            for stream in some:
                try:
                    out += codec.decode([stream])
                except CorruptStreamError:
                    out.append(None)
    return out


@contextmanager
def noisy_prior(scheme: UniversalScheme, size: float, seed: int) -> Iterator[None]:
    """Lets every mean and scale be off by up to ``size`` guards, in float64 as well."""
    rng = np.random.default_rng(seed)
    prior, guards = scheme.prior, scheme.guards
    assert guards is not None

    def noisy(picture: Any, layer: int) -> tuple[np.ndarray, np.ndarray]:
        mean, scale = prior(picture, layer)
        off = size * rng.uniform(-1, 1, (2, len(mean)))
        return mean + guards[layer].mean * off[0], scale * (1 + guards[layer].scale * off[1])

    scheme.prior = noisy  # type: ignore[method-assign]
    try:
        yield
    finally:
        scheme.prior = prior  # type: ignore[method-assign]


class Counts:
    """Exact decodes, errors, wrong pictures; how far values of a lossy model's pixels are off.

    Args:
        known: a result to go on from.
    """

    def __init__(self, lossless: bool, known: Mapping[str, Any] | None = None) -> None:
        known = known or {}
        self.lossless = lossless
        self.outcomes = Counter({k: known.get(k, 0) for k in ("exact", "error", "wrong")})
        self.levels_off = known.get("levels_off", 0)
        self.off, self.values = known.get("values_off", 0), known.get("values", 0)

    def add(self, wanted: Iterable[np.ndarray], found: Iterable[np.ndarray | None]) -> None:
        for picture, decoded in zip(wanted, found, strict=True):
            if decoded is None:
                self.outcomes["error"] += 1
                continue
            off = np.abs(picture.astype(np.int16) - decoded)
            self.levels_off = max(self.levels_off, int(off.max()))
            self.off += int((off > 0).sum())
            self.values += off.size
            self.outcomes["exact" if not self.lossless or not off.any() else "wrong"] += 1

    def result(self) -> dict[str, Any]:
        if self.lossless:
            return dict(self.outcomes)
        off = {"levels_off": self.levels_off, "values_off": self.off, "values": self.values}
        return {**self.outcomes, **off}


class Streams:
    """Pictures in chunks, each encoded once, and what their streams must decode to."""

    def __init__(self, codec: LayeredCodec, images: Sequence[np.ndarray]) -> None:
        self.chunks = [images[at : at + CHUNK] for at in range(0, len(images), CHUNK)]
        self._codec = codec
        self._known: dict[int, tuple[list[EncodedImage], Sequence[np.ndarray]]] = {}

    def __getitem__(self, chunk: int) -> tuple[list[EncodedImage], Sequence[np.ndarray]]:
        if chunk not in self._known:
            some = self.chunks[chunk]
            streams = self._codec.encode(some)
            self._known[chunk] = (
                streams,
                some if self._codec.lossless else self._codec.decode(streams),
            )
        return self._known[chunk]


def differing() -> list[Setting]:
    """All settings, each as different as can be from those before it and the encoder's."""
    chosen, left = [Setting()], list(SETTINGS)

    def difference(a: Setting, b: Setting) -> int:
        return sum(x != y for x, y in zip(astuple(a), astuple(b), strict=True))

    while left:
        best = max(left, key=lambda s: sorted(difference(s, other) for other in chosen))
        chosen.append(best)
        left.remove(best)
    return chosen[1:]


def measure_settings(
    codec: LayeredCodec,
    images: Sequence[np.ndarray],
    note: Callable[[dict[str, Any]], None],
    known: Mapping[str, Any] | None = None,
    fully: int = 128,
    ways: int = len(SETTINGS),
) -> None:
    """The first ``fully`` pictures under all settings, the others under the first ``ways``."""
    counts, streams = Counts(codec.lossless, known), Streams(codec, images)
    settings = differing()
    done = Counter((known or {}).get("by_setting", {}))
    full = min(-(-fully // CHUNK), len(streams.chunks))
    work = list(product(range(full), settings))
    work += [(i, s) for s in settings[:ways] for i in range(full, len(streams.chunks))]
    for chunk, setting in work:
        if done[str(setting)] > chunk * CHUNK:
            continue
        some, wanted = streams[chunk]
        with way(codec, setting):
            counts.add(wanted, decode(codec, some, setting.batch))
        done[str(setting)] += len(some)
        by_setting = {str(s): done[str(s)] for s in settings}
        under_all = min(by_setting.values())
        found = {"pictures": len(images), "settings": len(settings), "under_all": under_all}
        note({**found, **counts.result(), "by_setting": by_setting})


def measure_noise(
    codec: LayeredCodec,
    images: Sequence[np.ndarray],
    note: Callable[[dict[str, Any]], None],
    known: Mapping[str, Any] | None = None,
) -> None:
    counts, streams = Counts(codec.lossless, known), Streams(codec, images)
    done = (known or {}).get("done", 0)
    for chunk in range(-(-done // CHUNK), len(streams.chunks)):
        some, wanted = streams[chunk]
        if isinstance(codec.scheme, UniversalScheme):
            with noisy_prior(codec.scheme, 1.0, chunk * CHUNK):
                found = decode(codec, some, CHUNK)
        else:
            with without_bytes(), Products(other_device(np.random.default_rng(chunk * CHUNK))):
                found = decode(codec, some, CHUNK)
        counts.add(wanted, found)
        done += len(some)
        note({"pictures": len(images), "done": done, **counts.result()})


@contextmanager
def remembered(scheme: UniversalScheme) -> Iterator[None]:
    """Evaluates the network once for each latent."""
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    predict = scheme.predict

    def look_up(state: Any, layer: int, execution: Execution | None = None) -> None:
        for picture in state:
            key = picture.latent.tobytes() + bytes([layer])
            if key not in known:
                alone = replace(picture, prediction=None)
                predict([alone], layer)
                assert alone.prediction is not None
                known[key] = alone.prediction
            picture.prediction = known[key]

    scheme.predict = look_up  # type: ignore[method-assign]
    try:
        yield
    finally:
        scheme.predict = predict  # type: ignore[method-assign]


def measure_beyond(
    codec: LayeredCodec,
    images: Sequence[np.ndarray],
    trials: int,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """Small pictures: what noise does to the network's numbers it does to theirs as well."""
    assert isinstance(codec.scheme, UniversalScheme)
    small = [np.ascontiguousarray(x[:BEYOND_SIDE, :BEYOND_SIDE]) for x in images[:CHUNK]]
    counts = {size: Counts(True) for size in BEYOND}
    with remembered(codec.scheme):
        streams = codec.encode(small)
        for trial in range(trials):
            size, i = BEYOND[trial % len(BEYOND)], trial // len(BEYOND) % len(small)
            with noisy_prior(codec.scheme, size, trial):
                counts[size].add([small[i]], decode(codec, [streams[i]], 1))
            if trial % 500 == 499 or trial == trials - 1:
                by_size = {f"{size:g} guards": c.result() for size, c in counts.items()}
                note({"trials": trial + 1, "side": BEYOND_SIDE, **by_size})


@contextmanager
def timed(kind: type) -> Iterator[list[float]]:
    """Seconds of processor time that each call of this class's objects takes."""
    seconds: list[float] = []
    call = kind.__call__

    def timing(self: Any, rounded: protection.Rounded) -> np.ndarray:
        begin = time.thread_time()
        try:
            return call(self, rounded)
        finally:
            seconds.append(time.thread_time() - begin)

    kind.__call__ = timing  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        kind.__call__ = call  # type: ignore[method-assign]


def measure_overhead(
    codec: LayeredCodec, images: Sequence[np.ndarray], note: Callable[[dict[str, Any]], None]
) -> None:
    """Bytes by layer and in all, and processor time of protection alone and of the whole."""
    layers, protected = (np.zeros((len(images), codec.num_layers)) for _ in range(2))
    total = np.zeros(len(images))
    spent = np.zeros((2, 2))
    for done, image in enumerate(images, start=1):
        begin = time.process_time()
        with timed(protection.Protector) as seconds:
            (stream,) = codec.encode([image])
        spent[0] += sum(seconds), time.process_time() - begin
        begin = time.process_time()
        with timed(protection.Restorer) as seconds:
            (decoded,) = codec.decode([stream])
        spent[1] += sum(seconds), time.process_time() - begin
        assert (decoded == image).all()
        total[done - 1] = stream.nbytes
        for number, data in enumerate(stream.layers):
            layers[done - 1, number] = len(data)
            layer = bitstream.unpack_layer(codec.model_id, stream.header, number, data)
            protected[done - 1, number] = len(layer.protection)
        some = slice(done)
        share = 100 * protected[some].sum(0) / layers[some].sum(0)
        most = (100 * protected[some] / layers[some]).max(0)
        of_streams = 100 * protected[some].sum(1) / total[some]
        note(
            {
                "pictures": done,
                "size": f"{image.shape[1]}x{image.shape[0]}",
                "percent_of_layers": share.round(3).tolist(),
                "most_of_layers": most.round(3).tolist(),
                "percent_of_stream": round(float(100 * protected.sum() / total.sum()), 3),
                "most_of_stream": round(float(of_streams.max()), 3),
                "percent_of_encoding_time": round(float(100 * spent[0, 0] / spent[0, 1]), 2),
                "percent_of_decoding_time": round(float(100 * spent[1, 0] / spent[1, 1]), 2),
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["uqdm", "cdc-small"])
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="tars of pictures")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=10_000)
    parts = ("settings", "noise", "beyond", "overhead")
    parser.add_argument("--part", nargs="+", choices=parts, default=["settings", "noise"])
    parser.add_argument("--fully", type=int, default=128, help="pictures that all settings decode")
    parser.add_argument("--ways", type=int, default=len(SETTINGS), help="settings for the others")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    options = parser.parse_args()
    found: list[np.ndarray] = []
    for path in options.data:
        found += pictures.from_tar(path, options.pictures - len(found))
        if len(found) == options.pictures:
            break
    small = squares(found, len(found))
    for part, model in product(options.part, options.model):
        codec = load_codec(model)
        assert isinstance(codec, LayeredCodec)
        key = {"model": codec.name, "model_id": codec.model_id, "torch": torch.__version__}

        def results() -> dict[str, Any]:
            there = options.out and options.out.is_file()
            return json.loads(options.out.read_text()) if there else {}

        def note(result: dict[str, Any], part: str = part, key: dict[str, str] = key) -> None:
            entry = key | result
            shown = {k: v for k, v in result.items() if k != "by_setting"}
            print(time.strftime("%H:%M:%S"), part, key["model"], json.dumps(shown), flush=True)
            if options.out:
                known = results()
                known.setdefault(part, {})[key["model"]] = entry
                options.out.write_text(json.dumps(known, indent=1) + "\n")

        before = results().get(part, {}).get(codec.name, {})
        if any(before.get(k) != v for k, v in (key | {"pictures": len(small)}).items()):
            before = {}
        if part == "settings":
            measure_settings(codec, small, note, before, options.fully, options.ways)
        elif part == "noise":
            measure_noise(codec, small, note, before)
        elif part == "beyond":
            measure_beyond(codec, small, options.trials, note)
        else:
            measure_overhead(codec, found, note)


if __name__ == "__main__":
    main()
