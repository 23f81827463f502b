#!/usr/bin/env python
"""What a preview costs to decode, and which part of it: one thread, alone and beside others.

    python tests/benchmarks/preview_decode.py --model uqdm --data kodak.tar
    python tests/benchmarks/preview_decode.py --layers 1 3 --max-side 256 --processes 1 2

Every process has one thread and decodes the same streams at the same time, one after another: two
on the two hyperthreads of a core tell what a server has of them. Figures are medians over all
previews in milliseconds, by the clock and of the processor's time; parts are of the latter. "rest"
is what is between the parts: checks, tables' indices, positions. Without --data, made-up pictures.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from codec import EncodedImage, load_codec
from codec.images import resizing
from codec.numerics import lapped_transform
from codec.stream import entropy
from codec.uqdm.nested import integer_network, pass_network
from codec.uqdm.nested import scheme as nested_scheme
from tests.benchmarks import pictures

PARTS = {
    "entropy": [(entropy.Decoder, "decode")],
    "network": [
        (integer_network.IntegerNetwork, "trunk"),
        (pass_network.IntegerPasses, "look"),
    ],
    "transform": [(lapped_transform, "inverse"), (lapped_transform, "inverse_reduced")],
    "resize": [(nested_scheme, "shrink"), (resizing, "shrink")],
}


class Clock:
    """Processor seconds by part, counted inside the functions of ``PARTS``."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def installed(self) -> Any:
        before = [
            (owner, name, getattr(owner, name)) for of in PARTS.values() for owner, name in of
        ]
        for part, places in PARTS.items():
            for owner, name in places:
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        try:
            yield self
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] += time.process_time() - begin

        return timed


def decode(
    model: str, files: list[bytes], layers: int, max_side: int, rounds: int, together: Any
) -> list[dict[str, float]]:
    """Milliseconds of every preview in one process, which waits until all are ready."""
    torch.set_num_threads(1)
    codec = load_codec(model)
    streams = [EncodedImage.from_bytes(file) for file in files]
    codec.decode_small(streams[:1], layers=layers, max_side=max_side)
    together.wait()
    out = []
    for stream in streams * rounds:
        with Clock().installed() as clock:
            wall, processor = time.perf_counter(), time.process_time()
            codec.decode_small([stream], layers=layers, max_side=max_side)
            taken = time.process_time() - processor
            row = {"clock": time.perf_counter() - wall, "processor": taken, **clock.seconds}
        row["rest"] = taken - sum(clock.seconds.values())
        out.append({name: 1e3 * seconds for name, seconds in row.items()})
    return out


def _work(queue: Any, *arguments: Any) -> None:
    queue.put(decode(*arguments))


def measure(processes: int, *arguments: Any) -> dict[str, float]:
    """Medians over the previews of all processes."""
    context = multiprocessing.get_context("spawn")  # a fork could use neither threads nor locks
    together, queue = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_work, args=(queue, *arguments, together)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    rows = [row for _ in workers for row in queue.get()]
    for worker in workers:
        worker.join()
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--data", type=Path, metavar="TAR", help="pictures to take 768x512 of")
    parser.add_argument("--first", type=int, default=4, help="how many pictures (default: 4)")
    parser.add_argument("--layers", type=int, nargs="+", default=[1])
    parser.add_argument("--max-side", type=int, nargs="+", default=[256])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    found = pictures.from_tar(options.data, options.first) if options.data else []
    if not found:
        found = pictures.synthetic(options.first, 512, 768)
    images = [np.ascontiguousarray(x) for x in pictures.of_size(found, len(found), 512, 768)]
    torch.set_num_threads(1)
    streams = load_codec(options.model).encode(images, layers=max(options.layers))
    files = [stream.to_bytes() for stream in streams]
    rows = []
    for layers in options.layers:
        for side in options.max_side:
            for processes in options.processes:
                figures = measure(processes, options.model, files, layers, side, options.rounds)
                rows.append({"layers": layers, "side": side, "processes": processes, **figures})
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if options.out:
        options.out.write_text(json.dumps({"model": options.model, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
