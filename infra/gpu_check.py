"""Checks and measures a machine's GPU: the same bytes as on the CPU, Mpx/s, and how busy it is.

    bash infra/gpu_check.sh                   six minutes at most
    bash infra/gpu_check.sh 3 --out gpu.json  three; the figures go into a file, too

1. The CPU and the GPU encode the same pictures with every shipped model. The streams must be the
   same to the byte, and each side must read the other's: exactly what has an exact layer, to one
   level of 255 what floats draw.
2. Megapixels a second of encoding and decoding, by number of layers and batch, beside the CPU's.
3. How busy the GPU is: in the codec alone, by torch's profiler, and in a job on this machine, by
   the job's own account of its stages, where Ray is installed.

Without a GPU it runs on the tests' stand-in, a device that torch takes for another one and that the
CPU computes behind. Its speeds mean nothing then; that the check works is what it shows. Exit code
1 where something was not the same.
"""

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from codec import Codec, EncodedImage, load_codec  # noqa: E402
from codec.models import zoo  # noqa: E402
from codec.numerics import int8_products  # noqa: E402
from tests.benchmarks.pictures import synthetic  # noqa: E402


@dataclass(frozen=True)
class Load:
    """How much is computed.

    Attributes:
        compared: pictures that both sides encode: count, height, width.
        sides, batches: height and width of pictures whose coding is timed, and how many at once.
        job: pictures of the job's four shards each, and their side.
        rounds: of each measurement.
    """

    compared: tuple[tuple[int, int, int], ...]
    sides: tuple[int, int]
    batches: tuple[int, ...]
    job: tuple[int, int]
    rounds: int


GPU = Load(
    ((40, 64, 64), (16, 96, 120), (6, 256, 250), (2, 512, 768)),
    sides=(512, 768),
    batches=(1, 8, 32),
    job=(64, 512),
    rounds=3,
)
STAND_IN = Load(
    ((40, 32, 32), (16, 48, 40), (6, 64, 72), (2, 96, 128)),
    sides=(96, 128),
    batches=(1, 4),
    job=(4, 64),
    rounds=1,
)

# The share of the time that each part may take; the rest is for loading and the job.
PARTS = {"same": 0.4, "speed": 0.35}


@dataclass
class Figures:
    """What was found. ``to_json`` is what --out writes."""

    device: str
    name: str
    stand_in: bool
    torch: str = torch.__version__
    processor: str = field(default_factory=platform.processor)
    bytes_faster: bool = False
    same: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)
    busy: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return all(row["right"] for row in self.same)

    @property
    def load(self) -> Load:
        return STAND_IN if self.stand_in else GPU


class Clock:
    """What is left of the time for a part."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end


@contextlib.contextmanager
def device_to_check(asked: str | None) -> Iterator[Figures]:
    """The GPU, or the stand-in where there is none and none was asked for."""
    if asked is None and not torch.cuda.is_available():
        from tests.codec import elsewhere

        with elsewhere.elsewhere() as name:
            yield Figures(name, "stand-in: the CPU behind another name", True)
        return
    device = torch.device(asked or "cuda")
    yield Figures(str(device), torch.cuda.get_device_name(device), False)


# -- the same on both sides -----------------------------------------------------------------------


def compare(model: str, figures: Figures, clock: Clock) -> dict[str, Any]:
    """Streams and pictures of one model, here and there."""
    here, there = load_codec(model), load_codec(model, figures.device)
    row: dict[str, Any] = {"model": model, "pictures": 0, "bytes_differ": 0, "largest_error": 0}
    for number, (count, height, width) in enumerate(figures.load.compared):
        if clock.over:
            break
        pictures = synthetic(count, height, width, seed=number)
        ours, theirs = here.encode(pictures), there.encode(pictures)
        row["pictures"] += count
        row["bytes_differ"] += sum(a != b for a, b in zip(ours, theirs, strict=True))
        # Each reads what the other has written, after every layer.
        prefixes = here.decode_progressively(theirs), there.decode_progressively(ours)
        for at_here, at_there in zip(*prefixes, strict=True):
            row["largest_error"] = max(row["largest_error"], _distance(at_here, at_there))
        if here.lossless and not all(map(np.array_equal, pictures, at_there)):
            row["inexact"] = row.get("inexact", 0) + 1
    row["right"] = (
        row["pictures"] > 0
        and not row["bytes_differ"]
        and row["largest_error"] <= 1
        and not row.get("inexact")
    )
    return row


def _distance(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> int:
    return max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(ours, theirs, strict=True))


# -- speed ----------------------------------------------------------------------------------------


def speeds(model: str, figures: Figures, clock: Clock) -> list[dict[str, Any]]:
    """Megapixels a second by layers and batch, the device's and one CPU thread's."""
    rows = []
    load = figures.load
    pictures = synthetic(max(load.batches), *load.sides)
    for device in (figures.device, "cpu"):
        codec = load_codec(model, device)
        for batch in load.batches if device != "cpu" else load.batches[:1]:
            for layers in sorted({1, 4, codec.archive_layers, codec.num_layers}):
                what = f"{model}, {device}, {layers} layers, batch of {batch}"
                if clock.over:
                    figures.left_out.append(what)
                    continue
                rows.append(_speed(codec, pictures[:batch], layers, device, load.rounds))
    return rows


def _speed(
    codec: Codec, pictures: Sequence[np.ndarray], layers: int, device: str, rounds: int
) -> dict[str, Any]:
    streams: list[EncodedImage] = codec.encode(pictures, layers=layers)  # warms up
    codec.decode(streams, layers=layers)
    megapixels = sum(x.shape[0] * x.shape[1] for x in pictures) / 1e6
    row = {"model": codec.name, "device": device, "layers": layers, "batch": len(pictures)}
    for verb, call in (
        ("encode", lambda: codec.encode(pictures, layers=layers)),
        ("decode", lambda: codec.decode(streams, layers=layers)),
    ):
        row[f"{verb}_mpixel_s"] = float(f"{megapixels / _seconds(call, rounds):.4g}")
    return row


def _seconds(call: Callable[[], object], rounds: int) -> float:
    """The fastest of some rounds. Results are numbers on the CPU, so the device is done."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
        if sum(found) > 10:
            break
    return min(found)


# -- how busy -------------------------------------------------------------------------------------


def busy_in_codec(model: str, device: str) -> float | None:
    """The share of encoding's time in which the GPU computes; None on the stand-in."""
    if not device.startswith("cuda"):
        return None
    from torch.profiler import ProfilerActivity, profile

    codec = load_codec(model, device)
    pictures = synthetic(GPU.batches[-1], *GPU.sides)
    codec.encode(pictures, layers=codec.archive_layers)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        begun = time.perf_counter()
        codec.encode(pictures, layers=codec.archive_layers)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    kernels = sum(x.self_device_time_total for x in profiled.key_averages())  # microseconds
    return round(min(kernels / 1e6 / seconds, 1.0), 3)


def busy_in_job(model: str, figures: Figures, seconds: float) -> dict[str, Any] | None:
    """What a job of one worker says of its stages; None where Ray is not installed, or too slow."""
    if find_spec("ray") is None:
        return None
    from tests.benchmarks.scale.corpus import write_shards

    count, side = figures.load.job
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch), Path(scratch) / "events.jsonl"
        write_shards(folder / "in", 4, count, side)
        command = [
            *(sys.executable, str(ROOT / "jobs/compress_dataset.py"), "--model", model),
            *("--input", str(folder / "in"), "--output", str(folder / "out"), "--workers", "1"),
            *("--device", "cpu" if figures.stand_in else "cuda", "--log", str(log)),
        ]
        try:
            ran = subprocess.run(command, timeout=seconds, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return None
        if ran.returncode:
            raise SystemExit(f"the job failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        events = [json.loads(line) for line in log.read_text().splitlines()]
    end = next(e for e in events if e["event"] == "job_finished")
    kept = ("seconds", "images_per_second", "slowest_stage", "slowest_share")
    found = {name: end[name] for name in kept if name in end}
    stages: dict[str, float] = {}
    whole = 0.0
    for shard in (e for e in events if e["event"] == "shard_done"):
        whole += shard["seconds"]
        for name, taken in shard["stage_seconds"].items():
            stages[name] = stages.get(name, 0.0) + taken
    found["stages"] = {n: round(s / whole, 3) for n, s in sorted(stages.items())} if whole else {}
    return found


# -- the report -----------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = [*dict.fromkeys(name for row in rows for name in row)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def check(figures: Figures, minutes: float, say: Callable[[str], None]) -> None:
    """Fill in the figures, within the time."""
    begun, seconds = time.monotonic(), 60 * minutes
    device = torch.device(figures.device)
    figures.bytes_faster = int8_products.bytes_are_faster(device)
    say(f"{figures.name}; torch {figures.torch}")
    way = "8-bit integers" if figures.bytes_faster else "float32"
    say(f"the networks that shape streams multiply {way} there\n")
    models = zoo.list_models()
    for model in models:
        figures.same.append(compare(model, figures, Clock(PARTS["same"] * seconds / 2)))
    say("Streams and pictures, CPU against device:\n\n" + table(figures.same) + "\n")
    for model in models:
        clock = Clock(PARTS["speed"] * seconds / len(models))
        figures.speed += speeds(model, figures, clock)
    height, width = figures.load.sides
    say(f"Megapixels a second ({width}x{height}):\n\n" + table(figures.speed) + "\n")
    if figures.left_out:
        say(f"left out for want of time: {len(figures.left_out)} speeds; give it more minutes\n")
    model = zoo.DEFAULT_MODELS["uqdm"]
    figures.busy["codec"] = busy_in_codec(model, figures.device)
    left = max(seconds - (time.monotonic() - begun), 60)
    figures.busy["job"] = busy_in_job(model, figures, left)
    say(f"Busy, encoding with {model}:\n")
    codec, job = figures.busy["codec"], figures.busy["job"]
    say("- the codec alone: " + ("only a GPU can tell" if codec is None else f"{codec:.0%}"))
    stages = ", ".join(
        f"{name} {share:.0%}" for name, share in (job or {}).get("stages", {}).items()
    )
    say(f"- a job of one worker: {stages or 'no Ray here, or no time'}")
    figures.seconds = round(time.monotonic() - begun, 1)
    result = "everything is the same" if figures.right else "NOT THE SAME: see the first table"
    say(f"\n{result}; {figures.seconds:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=6.0, help="about; default: 6")
    parser.add_argument("--device", help="cuda:1, ...; default: cuda, or the stand-in without one")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error("minutes: a positive number")
    with device_to_check(options.device) as figures:
        check(figures, options.minutes, print)
    if options.out:
        options.out.write_text(json.dumps(asdict(figures), indent=1) + "\n")
    return 0 if figures.right else 1


if __name__ == "__main__":
    sys.exit(main())
