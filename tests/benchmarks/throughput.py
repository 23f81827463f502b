#!/usr/bin/env python
"""Megapixels a second by codec, model, number of layers and threads, beside the machine's peak.

    python tests/benchmarks/throughput.py --data kodak.tar --markdown docs/results.md

One picture at a time, the faster of the rounds. The peak is measured in the same run, before every
round and after the last: products of float32 matrices of 2048x2048, and 3x3 convolutions of 256
channels, each the fastest of all times. The network is what multiplies: its operations are counted
(two for a multiplication with its addition), its seconds are those of its methods, everything
between the multiplications included. UQDM's networks multiply 8-bit integers where the processor is
quick at that, and can be faster than any convolution of floats: see
codec/numerics/int8_products.py; ``--floats`` does without. The process has the environment of a
job's worker (pipeline/running/cluster.py). It takes less than three minutes on an idle machine.
JPEG XL is a program, whose start and files count.
"""

import argparse
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codec import Codec, load_codec
from codec.numerics import int8_products
from codec.numerics.int8_products import Linear
from codec.uqdm.nested.integer_network import IntegerNetwork
from codec.uqdm.nested.pass_network import IntegerPasses
from docs.make_results import fill
from pipeline.evaluate.peers import all_peers
from pipeline.evaluate.report import machine, versions
from pipeline.evaluate.tables import Table
from pipeline.running.cluster import KEEP_FREED_MEMORY
from tests.benchmarks import pictures
from tests.benchmarks.codec_speed import takes

# One setting of each other codec, of about a bit a pixel where it has the choice.
PEERS = {"jpeg": "q60", "jpeg2000": "1:22", "webp": "q60", "avif": "q58 4:4:4", "jxl": "d2.3"}
PEERS |= {"png": "", "webp_lossless": "", "jpeg2000_lossless": "", "jxl_lossless": "d0"}
UQDM_NETWORK = [(IntegerNetwork, "trunk"), (IntegerPasses, "look"), (Linear, "__call__")]
CDC_NETWORK = ("analysis", "hyper_analysis", "hyper_mean", "synthesis", "denoise")


@dataclass
class Stopwatch:
    """Seconds inside of a model's network, summed over calls; those inside of others not twice."""

    seconds: float = 0.0
    inside: int = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            self.inside += 1
            try:
                return function(*args, **options)
            finally:
                self.inside -= 1
                if not self.inside:
                    self.seconds += time.perf_counter() - begun

        return timed


@contextmanager
def network_timed(codec: Codec) -> Iterator[Stopwatch]:
    """Times whatever ``codec``'s networks do meanwhile."""
    watch = Stopwatch()
    model = getattr(codec.scheme, "model", None)
    places: Sequence[tuple[Any, str]] = UQDM_NETWORK
    if isinstance(model, nn.Module):
        places = [(model, name) for name in CDC_NETWORK if hasattr(model, name)]
    kept = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, kept, strict=True):
        setattr(owner, name, watch.around(function))
    try:
        yield watch
    finally:
        for (owner, name), function in zip(places, kept, strict=True):
            if owner is model:
                delattr(owner, name)  # the class's own comes back
            else:
                setattr(owner, name, function)


@dataclass
class Peak:
    """Operations a second, the fastest of all times."""

    matrices: float = 0.0
    convolutions: float = 0.0
    bytes: float = 0.0

    @torch.inference_mode()
    def measure(self, times: int = 4) -> None:
        a, b = torch.randn(2, 2048, 2048)
        rows, linear = a.to(torch.int8), Linear(b.to(torch.int8))
        x = torch.randn(1, 256, 96, 96).contiguous(memory_format=torch.channels_last)
        w = torch.randn(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
        for _ in range(times):
            self.matrices = max(self.matrices, _rate(2 * 2048**3, lambda: torch.mm(a, b)))
            if int8_products.bytes_are_faster(torch.device("cpu")):
                self.bytes = max(self.bytes, _rate(2 * 2048**3, lambda: linear(rows)))
            operations = 2 * 9 * 256**2 * 96**2
            rate = _rate(operations, lambda: F.conv2d(x, w, padding=1))
            self.convolutions = max(self.convolutions, rate)


def _of_rows(x: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """Operations of a product with a matrix that has been packed."""
    return 2 * math.prod(x) * out_shape[-1]


def _of_filters(*args: Any, out_shape: Sequence[int], **_: object) -> int:
    """Operations of a filter for each channel, which has been packed: its size by its padding."""
    (side, _) = args[8]
    return 2 * math.prod(out_shape) * (2 * side + 1) ** 2


def _of_map(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Operations of a linear map ``(outputs, inputs)`` of x's last axis."""
    return 2 * math.prod(x) * weight[0]


def _rate(operations: float, call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return operations / (time.perf_counter() - begun)


@dataclass
class Case:
    """One way to encode or decode: its call, its network's operations, and its fastest round."""

    call: Callable[[], object]
    operations: float = 0.0
    seconds: float = float("inf")
    network: float = 0.0

    def round(self, codec: Codec) -> None:
        with network_timed(codec) as watch:
            begun = time.perf_counter()
            self.call()
            seconds = time.perf_counter() - begun
        if seconds < self.seconds:
            self.seconds, self.network = seconds, watch.seconds

    def count(self) -> None:
        """Count the operations, which makes it slow."""
        others = {
            torch.ops.mkldnn._linear_pointwise: _of_map,
            torch.ops.onednn.qlinear_pointwise: _of_rows,
            torch.ops.onednn.qconv2d_pointwise: _of_filters,
        }
        with FlopCounterMode(display=False, custom_mapping=others) as counter:
            self.call()
        self.operations = float(counter.get_total_flops())

    def cells(self, megapixels: float, peak: Peak) -> list[str]:
        share = self.network / self.seconds
        speed = self.operations / self.network if self.network else 0.0
        return [
            f"{megapixels / self.seconds:.3g}",
            f"{100 * share:.0f} %",
            f"{100 * speed / peak.convolutions:.0f} %" if speed else "",
        ]


@dataclass
class Row:
    """A model with a number of layers."""

    name: str
    layers: str
    codec: Codec
    cases: dict[str, Case] = field(default_factory=dict)


def model_rows(
    name: str,
    picture: np.ndarray,
    quality: int | None,
    steps: int,
    counts: Sequence[int],
) -> list[Row]:
    codec = load_codec(name)
    option: dict[str, Any] = {}
    if "quality" in codec.encode_options:
        option = {} if quality is None else {"quality": quality}
    rows = []
    whole = codec.encode([picture], layers=codec.num_layers, **option)
    for layers in sorted({min(count, codec.num_layers) for count in counts}):
        row = Row(codec.name, str(layers), codec)
        encode = functools.partial(codec.encode, [picture], layers=layers, **option)
        decode = functools.partial(codec.decode, whole, layers=layers)
        row.cases = {"encode": Case(encode), "decode": Case(decode)}
        rows.append(row)
    others: list[tuple[str, int, dict[str, Any]]] = [
        (f"diffusion, {steps} steps", codec.num_layers, {"decoder": "diffusion", "steps": steps}),
        ("mean", 4, {"decoder": "mean"}),
        ("realistic", 4, {"decoder": "realistic"}),
    ]
    for label, layers, chosen in others:
        if takes(codec, **chosen):
            other = functools.partial(codec.decode, whole, layers=layers, **chosen)
            rows.append(Row(codec.name, f"{layers}, {label}", codec, {"decode": Case(other)}))
    return rows


def peer_rows(picture: np.ndarray, megapixels: float, rounds: int) -> list[tuple[str, ...]]:
    out = []
    for name, wanted in PEERS.items():
        peer = all_peers()[name]
        setting = next((one for one in peer.settings if one.name == wanted), None)
        if not peer.library or setting is None:
            continue
        encode, decode = float("inf"), float("inf")
        for _ in range(rounds):
            begun = time.perf_counter()
            data = peer.encode(picture, setting)
            between = time.perf_counter()
            peer.decode(data)
            encode = min(encode, between - begun)
            decode = min(decode, time.perf_counter() - between)
        title = f"{peer.title} {setting.name}".strip()
        out.append((title, f"{megapixels / encode:.3g}", f"{megapixels / decode:.3g}"))
    return out


def measure(options: argparse.Namespace, picture: np.ndarray) -> list[Table]:
    megapixels = picture.shape[0] * picture.shape[1] / 1e6
    rows = [
        row
        for name in options.model
        for row in model_rows(name, picture, options.quality, options.steps, options.layers)
    ]
    torch.set_num_threads(max(options.threads))
    for row in rows:
        for case in row.cases.values():
            case.count()
    tables = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        peak = Peak()
        for row in rows:
            for case in row.cases.values():
                case.seconds = float("inf")
        for _ in range(options.rounds):
            peak.measure()
            for row in rows:
                for case in row.cases.values():
                    case.round(row.codec)
        peak.measure()
        tables.append(model_table(rows, threads, megapixels, peak))
    header = ("codec, one thread", "encode Mpx/s", "decode Mpx/s")
    others = tuple(peer_rows(picture, megapixels, options.rounds))
    return [*tables, Table("Others", header, others)]


def model_table(rows: Sequence[Row], threads: int, megapixels: float, peak: Peak) -> Table:
    cells = []
    for row in rows:
        line = [row.name, row.layers]
        for verb in ("encode", "decode"):
            case = row.cases.get(verb)
            line += ["", "", ""] if case is None else case.cells(megapixels, peak)
        operations = row.cases["decode"].operations / 1e9 / megapixels
        cells.append((*line, f"{operations:.0f}"))
    header = ["model", "layers"]
    for verb in ("encode", "decode"):
        header += [f"{verb} Mpx/s", "in the network", "of the peak"]
    integers = f", {peak.bytes / 1e9:.0f} in those of 8-bit integers" if peak.bytes else ""
    note = (
        f"Measured peak: {peak.convolutions / 1e9:.0f} GFLOP/s in convolutions, "
        f"{peak.matrices / 1e9:.0f} in products of matrices{integers}. In the network: its part of "
        "the time. Of the peak: the network's operations in that time, against the convolutions'. "
        "The last column is what decoding takes."
    )
    title = f"{threads} thread" + ("s" if threads > 1 else "")
    return Table(title, (*header, "GFLOP a Mpx"), tuple(cells), note)


def become_a_worker() -> None:
    """Start this process anew in the environment that a job's workers have."""
    if any(os.environ.get(name) != value for name, value in KEEP_FREED_MEMORY.items()):
        os.environ.update(KEEP_FREED_MEMORY)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["uqdm", "cdc-small"])
    parser.add_argument(
        "--layers", nargs="+", type=int, default=[1, 2, 4, 99], help="how many; 99: all"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--data", type=Path, help="a tar of pictures; default: a made-up one")
    parser.add_argument("--size", default="768x512", metavar="WxH", help="of the picture")
    parser.add_argument("--quality", type=int, help="for models with qualities")
    parser.add_argument("--steps", type=int, default=4, help="of the diffusion")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--floats", action="store_true", help="no products of 8-bit integers")
    parser.add_argument(
        "--markdown", type=Path, help="a document with places <!-- speed: 1 thread --> and so on"
    )
    options = parser.parse_args()
    become_a_worker()
    if options.floats:
        int8_products.bytes_are_faster = lambda device: False
    width, height = map(int, options.size.split("x"))
    source = (
        pictures.from_tar(options.data, 1) if options.data else pictures.synthetic(1, height, width)
    )
    (picture,) = pictures.of_size(source, 1, height, width)
    tables = measure(options, picture)
    computer = machine()
    what = options.data.name if options.data else "a made-up picture"
    load = os.getloadavg()[0]
    about = (
        f"`python tests/benchmarks/throughput.py`: {width}x{height} of {what}, "
        f"{computer['processor']}, {computer['processors']} processors, "
        f"load {load:.1f} at the end; Python {platform.python_version()}, "
        f"torch {versions()['torch']}.\n"
    )
    print(about + "\n" + "\n".join(table.markdown() for table in tables))
    if options.markdown:
        made = {table.title: table.body() for table in tables} | {"about": about}
        for note in fill(options.markdown, "speed", lambda what: made.get(what, "")):
            print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
