"""Kill the worker of a long shard again and again: what is lost each time, and what comes out.

    python tests/benchmarks/lost_workers.py --data px64.tar --pictures 2000 --kills 10
    python tests/benchmarks/lost_workers.py --data kodak.tar --side 2048 --model cdc-small \
        --pictures 60 --kills 3 --save-seconds 120 --no-comparison

Compresses a shard twice, once undisturbed. In the other run the worker's process is killed at
random moments. Prints for each kill the age of the newest saved rows, which is the work that was
lost, and at the end whether both data files are the same to the byte. With --no-comparison it ends
at the last kill.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec.images.files import read_image

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="a tar of pictures")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--save-seconds", type=float, default=10.0)
    parser.add_argument("--store-layers", type=int, default=2)
    parser.add_argument("--side", type=int, help="make mosaics of that many pixels a side")
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--no-comparison", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "shard.tar"
        if given.side:
            fill_with_mosaics(shard, Path(given.data), given.pictures, given.side)
        else:
            fill(shard, Path(given.data), given.pictures)
        whole, again = Path(folder) / "whole", Path(folder) / "again"
        if given.no_comparison:
            kill_often(shard, again, given, given.kills * given.save_seconds)
            return
        started = time.monotonic()
        job = begin(shard, whole, given)
        assert job.wait() == 0, "the undisturbed run failed"
        seconds = time.monotonic() - started
        print(f"undisturbed: {given.pictures} pictures in {seconds:.0f} s")
        kill_often(shard, again, given, seconds)
        (one,), (other,) = ((url / "data").iterdir() for url in (whole, again))
        same = one.read_bytes() == other.read_bytes()
        print("the data files are", "the same" if same else "DIFFERENT")
        sys.exit(not same)


def fill(shard: Path, data: Path, count: int) -> None:
    """A tar of ``count`` pictures of ``data``, which may come several times under other names."""
    with tarfile.open(data) as source, tarfile.open(shard, "w") as out:
        members = [m for m in source if m.name.rpartition(".")[2] in ("png", "jpg", "webp")]
        for number in range(count):
            member = members[number % len(members)]
            copy = tarfile.TarInfo(f"{number:06d}.{member.name.rpartition('.')[2]}")
            copy.size = member.size
            out.addfile(copy, source.extractfile(member))


def fill_with_mosaics(shard: Path, data: Path, count: int, side: int) -> None:
    """A tar of ``count`` square JPEG files, each of pictures of ``data`` beside each other."""
    with tarfile.open(data) as source:
        names = [m for m in source if m.name.rpartition(".")[2] in ("png", "jpg", "webp")]
        files = [source.extractfile(name) for name in names]
        pictures = [read_image(file.read()).rgb for file in files if file]
    with tarfile.open(shard, "w") as out:
        for number in range(count):
            mosaic = Image.new("RGB", (side, side))
            for place, (left, top) in enumerate(product(range(0, side, 512), repeat=2)):
                mosaic.paste(
                    Image.fromarray(pictures[(number + place) % len(pictures)]), (left, top)
                )
            file = io.BytesIO()
            mosaic.save(file, "JPEG", quality=92)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(file.getvalue())
            out.addfile(member, io.BytesIO(file.getvalue()))


def begin(shard: Path, output: Path, given: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "jobs/compress_dataset.py", "--input", shard, "--output", output]
    command += ["--workers", "1", "--attempts", given.kills + 1, "--log", f"{output}.jsonl"]
    command += [
        "--model",
        given.model,
        "--save-seconds",
        given.save_seconds,
        "--store-layers",
        given.store_layers,
    ]
    with open(f"{output}.txt", "wb") as said:
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=said, stderr=said)


def kill_often(shard: Path, output: Path, given: argparse.Namespace, seconds: float) -> None:
    chance = random.Random(given.seed)
    job = begin(shard, output, given)
    dead: set[int] = set()
    while len(dead) < given.kills:
        pid = None
        while pid is None and job.poll() is None:
            time.sleep(0.2)
            pid = living_worker(Path(f"{output}.jsonl"), dead)
        began = time.time()
        if job.poll() is not None or pid is None:
            break
        time.sleep(given.save_seconds + chance.uniform(0.0, seconds / given.kills))
        if job.poll() is not None:
            break
        saved = list((output / ".strata" / "saved").glob("*.parquet"))
        lost = time.time() - max([began, *(path.stat().st_mtime for path in saved)])
        rows = max((int(path.stem.rpartition("-")[2]) for path in saved), default=0)
        os.kill(pid, signal.SIGKILL)
        dead.add(pid)
        print(f"kill {len(dead)}: {rows} rows saved, {lost:.1f} s of work lost", flush=True)
        if given.no_comparison and len(dead) == given.kills:
            job.send_signal(signal.SIGINT)
            job.send_signal(signal.SIGINT)
    code = job.wait()
    if code:
        print(Path(f"{output}.txt").read_text()[-2000:])
    print(f"killed {len(dead)} times; exit code {code}")


def living_worker(log: Path, dead: set[int]) -> int | None:
    """The process of the worker that was ready last, None if that was killed."""
    if not log.exists():
        return None
    events: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    ready = [event["pid"] for event in events if event["event"] == "worker_ready"]
    return ready[-1] if ready and ready[-1] not in dead else None


if __name__ == "__main__":
    main()
