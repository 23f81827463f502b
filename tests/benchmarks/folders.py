#!/usr/bin/env python
"""Small files in a folder on an S3 server against the same in tars: listing, and the whole job.

    python tests/benchmarks/folders.py [--count 3000] [--rounds 3] [--model uqdm]

PNG and JPEG pictures of 64x64 in turns, each with a little JSON. The server is moto, in a process
of its own. Both jobs have one worker in this process, tars and folder take turns, and each tar has
as many samples as a part of a folder. Without ``--model`` the codec is a stub, so that what is
measured is the way of the bytes. Processor time is this process's, without the server's, which
elsewhere is another machine's. Exit code 1 if, by it, the folder takes more than 20 % longer than
the tars with a model.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from codec import load_codec  # noqa: E402
from codec.images.files import write_image  # noqa: E402
from pipeline.compress import job as compress_job  # noqa: E402
from pipeline.compress.job import CompressOptions, compress  # noqa: E402
from pipeline.dataset import models  # noqa: E402
from pipeline.running import cluster  # noqa: E402
from pipeline.running import job as running_job  # noqa: E402
from pipeline.running.cluster import WorkerShape  # noqa: E402
from pipeline.running.tasks import Outcome, Task  # noqa: E402
from pipeline.sources.folder import PART_SAMPLES  # noqa: E402
from pipeline.sources.listing import find_inputs  # noqa: E402
from tests.benchmarks.scale.corpus import crops  # noqa: E402
from tests.integration.servers import BUCKET, S3Server, moto  # noqa: E402
from tests.pipeline.makers import ToyCodec  # noqa: E402

ALLOWED = 1.2
T = TypeVar("T")


def in_this_process(folder: Path, model: str | None) -> None:
    """Let jobs run here, with one worker, as the tests do; without a model with the toy codec."""
    path = folder / "toy.safetensors"
    path.write_bytes(b"the toy model")
    codec = load_codec(model) if model else ToyCodec(path)

    def run_tasks(
        kind: type, settings: Any, tasks: list[Task], shape: object, policy: object, watcher: Any
    ) -> list[Outcome]:
        one = kind(settings)
        watcher.ready()
        outcomes = [Outcome(task, one.run(*task.arguments), attempts=1) for task in tasks]
        watcher.update(outcomes, [{"worker": 0, **one.status()}])
        return outcomes

    models.load_codec = lambda *_, **__: codec  # type: ignore[assignment]
    compress_job.load_codec = lambda *_, **__: codec  # type: ignore[assignment]
    cluster.connect = lambda address: None  # type: ignore[assignment]
    cluster.share = lambda *_: WorkerShape(1, 2.0, 0.0, "cpu")  # type: ignore[assignment]
    running_job.run_tasks = run_tasks  # type: ignore[assignment]


def fill(server: S3Server, count: int) -> int:
    """The same samples as files and in tars; returns their bytes."""
    fs = server.filesystem()
    files: dict[str, bytes] = {}
    for number, crop in enumerate(crops(count, 64)):
        kind, quality = ("png", None) if number % 2 else ("jpg", 90)
        files[f"{number:06d}.{kind}"] = write_image(crop, None, kind, quality=quality)
        files[f"{number:06d}.json"] = b'{"n": %d}' % number
    names = sorted(files)
    for start in range(0, len(names), 2 * PART_SAMPLES):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in names[start : start + 2 * PART_SAMPLES]:
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
        fs.pipe_file(f"{BUCKET}/tars/{start:06d}.tar", out.getvalue())
    for start in range(0, len(names), 500):
        fs.pipe({f"{BUCKET}/files/{name}": files[name] for name in names[start : start + 500]})
    return sum(map(len, files.values()))


class Watch:
    """Seconds by the clock and of this process's processor time, by what was done."""

    def __init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}

    def time(self, what: str, function: Callable[[], T]) -> T:
        clock, busy = time.perf_counter(), time.process_time()
        result = function()
        spent = time.perf_counter() - clock, time.process_time() - busy
        self.times.setdefault(what, []).append(spent)
        return result

    def figures(self) -> dict[str, list[float]]:
        """The medians of what was done, without the first time, which is slower."""
        return {
            what: [round(median(kind), 3) for kind in zip(*spent[1:], strict=True)]
            for what, spent in self.times.items()
        }


def measure(count: int, rounds: int, model: str | None) -> dict[str, Any]:
    """Seconds by the clock and of processor time of each step, and the ratios of both."""
    watch = Watch()
    with moto() as server, tempfile.TemporaryDirectory(prefix="strata-folders-") as name:
        in_this_process(Path(name), model)
        nbytes = fill(server, count)
        options = server.options()
        for number in range(rounds + 1):
            for kind in ("tars", "files"):
                url = f"{server.url}/{kind}"
                watch.time(f"list {kind}", partial(find_inputs, [url], options))
                output = str(Path(name) / f"{kind}{number}")
                job = CompressOptions((url,), output, model or "toy", input_options=options)
                summary = watch.time(f"job {kind}", partial(compress, job))
                assert (summary.ok, summary.bad) == (count, 0), summary.lines()
    found = watch.figures()
    ratios = [
        files / tars for files, tars in zip(found["job files"], found["job tars"], strict=True)
    ]
    return {
        "pictures": count,
        "bytes": nbytes,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "seconds by the clock, of processor time": found,
        "files to tars": [round(ratio, 3) for ratio in ratios],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model")
    given = parser.parse_args()
    figures = measure(given.count, given.rounds, given.model)
    print(json.dumps(figures, indent=1))
    return 1 if given.model and figures["files to tars"][1] > ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
