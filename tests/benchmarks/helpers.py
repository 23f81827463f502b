#!/usr/bin/env python
"""The second half of encoding, symbols to bytes: here, in threads, in coder processes.

    python tests/benchmarks/helpers.py --data kodak.tar

Megapixels a second, the fastest of the rounds, of as many batches at once as there are threads or
helpers; the first half, which needs the device, is not counted. Then what a megapixel costs of a
core: coded here; and, of this process, asked of a helper.
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec import Codec, load_codec
from codec.coder_process import Coding, Helper
from tests.benchmarks import pictures
from tests.benchmarks.throughput import become_a_worker


def begun(codec: Codec, batch: list[np.ndarray], count: int) -> list[Coding]:
    codings = [codec.begin_encode(batch, layers=codec.archive_layers) for _ in range(count)]
    assert all(isinstance(coding, Coding) for coding in codings)
    return codings  # type: ignore[return-value]


def fastest(
    rounds: int, prepare: Callable[[], list[Coding]], run: Callable[[list[Coding]], object]
) -> tuple[float, float]:
    """Seconds, and those of this process's processor time."""
    best, busy = float("inf"), float("inf")
    for _ in range(rounds):
        codings = prepare()
        begun, spent = time.perf_counter(), time.process_time()
        run(codings)
        busy = min(busy, time.process_time() - spent)
        best = min(best, time.perf_counter() - begun)
    return best, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["uqdm", "cdc-small"])
    parser.add_argument("--data", type=Path, help="a tar of pictures; default: a made-up one")
    parser.add_argument("--size", nargs="+", default=["64x64", "256x256", "512x512"])
    parser.add_argument("--pixels", type=int, default=1 << 18, help="of a batch")
    parser.add_argument("--helpers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    become_a_worker()
    pool = ThreadPoolExecutor(options.helpers)
    helpers = [Helper() for _ in range(options.helpers)]
    count = options.helpers
    for name in options.model:
        codec = load_codec(name)
        for size in options.size:
            width, height = map(int, size.split("x"))
            number = max(1, options.pixels // (width * height))
            source = (
                pictures.from_tar(options.data, 24)
                if options.data
                else pictures.synthetic(number, height, width)
            )
            batch = pictures.of_size(source, number, height, width)
            megapixels = len(batch) * width * height / 1e6
            expected = codec.encode(batch, layers=codec.archive_layers)
            for helper, coding in zip(helpers, begun(codec, batch, count), strict=True):
                assert coding.by(helper) == expected
            one, several = (partial(begun, codec, batch, n) for n in (1, count))
            here = fastest(options.rounds, one, lambda some: some[0]())
            threads = fastest(options.rounds, several, lambda some: list(pool.map(_call, some)))
            asked = fastest(options.rounds, one, lambda some: some[0].by(helpers[0]))
            helped = fastest(
                options.rounds, several, lambda some: list(pool.map(Coding.by, some, helpers))
            )
            print(
                f"{name} {size}: {megapixels / here[0]:.2f} Mpx/s here, "
                f"{count * megapixels / threads[0]:.2f} in {count} threads, "
                f"{megapixels / asked[0]:.2f} in a helper, "
                f"{count * megapixels / helped[0]:.2f} in {count}; "
                f"{here[1] / megapixels:.3f} s/Mpx of a core here, "
                f"{asked[1] / megapixels:.3f} to ask a helper",
                flush=True,
            )


def _call(coding: Coding) -> object:
    return coding()


if __name__ == "__main__":
    main()
