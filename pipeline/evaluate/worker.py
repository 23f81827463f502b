"""The worker of an evaluation: measures a contender on some pictures and writes one record."""

import platform
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from codec import Codec
from codec.batches import one_by_one_on_error, windows
from codec.errors import StrataError
from codec.images.files import read_image

from ..dataset.ledger import Ledger
from ..dataset.models import load_model
from ..running.options import OptionError
from ..running.stages import StageClock
from ..running.worker import Worker, WorkerSettings
from ..running.worker_errors import picklable_errors
from ..sources.samples import MAX_SAMPLE_BYTES, Sample
from ..sources.shards import Shard, ShardFile, open_shard
from ..stores.reasons import describe
from ..stores.store import scratch_folder
from ..stores.threads import ahead
from .bench import Bench, Loaded, Measured, rgb_of
from .contenders import Contender
from .gallery import crops
from .measuring import METRICS, Original, installed

RECORDS = "records"
MAX_RECORD_BYTES = 1 << 26  # records of shown pictures hold crops
BATCH_PIXELS = 1 << 22
KEPT_MODELS = 3
MAX_PIXELS = 1 << 24  # of a picture: SSIMULACRA2 takes 535 bytes of memory per pixel
NO_PICTURE = "there is no picture in the sample"


@dataclass(frozen=True)
class EvaluationTask:
    """Samples ``start`` to ``stop`` of a shard, to be measured with one contender.

    With ``rates``, the task instead makes crops for the report with all contenders at these rates.
    """

    name: str
    shard: Shard
    start: int
    stop: int
    contenders: tuple[Contender, ...]
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class EvaluateSettings(WorkerSettings):
    """Settings of every worker. ``metrics`` are names in ``METRICS``."""

    output: str
    fingerprint: str
    metrics: tuple[str, ...]


class Evaluator(Worker[EvaluateSettings]):
    """Measures tasks on one device. Loads models when they are needed."""

    def __init__(self, settings: EvaluateSettings) -> None:
        super().__init__(settings)
        self._codecs: OrderedDict[str, Codec] = OrderedDict()
        self._held: tuple[Shard, ShardFile] | None = None
        self._holding = ExitStack()

    @picklable_errors
    def ready(self) -> str:
        """Raises OptionError if a program or package that the driver has is missing here."""
        if lacking := set(self.settings.metrics) - set(installed()):
            raise OptionError(
                f"{platform.node()} cannot measure {', '.join(lacking)}: install what the driver "
                "has"
            )
        return "ready"

    @picklable_errors
    def run(self, task: EvaluationTask, skip: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Measure a task, record it, and return the record's counts.

        ``skip`` has samples to leave out, by position in the task, each with the reason. Raises
        ShardError for a damaged shard; RuntimeError if a model fails with all of several pictures,
        because then the pictures are not at fault.
        """
        ledger = Ledger(self.store, self.settings.fingerprint, RECORDS, most=MAX_RECORD_BYTES)
        standing = ledger.read(task.name)
        if standing is not None:
            return {**_counts(standing), "found": True}
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        with self.activity.shard(task.name, of=task.stop - task.start):
            record = self._measure(task, range(task.stop - task.start), skip or {}, clock)
        record |= {
            "task": _identity(task),
            "seconds": round(time.monotonic() - started, 3),
            "stage_seconds": clock.seconds(),
            "node": platform.node(),
            "device": self.settings.device,
        }
        return _counts(ledger.commit(task.name, record))

    @picklable_errors
    def probe(
        self, task: EvaluationTask, start: int, stop: int, skip: Mapping[int, str] | None = None
    ) -> int:
        """Measure some samples of a task without a record, to find the one that kills a worker.

        Returns how many samples the task has.
        """
        with self.activity.shard(task.name, of=stop - start):
            numbers = range(task.stop - task.start)[start:stop]
            self._measure(task, numbers, skip or {}, StageClock(self.activity.clock), strict=False)
        return task.stop - task.start

    def _measure(
        self,
        task: EvaluationTask,
        numbers: Iterable[int],
        skip: Mapping[int, str],
        clock: StageClock,
        *,
        strict: bool = True,
    ) -> dict[str, Any]:
        pictures: list[dict[str, Any]] = []
        failed: list[tuple[int, str, str]] = []
        filtered: list[tuple[int, str, str]] = []
        foreign: Exception | None = None
        with ThreadPoolExecutor(self.settings.threads) as pool:
            for window in self._windows(task, numbers, skip, clock, pool):
                found = [one for one in window if one.rgb is not None]
                results = self._results(task, found, clock, pool)
                by_index = dict(zip((one.index for one in found), results, strict=True))
                for one in window:
                    result = by_index.get(one.index)
                    if one.filtered:
                        filtered.append((one.index, one.key, one.filtered))
                    elif result is None:
                        failed.append((one.index, one.key, one.problem))
                    elif isinstance(result, Exception):
                        failed.append((one.index, one.key, describe(result)))
                        foreign = foreign if isinstance(result, StrataError) else result
                    else:
                        pictures.append(result)
                    bad = not one.filtered and not isinstance(result, dict)
                    self.activity.add(task.name, samples=1, bad=bad)
        of_model = len(task.contenders) == 1 and task.contenders[0].is_model
        if strict and of_model and foreign and not pictures and len(failed) > 1:
            raise RuntimeError(f"no picture could be measured: {describe(foreign)}")
        return {
            "contenders": [contender.to_json() for contender in task.contenders],
            "ok": len(pictures),
            "bad": len(failed),
            "filtered": len(filtered),
            "rows": len(pictures) + len(failed) + len(filtered),
            "pictures": pictures,
            "failed": failed,
            "left_out": filtered,
        }

    def _results(
        self,
        task: EvaluationTask,
        found: list[Loaded],
        clock: StageClock,
        pool: ThreadPoolExecutor,
    ) -> list[dict[str, Any] | Exception]:
        """The record of each picture, or its error."""
        if task.rates:
            return one_by_one_on_error(
                lambda ones: [
                    {
                        "key": one.key,
                        "rates": crops(rgb_of(one), task.contenders, task.rates, self._codec),
                    }
                    for one in ones
                ],
                found,
            )
        (contender,), settings = task.contenders, self.settings
        bench = Bench(contender, self._codec, clock, pool, settings.threads, settings.metrics)
        measured = zip(found, bench.measure(found), strict=True)
        pooled = any(METRICS[name].pooled for name in settings.metrics)
        return [
            rows if isinstance(rows, Exception) else _record(one, rows, pooled)
            for one, rows in measured
        ]

    # -- pictures ---------------------------------------------------------------------------------

    def _windows(
        self,
        task: EvaluationTask,
        numbers: Iterable[int],
        skip: Mapping[int, str],
        clock: StageClock,
        pool: ThreadPoolExecutor,
    ) -> Iterator[list[Loaded]]:
        """The task's samples in batches of limited size, so that memory is enough."""
        with clock.timed("download"):
            file = self._open(task.shard)
        samples = file.samples[task.start : task.stop]

        def load(number: int) -> Loaded:
            with clock.timed("decode", self.settings.threads):
                return _load(file, task.start + number, samples[number], skip.get(number))

        loaded = ahead(pool, load, numbers, lambda: self.settings.threads)
        return windows(
            loaded,
            lambda one: 0 if one.rgb is None else one.rgb.shape[0] * one.rgb.shape[1],
            BATCH_PIXELS,
            self.settings.batch_size,
        )

    def _open(self, shard: Shard) -> ShardFile:
        """The shard as a local file, which stays open until another shard is opened."""
        if self._held is None or self._held[0] != shard:
            self._held = None
            self._holding.close()  # raises if the shard has changed meanwhile
            scratch = self._holding.enter_context(scratch_folder(self.settings.scratch))
            settings = self.settings
            opened = open_shard(shard, scratch, settings.input_options, settings.gzip)
            self._held = shard, self._holding.enter_context(opened)
            self.activity.transferred(read=shard.size)
        return self._held[1]

    def _codec(self, model_id: str) -> Codec:
        if model_id not in self._codecs:
            settings = self.settings
            while len(self._codecs) >= KEPT_MODELS:
                self._codecs.popitem(last=False)
            self._codecs[model_id] = load_model(
                settings.output,
                model_id,
                settings.device,
                settings.output_options,
                settings.scratch,
            )
        self._codecs.move_to_end(model_id)
        return self._codecs[model_id]


def _load(file: ShardFile, index: int, sample: Sample, skip: str | None) -> Loaded:
    key = sample.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if sample.filtered:
        return Loaded(index, key, filtered=sample.filtered)
    problem = sample.problem or skip
    name = sample.image_field
    if problem or name is None:
        return Loaded(index, key, problem=problem or NO_PICTURE)
    member = dict(sample.fields)[name]
    if member.size > MAX_SAMPLE_BYTES:
        return Loaded(index, key, problem=f"its file is too large: {member.size} bytes")
    try:
        picture = read_image(file.read(member), max_pixels=MAX_PIXELS)
    except StrataError as error:
        return Loaded(index, key, problem=describe(error))
    return Loaded(index, key, np.ascontiguousarray(picture.rgb), picture.alpha is not None)


def _record(one: Loaded, result: Measured, pooled: bool) -> dict[str, Any]:
    image = rgb_of(one)
    statistics = Original(image, ()).statistics() if pooled else None
    return {
        "statistics": statistics,
        "key": one.key,
        "index": one.index,
        "width": image.shape[1],
        "height": image.shape[0],
        "alpha": one.alpha,
        "points": {point.key: row for point, row in result.items()},
    }


def _identity(task: EvaluationTask) -> dict[str, Any]:
    return {"shard": task.shard.url, "start": task.start, "stop": task.stop}


def _counts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the driver needs at once. The figures stay in the store."""
    reasons: dict[str, int] = {}
    for _, _, reason in record["failed"]:
        short = reason.split(":", 1)[0]
        reasons[short] = reasons.get(short, 0) + 1
    names = ("ok", "bad", "filtered", "rows", "seconds", "stage_seconds")
    return {name: record[name] for name in names} | {"reasons": reasons}
