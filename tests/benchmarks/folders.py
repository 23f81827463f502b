#!/usr/bin/env python
"""Small files in a folder on S3 against the same in tars: listing, and the whole job.

    python tests/benchmarks/folders.py [--count 3000] [--rounds 3] [--model uqdm] [--data px64.tar]

PNG and JPEG pictures of 64x64 in turns, or the files of the pictures in WebDataset tars (again from
the first where there are too few), each with a little JSON. The server is ``range_server.py``, in a
process of its own: it answers after 20 ms, keeps connections, and lists 1,000 names at a time, as
S3 does. Both jobs have one worker in this process, tars and folder take turns, and each tar has as
many samples as a part of a folder. Without ``--model`` the codec is a stub, so that what is
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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
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
from pipeline.sources.samples import is_picture  # noqa: E402
from tests.benchmarks.range_server import BUCKET, serving  # noqa: E402
from tests.benchmarks.scale.corpus import crops  # noqa: E402
from tests.pipeline.makers import ToyCodec  # noqa: E402

ALLOWED = 1.2
DELAY, RATE = 0.02, 50e6  # seconds before an answer, bytes a second of a connection
FIRST = 8  # pictures of the jobs that are not measured
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


def picture_files(count: int, tars: list[str]) -> Iterator[tuple[str, bytes]]:
    """The extension and content of ``count`` picture files."""
    if not tars:
        for number, crop in enumerate(crops(count, 64)):
            kind, quality = ("png", None) if number % 2 else ("jpg", 90)
            yield kind, write_image(crop, None, kind, quality=quality)
        return
    given = 0
    while given < count:
        for path in tars:
            with tarfile.open(path) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if given < count and is_picture(member.name) and content is not None:
                        yield member.name.rpartition(".")[2], content.read()
                        given += 1


def fill(folder: Path, files: Iterable[tuple[str, bytes]]) -> int:
    """The same samples in ``files`` and in ``tars``; returns their bytes."""
    total = 0
    for kind in ("files", "tars"):
        (folder / kind).mkdir(parents=True)
    numbered = enumerate(files)
    while part := list(islice(numbered, PART_SAMPLES)):
        with tarfile.open(folder / f"tars/{part[0][0]:06d}.tar", "w") as tar:
            for number, (kind, picture) in part:
                for name, data in ((kind, picture), ("json", b'{"n": %d}' % number)):
                    member = tarfile.TarInfo(f"{number:06d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                    (folder / "files" / member.name).write_bytes(data)
                    total += len(data)
    return total


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
        """The fastest of the rounds: on a busy machine everything else is noise."""
        return {
            what: [round(min(kind), 3) for kind in zip(*spent, strict=True)]
            for what, spent in self.times.items()
        }


def measure(count: int, rounds: int, model: str | None, tars: list[str]) -> dict[str, Any]:
    """Seconds by the clock and of processor time of each step, and the ratios of both."""
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="strata-folders-") as name:
        folder = Path(name)
        in_this_process(folder, model)
        nbytes = fill(folder / "store", picture_files(count, tars))
        fill(folder / "store/first", picture_files(FIRST, tars))
        with serving(folder / "store", DELAY, RATE) as (endpoint, counted):
            options = {"endpoint_url": endpoint, "key": "key", "secret": "secret"}

            def job(url: str, output: str, wanted: int) -> None:
                given = CompressOptions((url,), output, model or "toy", input_options=options)
                summary = compress(given)
                assert (summary.ok, summary.bad) == (wanted, 0), summary.lines()

            for kind in ("tars", "files"):  # the first of a process takes longer
                job(f"s3://{BUCKET}/first/{kind}", str(folder / f"first-{kind}"), FIRST)
            asked = {}
            for number in range(rounds):
                for kind in ("tars", "files"):
                    url, output = f"s3://{BUCKET}/{kind}", str(folder / f"{kind}{number}")
                    watch.time(f"list {kind}", partial(find_inputs, [url], options))
                    counted()
                    watch.time(f"job {kind}", partial(job, url, output, count))
                    asked[kind], _ = counted()
    found = watch.figures()
    ratios = [
        files / tars for files, tars in zip(found["job files"], found["job tars"], strict=True)
    ]
    return {
        "pictures": count,
        "bytes": nbytes,
        "requests of a job": asked,
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
    parser.add_argument("--data", nargs="+", default=[], help="tars with pictures to take")
    given = parser.parse_args()
    figures = measure(given.count, given.rounds, given.model, given.data)
    print(json.dumps(figures, indent=1))
    return 1 if given.model and figures["files to tars"][1] > ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
