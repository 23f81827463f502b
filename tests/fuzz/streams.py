"""Throws damaged and forged streams at the decoders and looks at what they do.

    python tests/fuzz/streams.py --count 100000 --json docs/results/fuzz.json

Every trial must end in CorruptStreamError (or UnknownModelError, where a header names another
model or version) or in the right picture of the layers that are there, within a second of
processor time and without taking more memory than four times what sound streams take. A header may
claim another size than that of the pictures there are: where a trial takes more, a picture of the
claimed size is encoded, and a sound stream of it decoded in the same way; that is what the trial
may take twice the time of, and four times the memory. A stream whose checksums were repaired is a
forgery: it may decode to any picture, but must not do worse.
For a share of the trials the checks of symbols and tables are switched off as well, which is what a
forger who computes them would reach.
"""

import argparse
import ctypes
import faulthandler
import gc
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from codec import CorruptStreamError, EncodedImage, UnknownModelError, layered
from tests.fuzz.mutations import Mutant, mutate
from tests.fuzz.targets import Target, digest, tiny_targets

SECONDS = 1.0  # of the processor
TIME_FACTOR = 2  # of what a sound stream of the claimed size takes at that moment
MEMORY_FACTOR = 4
GROWTH_MB = 64.0  # in one trial: pictures of 256x256 may be claimed by any header, and need memory
ENCODED_PIXELS = 1 << 24  # what is not encoded to compare with: what is larger must be refused
SHOWN_EVERY = 500
GUARDED = 50  # trials; if they do not end within so many seconds of the clock,
HANG_SECONDS = 300  # the interpreter ends itself with a traceback
FORGED_SHARE = 0.2
# Slow ones get fewer trials.
SHARES = {
    "nested, few levels": 0.45,
    "nested": 0.03,
    "cdc": 0.515,
    "universal": 0.005,
    "universal with protection": 0.005,
}


class Failure(AssertionError):
    """A decoder did what it must not do."""


@dataclass
class Report:
    """What came out. Memory is what the process holds at most, and its growth in one trial.

    ``large`` are trials that took long, or much, and so do sound pictures of the size they claim.
    """

    trials: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    unchecked: int = 0
    slowest_seconds: float = 0.0
    normal_mb: float = 0.0
    most_mb: float = 0.0
    most_grown_mb: float = 0.0
    large: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def unchecked() -> Iterator[None]:
    """Decoders that believe whatever symbols and tables they get."""
    nothing = {"_check_symbols": mock.DEFAULT, "_check_tables": mock.DEFAULT}
    with mock.patch.multiple(layered._LayerDecoder, **nothing):
        yield


def attempt(target: Target, mutant: Mutant, way: int) -> str:
    """What decoding does, in a word. Raises Failure for what it must not do."""
    try:
        stream = EncodedImage.from_bytes(mutant.data, allow_truncated=bool(way & 1))
        picture = _decode(target, stream, way)
    except (CorruptStreamError, UnknownModelError) as error:
        return type(error).__name__
    except BaseException as error:
        raise Failure(f"{type(error).__name__}: {error}") from error
    if way % 10 == 7:
        return "preview"
    if mutant.repaired or not stream.layers or picture is None:
        return "forgery"  # without layers nothing vouches for a header
    right = target.pictures.get((stream.header, len(stream.layers)), frozenset())
    if digest(picture) not in right:
        raise Failure("an unmarked wrong picture")
    return "right picture"


def _decode(target: Target, stream: EncodedImage, way: int) -> np.ndarray | None:
    if way % 10 == 7:
        return target.codec.decode_small([stream], max_side=9)[0]
    if way % 10 == 8:
        *_, (picture,) = [[None], *target.codec.decode_progressively([stream])]
        return picture
    return target.codec.decode([stream])[0]


@dataclass
class Cost:
    """Processor seconds, and MB: the most that the process held, and by how much that was more."""

    seconds: float = 0.0
    peak: float = 0.0
    grown: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Fills in what is done inside costs."""
    cost = Cost()
    _forget_peak()
    before, start = _memory("VmRSS"), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds, cost.peak = time.process_time() - start, _memory("VmHWM")
        cost.grown = cost.peak - before


def sound_cost(target: Target, data: bytes, way: int) -> Cost | None:
    """Of a sound stream of the size and layers that a file claims; None where it claims none."""
    try:
        claimed = EncodedImage.from_bytes(data, allow_truncated=True)
        info = claimed.info
    except (CorruptStreamError, UnknownModelError):
        return None
    if info.width * info.height > ENCODED_PIXELS:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (info.height, info.width, 3), np.uint8)
    (stream,) = target.codec.encode([noise])
    stream = stream.truncate(max(1, min(claimed.num_layers, stream.num_layers)))
    gc.collect()
    with suppress(AttributeError):  # else it takes again what was freed, and seems to need nothing
        ctypes.CDLL(None).malloc_trim(0)
    with measured() as cost:
        _decode(target, stream, way)
    return cost


def _memory(what: str) -> float:
    """``VmHWM`` (peak) or ``VmRSS`` of this process in MB."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(what):
                return int(line.split()[1]) / 1024
    return 0.0


def _forget_peak() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "w") as control:
        control.write("5")


def normal_memory(targets: Sequence[Target]) -> float:
    """The most that the process holds, in MB, while it decodes sound streams."""
    gc.collect()
    _forget_peak()
    for target in targets:
        for stream in target.sound:
            target.codec.decode([stream])
    return _memory("VmHWM")


def _as_sound(cost: Cost, sound: Cost) -> bool:
    """Whether a trial took what it may, if a sound picture of the size it claims took this."""
    long = cost.seconds > max(SECONDS, TIME_FACTOR * sound.seconds)
    return not long and cost.grown <= max(GROWTH_MB, MEMORY_FACTOR * sound.grown)


def run(
    targets: Sequence[Target],
    count: int,
    seed: int,
    keep: Path | None = None,
    show: Callable[[Report], None] | None = None,
) -> Report:
    """``count`` trials of a ``seed``; files that fail go to ``keep``, progress to ``show``.

    With ``show`` a hang ends the interpreter.
    """
    rng, report = random.Random(seed), Report()
    report.normal_mb = normal_memory(targets)
    weights = [SHARES.get(target.name, 1.0) for target in targets]
    while report.trials < count:
        if show is not None and report.trials % GUARDED == 0:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        (target,) = rng.choices(targets, weights)
        mutant = mutate(rng, target.sound)
        forged = mutant.repaired and rng.random() < FORGED_SHARE / 0.5
        way = rng.randrange(20)
        report.trials += 1
        report.repaired += mutant.repaired
        report.unchecked += forged
        problem = ""
        with measured() as cost:
            try:
                if forged:
                    with unchecked():
                        outcome = attempt(target, mutant, way)
                else:
                    outcome = attempt(target, mutant, way)
            except Failure as error:
                outcome, problem = "FAILURE", str(error)
        report.outcomes[outcome] += 1
        report.slowest_seconds = max(report.slowest_seconds, cost.seconds)
        report.most_mb = max(report.most_mb, cost.peak)
        report.most_grown_mb = max(report.most_grown_mb, cost.grown)
        name = f"seed {seed}, trial {report.trials}, {target.name}"
        most_mb = MEMORY_FACTOR * report.normal_mb
        if cost.seconds > SECONDS or cost.grown > GROWTH_MB or cost.peak > most_mb:
            sound = sound_cost(target, mutant.data, way)
            told = f"took {cost.seconds:.1f} s, {cost.grown:.0f} MB"
            if sound is not None:
                told += f", a sound picture of its size {sound.seconds:.1f} s, {sound.grown:.0f} MB"
            if sound is None or not _as_sound(cost, sound):
                problem += " " + told
            else:
                report.large.append(f"{name}: {told}")
        if problem:
            report.failures.append(f"{name}: {problem}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{report.trials}.strata").write_bytes(mutant.data)
        if show is not None and report.trials % SHOWN_EVERY == 0:
            show(report)
    if show is not None:
        faulthandler.cancel_dump_traceback_later()
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="trials (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--keep", type=Path, help="folder for streams that failed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.process_time()

    def show(report: Report) -> None:
        told = {
            **vars(report),
            "seed": options.seed,
            "processor_seconds": round(time.process_time() - start, 1),
            "command": f"python tests/fuzz/streams.py --count {options.count}"
            f" --seed {options.seed}",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }
        text = json.dumps(told, indent=1)
        if report.trials == options.count:
            print(text)
        if options.json:
            options.json.write_text(text + "\n")

    with tempfile.TemporaryDirectory() as folder:
        targets = list(tiny_targets(Path(folder)))
        report = run(targets, options.count, options.seed, options.keep, show)
    show(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
