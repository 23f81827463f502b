"""The worker of a compress job: compresses a shard to a data file, publishes and records it.

While a shard is encoded, its rows are saved every few minutes (``saved_rows.py``). Arguments and
results are small (URLs and counts): pictures never pass through Ray's object store.

``run`` may be called from several threads at once. Each of its three stages has a lock, so one
shard is fetched and another published while a third is encoded::

    run(a):  fetch ─► encode ─► publish
    run(b):           fetch  ─► encode  ─► publish
    run(c):                     fetch   ─► encode ...
"""

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from codec import EncodedImage
from codec.images.files import read_image

from ..dataset.deletions import Deletions, printable_key
from ..dataset.facts import FileFacts, inspect_file
from ..dataset.layout import generation_name
from ..dataset.ledger import Ledger
from ..dataset.models import load_model
from ..dataset.parquet import ParquetFile
from ..dataset.publisher import Publisher
from ..dataset.records import slim
from ..dataset.rows import Row, RowWriter, iter_rows, schema
from ..running.stages import StageClock, Turn
from ..running.tasks import PausedError
from ..running.worker import Worker
from ..running.worker_errors import picklable_errors
from ..sources.shards import Shard, ShardFile, open_shard
from ..sources.tar_members import ShardError
from ..stores.store import scratch_folder
from .encoder import SampleEncoder
from .sampling import sampled_quality
from .saved_rows import SavedRows
from .settings import CompressSettings


@dataclass(frozen=True)
class ShardJob:
    """A shard to compress.

    ``generation`` counts the files that a shard has had. With ``previous`` (the path of a data
    file of an earlier generation) only the samples that are bad there are encoded again.
    """

    name: str
    shard: Shard
    generation: int = 0
    previous: str | None = None


class ShardCompressor(Worker[CompressSettings]):
    """Owns one device: ``ready`` loads the model, ``run`` compresses a shard."""

    def __init__(self, settings: CompressSettings) -> None:
        super().__init__(settings)
        self._fetching, self._encoding, self._publishing = Turn(), Turn(), Turn()
        self._pausing = threading.Event()

    @cached_property
    def encoder(self) -> SampleEncoder:
        """The encoder with the dataset's own copy of the model, loaded once."""
        settings = self.settings
        codec = load_model(
            settings.output,
            settings.model_id,
            settings.device,
            settings.output_options,
            settings.scratch,
        )
        return SampleEncoder(codec, settings)

    @cached_property
    def deletions(self) -> Deletions:
        """The deleted samples of the dataset, which must not come back."""
        return Deletions(self.store)

    @picklable_errors
    def ready(self) -> str:
        """Load the model; returns its id. Raises UnknownModelError, InvalidModelError."""
        return self.encoder.codec.model_id

    @picklable_errors
    def run(self, job: ShardJob, skip: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Compress a shard into its data file and return the commit record.

        ``skip`` has samples to leave out, by number, each with the reason; they become bad rows. If
        another job has recorded the shard meanwhile, its record is returned, with ``found``. Raises
        ShardError for a damaged shard, StorageError if a damaged file has its name. After a
        RuntimeError another attempt may succeed.
        """
        self.ready()
        name = generation_name(job.name, job.generation)
        ledger = Ledger(self.store, self.settings.fingerprint)
        standing = ledger.read(name)
        if standing is not None:
            return {**slim(standing), "found": True}
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        with self._place(job.name) as scratch, ExitStack() as fetched:
            saved = SavedRows(self.store, name, scratch)
            file, previous = self._fetch(job, scratch, fetched, clock, saved)
            with self._stage(self._encoding, job.name, "encode"):
                local = scratch / f"{name}.parquet"
                self._encode(job, file, previous, saved, local, clock, skip or {})
                with clock.timed("check"):
                    quality = self._quality(file, local)
            samples = len(file.samples)
            fetched.close()  # publishing does not need the shard
            with self._stage(self._publishing, job.name, "upload"):
                with clock.timed("check"):
                    facts = self._inspect(local)
                    improved = previous is None or facts.ok > self._inspect(previous).ok
                if facts.rows != samples:
                    raise RuntimeError(f"{job.shard.url}: {samples} samples gave {facts.rows} rows")
                if not improved:
                    saved.remove()
                    before = ledger.read(Path(job.previous or "").stem) or {}
                    return {**slim(before), "unchanged": True}
                publisher = Publisher(
                    self.store,
                    ledger,
                    self.settings.layers,
                    clock,
                    lambda count: self.activity.transferred(written=count),
                )
                record = {
                    **publisher.publish(name, local, facts, scratch),
                    "quality": quality,
                    "source": _source(job.shard),
                    "model_id": self.settings.model_id,
                    "seconds": round(time.monotonic() - started, 3),
                    "stage_seconds": clock.seconds(),
                    "node": platform.node(),
                }
                if file.deleted:
                    record["deleted"] = len(file.deleted)
                committed = slim(ledger.commit(name, record))
                saved.remove()
                return committed

    def pause(self) -> None:
        """Save the rows of the running shard after its next row; then ``run`` raises PausedError.

        Waiting shards raise it, too. A shard that is being published is finished.
        """
        self._pausing.set()

    @picklable_errors
    def probe(
        self, job: ShardJob, start: int, stop: int, skip: Mapping[int, str] | None = None
    ) -> int:
        """Encode the samples ``start`` to ``stop`` but write nothing.

        Returns the number of samples in the shard. If the worker dies, the driver knows that one of
        these samples is the reason.
        """
        self.ready()
        clock = StageClock(self.activity.clock)
        with self._place(job.name) as scratch, ExitStack() as fetched:
            file, _ = self._fetch(replace(job, previous=None), scratch, fetched, clock)
            numbered = list(enumerate(file.samples))[start:stop]
            with self._stage(self._encoding, job.name, "encode"):
                rows = self.encoder.rows(
                    file, numbered, clock, *self._counting(job.name), skip=skip, strict=False
                )
                for _ in rows:
                    pass
            return len(file.samples)

    def _fetch(
        self,
        job: ShardJob,
        scratch: Path,
        fetched: ExitStack,
        clock: StageClock,
        saved: SavedRows | None = None,
    ) -> tuple[ShardFile, Path | None]:
        """Hold the shard as a local file, and its earlier data file if that is needed."""
        with self._stage(self._fetching, job.name, "download"), clock.timed("download"):
            self._end_if_pausing(job)
            settings = self.settings
            opened = open_shard(
                job.shard, scratch, settings.input_options, settings.gzip, settings.columns
            )
            file = fetched.enter_context(opened)
            file.leave_out(partial(self.deletions.read().deletes, job.name))
            previous = None
            if job.previous is not None:
                previous = scratch / "previous.parquet"
                self.store.fetch(job.previous, previous)
            if saved is not None:
                saved.fetch()
                saved.keep_if_of([printable_key(one.key) for one in file.samples])
        self.activity.transferred(read=job.shard.size)
        self.activity.show(job.name, of=len(file.samples))
        return file, previous

    def _encode(
        self,
        job: ShardJob,
        file: ShardFile,
        previous: Path | None,
        saved: SavedRows,
        local: Path,
        clock: StageClock,
        skip: Mapping[int, str],
    ) -> None:
        """Write every sample of the shard as a row of ``local``."""
        self._end_if_pausing(job)
        metadata = {
            "fingerprint": self.settings.fingerprint,
            "model_id": self.settings.model_id,
            "source": _source(job.shard),
        }
        layers, samples = self.settings.layers, len(file.samples)
        part, count = local.with_suffix(".part"), 0
        writer = RowWriter(part, layers, metadata)
        began = time.monotonic()
        for row in self._rows(job, file, previous, saved.rows, clock, skip):
            writer.copy(row)
            count += 1
            due = time.monotonic() - began >= self.settings.save_seconds or self._pausing.is_set()
            if due and saved.rows + count < samples:
                writer.close()
                saved.add(part, count)
                self._end_if_pausing(job)
                part, count = local.with_suffix(f".{saved.rows}.part"), 0
                writer = RowWriter(part, layers, metadata)
                began = time.monotonic()
        writer.close()
        if not saved.rows:
            part.rename(local)
            return
        whole = RowWriter(local, layers, metadata)
        for row in chain(saved, iter_rows(ParquetFile(part), schema(layers).names)):
            whole.copy(row)
        whole.close()

    def _rows(
        self,
        job: ShardJob,
        file: ShardFile,
        previous: Path | None,
        start: int,
        clock: StageClock,
        skip: Mapping[int, str],
    ) -> Iterator[dict[str, Any]]:
        """The rows of the shard from ``start`` on, for ``RowWriter.copy``."""
        layers, on_progress = self.settings.layers, self._counting(job.name)
        numbered = list(enumerate(file.samples))[start:]
        if previous is None:
            self.activity.show(job.name, of=len(numbered))
            for row in self.encoder.rows(file, numbered, clock, *on_progress, skip=skip):
                yield row.columns(layers)
            return
        old = ParquetFile(previous)

        deleted = {printable_key(sample.key) for sample in file.deleted}

        def stays(row: Mapping[str, Any]) -> bool:
            return row["key"] not in deleted

        states = [row["status"] for row in filter(stays, iter_rows(old, ["status", "key"]))]
        if len(states) != len(file.samples):
            raise ShardError(
                f"{job.shard.url}: has {len(file.samples)} samples, and had "
                f"{len(states)} when it was compressed"
            )
        again = [(n, sample) for n, sample in numbered if states[n] == "bad"]
        self.activity.show(job.name, of=len(again))
        rows = self.encoder.rows(file, again, clock, *on_progress, skip=skip, strict=False)
        kept = filter(stays, iter_rows(old, schema(layers).names))
        for number, columns in enumerate(islice(kept, start, None), start):
            if columns["status"] == "bad":
                columns = next(rows).columns(layers)
            yield columns | {"index": number}

    def _end_if_pausing(self, job: ShardJob) -> None:
        if self._pausing.is_set():
            raise PausedError(f"{job.name}: the job stops; its next run goes on with this shard")

    def _inspect(self, local: Path) -> FileFacts:
        return inspect_file(local, self.settings.layers)

    def _quality(self, file: ShardFile, local: Path) -> dict[str, list[float | None]]:
        """The quality of some pictures of the finished file, compared with the shard's."""
        encoder = self.encoder

        def original(number: int) -> np.ndarray | None:
            sample = file.samples[number]
            member = dict(sample.fields).get(sample.image_field or "")
            if sample.problem or member is None or member.problem:
                return None
            data = file.read(member)
            return read_image(data, max_pixels=self.settings.max_pixels).rgb

        def decode(stream: EncodedImage) -> np.ndarray:
            (picture,) = encoder.on_device(encoder.codec.decode, [stream])
            return picture

        return sampled_quality(local, self.settings.layers, decode, original)

    # -- what the driver sees ---------------------------------------------------------------------

    @contextmanager
    def _place(self, name: str) -> Iterator[Path]:
        """A local folder for a shard, which the driver sees inside the block."""
        sizes = {"picture_bytes": 0, "stream_bytes": 0}
        shown = self.activity.shard(name, stage="wait", **sizes)
        with shown, scratch_folder(self.settings.scratch) as scratch:
            yield scratch

    @contextmanager
    def _stage(self, turn: Turn, name: str, stage: str) -> Iterator[None]:
        """Hold a stage. Only one shard at a time can."""
        with turn:
            self.activity.show(name, stage=stage)
            try:
                yield
            finally:
                self.activity.show(name, stage="wait")

    def _counting(self, name: str) -> tuple[Callable[[list[Row]], None], Callable[[int], None]]:
        """Callbacks that count coded pictures and finished rows for the driver.

        A picture counts as soon as it is coded; another sample counts when its row is finished.
        """
        lock = threading.Lock()
        announced = shown = finished = 0

        def count(*, coded: int = 0, rows: int = 0) -> None:
            nonlocal announced, shown, finished
            with lock:
                announced += coded
                finished += rows
                more = max(announced, finished) - shown
                shown += more
            self.activity.add(name, samples=more)

        def on_rows(rows: list[Row]) -> None:
            if not rows:
                return
            encoded = [row for row in rows if row.encoded is not None]
            count(coded=len(rows) - len(encoded), rows=len(rows))
            self.activity.show(name, key=rows[-1].key)
            self.activity.add(
                name,
                bad=sum(row.status == "bad" for row in rows),
                picture_bytes=sum(row.source_bytes or 0 for row in encoded),
                stream_bytes=sum(map(_stored_bytes, encoded)),
            )

        return on_rows, lambda coded: count(coded=coded)


def _stored_bytes(row: Row) -> int:
    """The bytes in the dataset that replace the picture's file."""
    stream = row.encoded.nbytes if row.encoded is not None else 0
    return stream + len(row.alpha or b"") + len(row.original or b"")


def _source(shard: Shard) -> dict[str, Any]:
    return {"url": shard.url, "size": shard.size, "etag": shard.etag}
