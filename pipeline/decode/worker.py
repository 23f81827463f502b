"""The worker of a decode job: decodes a data file to a tar, a table or a folder of files."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from codec import Codec, EncodedImage
from codec.batches import batches_by_size, one_by_one_on_error, taken, windows
from codec.errors import StrataError

from ..dataset.facts import Refusals
from ..dataset.layout import generation_name, record_path, split_generation
from ..dataset.ledger import Ledger
from ..dataset.rows import encoded_image, row_bytes
from ..reader.dataset import DataFile
from ..running.stages import StageClock
from ..running.worker_errors import picklable_errors
from ..sources.samples import tar_key
from ..stores.reasons import describe
from ..stores.store import Store, scratch_folder
from ..stores.threads import ahead
from .dataset_worker import DatasetWorker, HandOutSettings
from .request import written_quality
from .samples import COUNTS, Form, Sample, finished
from .selection import Chosen, Selection, timed
from .tables import TableTarget
from .targets import (
    DECODE_COMMITS,
    PACKED,
    FileTarget,
    TarTarget,
    UnwritableNameError,
    printable,
    publish_packed,
)

# Limits of a window: rows in memory with their decoded pictures. A larger row is a window alone.
WINDOW_BYTES = 3 << 25
WINDOW_ROWS = 256
BATCH_PIXELS = 1 << 22
SYSTEMATIC = 8  # so many failures in a row mean that the device is broken, not the pictures
_COLUMNS = (
    *("fields", "alpha", "key_bytes", "status", "reason", "source_field", "source_format"),
    *("layers", "cumulative_bytes"),
)


class ShardDecoder(DatasetWorker):
    """Decodes data files on one device: ``ready`` loads the model, ``run`` decodes a file.

    It takes one file at a time, in windows. Rows are read until they and their pictures have
    WINDOW_BYTES. Then the pictures are decoded and written one by one, and only then the next rows
    are read. Besides a window, only the rest of its last row group is in memory.
    """

    def __init__(self, settings: HandOutSettings) -> None:
        super().__init__(settings)
        self._failing = 0  # pictures that failed since the last success

    @cached_property
    def codec(self) -> Codec:
        """The dataset's own copy of the model."""
        codec = self.dataset.codec(self.settings.device, self.settings.scratch)
        codec.max_pixels = self.settings.options.max_pixels or codec.max_pixels
        return codec

    @picklable_errors
    def ready(self) -> str:
        """Load the model; returns its id. Raises DatasetError, UnknownModelError."""
        return self.codec.model_id

    @cached_property
    def form(self) -> Form:
        options = self.settings.options
        limit = options.max_pixels or self.dataset.parameters["max_pixels"]
        return Form(
            options.image_format,
            written_quality(options),
            options.max_side,
            limit,
            options.includes_side_pictures,
        )

    @cached_property
    def selection(self) -> Selection:
        return Selection(self.dataset, self.settings.rule, _COLUMNS, self.settings.condition)

    @picklable_errors
    def run(self, file: DataFile, keys: Sequence[str] | None = None) -> dict[str, Any]:
        """Decode a data file, or its rows with one of the ``keys``; returns its commit record.

        The output of older generations of the file is removed, so no picture is there twice. If no
        row is selected, there is a record but no tar. Raises StrataError; RuntimeError for other
        faults, also if the device seems to fail.
        """
        self.ready()
        self._failing = 0
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        settings, store = self.settings, self.store
        ledger = Ledger(store, settings.fingerprint, DECODE_COMMITS)
        base, generation = split_generation(file.name)
        suffix = PACKED.get(settings.options.format, "")
        with (
            self.activity.shard(file.name, of=file.rows),
            scratch_folder(settings.scratch) as folder,
        ):
            local = folder / f"out{suffix}"
            statuses, totals, refusals = Counter[str](), Counter[str](), Refusals()
            target: TarTarget | TableTarget | FileTarget
            if settings.options.format == "parquet":
                target = TableTarget(local, settings.columns)
            else:
                before = (generation_name(base, number) for number in range(generation))
                tidy = not suffix and any(map(ledger.exists, before))
                target = TarTarget(local) if suffix else FileTarget(store, base, tidy)
            for sample in self._samples(file, keys, clock):
                status, reason = sample.status, sample.reason
                if sample.fields is not None:
                    try:
                        # Files are written to the store at once, a tar or table when it is whole.
                        with clock.timed("write" if suffix else "upload"):
                            key = tar_key(sample.key) if suffix == ".tar" else sample.key
                            target.write(key, sample.fields, sample.picture)
                        totals.update(sample.counts)
                    except UnwritableNameError as error:
                        status, reason = "bad", f"its name cannot be written: {error}"
                statuses[status] += 1
                self.activity.add(file.name, bad=status == "bad")
                if not suffix:
                    written = sum(len(data) for _, data in sample.fields or [])
                    self.activity.transferred(written=written)
                if status != "ok":
                    refusals.add(printable(sample.key), status, reason)
            target.close()
            rows = statuses.total()
            if keys is None and not settings.condition and rows != file.rows:
                raise RuntimeError(f"{file.path}: {file.rows} rows gave {dict(statuses)}")
            size = 0
            if suffix and rows:
                self.activity.show(file.name, stage="upload")
                with clock.timed("upload"):
                    publish_packed(store, ledger, file.name, suffix, local, folder)
                size = local.stat().st_size
                self.activity.transferred(written=size)
        record = {
            **{status: statuses[status] for status in ("ok", "bad", "filtered")},
            **{name: totals[name] for name in COUNTS},
            "rows": rows,
            "bytes": size,
            **refusals.facts(),
            "seconds": round(time.monotonic() - started, 3),
            "stage_seconds": clock.seconds(),
        }
        record = ledger.commit(file.name, record)
        for older in range(generation):
            remove_decoded(store, generation_name(base, older), suffix)
        return record

    def _samples(
        self, file: DataFile, keys: Sequence[str] | None, clock: StageClock
    ) -> Iterator[Sample]:
        """The samples of the selected rows of ``file``, in its order."""
        threads = self.settings.threads

        def finish(pair: tuple[Chosen, np.ndarray | Exception | None]) -> Sample:
            with clock.timed("write", threads):
                return finished(*pair, self.form)

        with self.dataset.open(file) as opened, ThreadPoolExecutor(threads) as pool:
            rows = self.selection.rows(
                opened, keys, lambda count: self.activity.transferred(read=count)
            )
            for window in windows(timed(rows, clock), _cost, WINDOW_BYTES, WINDOW_ROWS):
                self.activity.show(file.name, stage="decode")
                results = self._decode_window(window, file, clock)
                window.clear()  # now only the results hold its rows
                yield from ahead(pool, finish, taken(results), lambda: 2 * threads)

    def _decode_window(
        self, window: list[Chosen], file: DataFile, clock: StageClock
    ) -> list[tuple[Chosen, np.ndarray | Exception | None]]:
        """Each row with its decoded picture, or the exception, or None.

        Rows without a picture have None, and so have those whose original replaces layers. Streams
        with the same number of layers are decoded together.
        """
        results: list[np.ndarray | Exception | None] = [None] * len(window)
        streams: dict[int, EncodedImage] = {}
        alike: dict[int, list[int]] = defaultdict(list)
        for position, chosen in enumerate(window):
            if chosen.is_picture and not chosen.by_original:
                try:
                    stream = encoded_image(chosen.row, chosen.take.layers, file.name)
                    _ = stream.info
                except Exception as error:
                    results[position] = error
                else:
                    streams[position] = stream
                    alike[stream.num_layers].append(position)
        self.activity.add(file.name, samples=len(window) - len(streams))
        for _, positions in sorted(alike.items()):
            sizes = [(streams[one].height, streams[one].width) for one in positions]
            for batch in batches_by_size(sizes, self.settings.batch_size, BATCH_PIXELS):
                numbers = [positions[number] for number in batch]
                self.activity.show(file.name, key=window[numbers[0]].row["key"])
                with clock.timed("device"):
                    chosen_streams = [streams[number] for number in numbers]
                    decoded = one_by_one_on_error(self._decode_batch, chosen_streams)
                for number, result in zip(numbers, decoded, strict=True):
                    results[number] = result
                    self._watch(result)
                self.activity.add(file.name, samples=len(batch))
        return list(zip(window, results, strict=True))

    def _watch(self, result: np.ndarray | Exception) -> None:
        """Raise RuntimeError after SYSTEMATIC failures, because pictures must not be bad if the
        device is broken.
        """
        if not isinstance(result, Exception):
            self._failing = 0
        elif not isinstance(result, StrataError):  # a StrataError is the stream's own fault
            self._failing += 1
            if self._failing == SYSTEMATIC:
                raise RuntimeError(f"no picture could be decoded: {describe(result)}")

    def _decode_batch(self, streams: list[EncodedImage]) -> list[np.ndarray]:
        options = self.settings.options
        if options.max_side is None:
            return self.codec.decode(streams, **options.codec_options)
        return self.codec.decode_small(streams, max_side=options.max_side, **options.codec_options)


def remove_decoded(store: Store, name: str, suffix: str) -> None:
    """Remove the tar or table of one data file, after its record."""
    store.remove(record_path(name, DECODE_COMMITS))
    if suffix:
        store.remove(f"{name}{suffix}")


def _cost(chosen: Chosen) -> int:
    """Bytes in memory: the row, its picture and its alpha channel."""
    row = chosen.row
    channels = 3 if row["alpha"] is None else 4
    return row_bytes(row) + channels * (row["width"] or 0) * (row["height"] or 0)
