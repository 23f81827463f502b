"""The decoding worker: one data file in, one tar or folder of files out."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow.parquet as pq

from codec import Codec, EncodedImage
from codec.images import read_image, unpack_alpha, write_image

from .activity import Activity
from .commit import Ledger, generation_name, split_generation
from .dataset import DataFile, Dataset, OpenFile, open_dataset
from .pictures import ahead, batches_by_size, describe, one_by_one_on_error
from .plain import plain_errors
from .records import (
    MAX_LISTED_PROBLEMS,
    encoded_image,
    iter_rows,
    original_key,
    original_stands_in,
    row_bytes,
    stream_columns,
)
from .stages import StageClock
from .storage import Store, scratch_folder
from .targets import FileTarget, TarTarget, UnwritableNameError

T = TypeVar("T")

COMMITS = ".strata/commits"
# Rows held at once with their decoded pictures. A row that is larger makes a window alone.
WINDOW_BYTES = 3 << 25
WINDOW_ROWS = 256
BATCH_PIXELS = 1 << 22


@dataclass(frozen=True)
class DecodeSettings:
    """What every decoding worker is told. ``dataset`` and ``output`` are URLs.

    ``codec_options`` go to ``Codec.decode``: they say nothing of shards, batches or places, since
    a picture must come out the same wherever it is decoded. ``input_options`` (the dataset's) and
    ``output_options`` are fsspec's storage options; they may hold secrets.
    """

    dataset: str
    output: str
    fingerprint: str
    layers: int
    format: Literal["webdataset", "files"]
    image_format: str
    quality: int
    codec_options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    device: str = "cpu"
    threads: int = 1
    scratch: str | None = None
    input_options: dict[str, Any] = field(default_factory=dict, repr=False)
    output_options: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Picture:
    """A row that is to become a picture: its columns and its stream."""

    row: Mapping[str, Any]
    encoded: EncodedImage

    @property
    def size(self) -> tuple[int, int]:
        return self.encoded.height, self.encoded.width


class ShardDecoder:
    """Owns one device. ``ready`` loads the dataset's model, ``run`` decodes a data file.

    One file at a time, in windows: rows are read until they and their pictures make WINDOW_BYTES,
    their pictures are decoded, then written one by one, and only then the next are read. Beside a
    window only the rest of the row group is in memory that its last row came from.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self.activity = Activity()

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.settings.dataset, self.settings.input_options)

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.output, self.settings.output_options)

    @cached_property
    def codec(self) -> Codec:
        """The dataset's own copy of the model."""
        return self.dataset.codec(self.settings.device)

    @plain_errors
    def ready(self) -> str:
        """Load the model; returns its id. Raises DatasetError, UnknownModelError."""
        return self.codec.model_id

    def progress(self) -> dict[str, Any]:
        """What the worker is doing: files under way, busy seconds by stage, traffic, memory."""
        return self.activity.report()

    @plain_errors
    def run(self, file: DataFile) -> dict[str, Any]:
        """Decode one data file and return its commit record.

        What older generations of the file were decoded to is removed, so that no picture is there
        twice. Raises RuntimeError, for damaged pages too; StrataError as it says.
        """
        self.ready()
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        settings, store = self.settings, self.store
        base, generation = split_generation(file.name)
        as_tar = settings.format == "webdataset"
        with (
            self.activity.shard(file.name, of=file.rows),
            scratch_folder(settings.scratch) as folder,
        ):
            local = folder / "out.tar"
            counts = {"ok": 0, "bad": 0, "filtered": 0}
            problems: list[tuple[str, str, str]] = []
            target: TarTarget | FileTarget
            target = TarTarget(local) if as_tar else FileTarget(store, base, renew=generation > 0)
            for key, fields, status, reason in self._samples(file, clock):
                if fields is not None:
                    try:
                        # Files go straight into the store, a tar is sent when it is whole.
                        with clock.timed("write" if as_tar else "upload"):
                            target.write(key, fields)
                    except UnwritableNameError as error:
                        status, reason = "bad", describe(error)
                counts[status] += 1
                self.activity.add(file.name, bad=status == "bad")
                if not as_tar:
                    self.activity.transferred(written=sum(len(data) for _, data in fields or []))
                if status != "ok" and len(problems) < MAX_LISTED_PROBLEMS:
                    problems.append((key, status, reason))
            target.close()
            if sum(counts.values()) != file.rows:
                raise RuntimeError(f"{file.path}: {file.rows} rows gave {counts}")
            size = 0
            if as_tar:
                self.activity.show(file.name, stage="upload")
                with clock.timed("upload"):
                    # When the name is taken, an earlier attempt of this very plan put it there.
                    if store.create_from(f"{file.name}.tar", local):
                        self.activity.transferred(written=local.stat().st_size)
                    size = int(store.info(f"{file.name}.tar")["size"])
        record = {
            **counts,
            "rows": file.rows,
            "bytes": size,
            "problems": [(_printable(key), status, reason) for key, status, reason in problems],
            "seconds": round(time.monotonic() - started, 3),
            "stage_seconds": clock.seconds(),
        }
        record = Ledger(store, settings.fingerprint, COMMITS).commit(file.name, record)
        for older in range(generation):
            remove_decoded(store, generation_name(base, older))
        return record

    def _samples(
        self, file: DataFile, clock: StageClock
    ) -> Iterator[tuple[str, list[tuple[str, bytes]] | None, str, str]]:
        """(key, fields or None, status, reason) of every row of ``file``, in its order."""
        threads = self.settings.threads

        def finish(
            pair: tuple[Mapping[str, Any], np.ndarray | Exception],
        ) -> tuple[str, list[tuple[str, bytes]] | None, str, str]:
            with clock.timed("write", threads):
                return self._finish(*pair)

        with self.dataset.open(file) as opened, ThreadPoolExecutor(threads) as pool:
            for window in _windows(self._rows(opened, clock)):
                self.activity.show(file.name, stage="decode")
                results = self._decode_window(window, file, clock)
                window.clear()  # nobody else holds its rows now
                yield from ahead(pool, finish, _taken(results), lambda: 2 * threads)

    def _rows(self, opened: OpenFile, clock: StageClock) -> Iterator[dict[str, Any]]:
        """The rows with the columns that are needed, one row group in memory at a time."""
        metadata = ["fields", "alpha", "key_bytes", "status", "reason", "source_field", "layers"]
        layers = self.settings.layers
        columns = [*metadata, *stream_columns(layers)]
        with clock.timed("download"):
            parquet = opened.parquet
        self.activity.transferred(read=opened.file.footer_bytes)
        for group in range(parquet.num_row_groups):
            with clock.timed("download"):
                rows = deque(iter_rows(parquet, columns, [group]))
                read = columns
                if any(row["status"] == "ok" and row["layers"] < layers for row in rows):
                    originals = iter_rows(parquet, ["original"], [group])
                    rows = deque(row | kept for row, kept in zip(rows, originals, strict=True))
                    read = [*columns, "original"]
            self.activity.transferred(read=_stored_bytes(parquet.metadata.row_group(group), read))
            yield from _taken(rows)

    def _decode_window(
        self, window: list[Mapping[str, Any]], file: DataFile, clock: StageClock
    ) -> deque[tuple[Mapping[str, Any], Any]]:
        """Each row with its decoded picture, the exception that prevented it, or None.

        None is what rows without a picture have, and those whose original stands in.
        """
        results: list[Any] = [None] * len(window)
        pictures: list[tuple[int, _Picture]] = []
        for position, row in enumerate(window):
            if row["status"] == "ok" and not original_stands_in(row, self.settings.layers):
                try:
                    encoded = encoded_image(row, self.settings.layers, file.name)
                    pictures.append((position, _Picture(row, encoded)))
                    _ = encoded.info
                except Exception as error:
                    results[position] = error
        pictures = [pair for pair in pictures if results[pair[0]] is None]
        self.activity.add(file.name, samples=len(window) - len(pictures))
        sizes = [picture.size for _, picture in pictures]
        for batch in batches_by_size(sizes, self.settings.batch_size, BATCH_PIXELS):
            streams = [pictures[number][1].encoded for number in batch]
            self.activity.show(file.name, key=pictures[batch[0]][1].row["key"])
            with clock.timed("device"):
                decoded = one_by_one_on_error(self._decode_batch, streams)
            for number, result in zip(batch, decoded, strict=True):
                results[pictures[number][0]] = result
            self.activity.add(file.name, samples=len(batch))
        return deque(zip(window, results, strict=True))

    def _decode_batch(self, streams: list[EncodedImage]) -> list[np.ndarray]:
        return self.codec.decode(streams, **self.settings.codec_options)

    def _finish(
        self, row: Mapping[str, Any], result: Any
    ) -> tuple[str, list[tuple[str, bytes]] | None, str, str]:
        """The fields of a decoded sample as the tar had them, the picture in its new format."""
        key, settings = original_key(row), self.settings
        if row["status"] != "ok":
            return key, None, row["status"], row["reason"]
        if isinstance(result, Exception):
            return key, None, "bad", describe(result)
        try:
            limit = self.dataset.parameters["max_pixels"]
            if original_stands_in(row, settings.layers):
                result = read_image(row["original"], max_pixels=limit).rgb
            alpha = None if row["alpha"] is None else unpack_alpha(row["alpha"], max_pixels=limit)
            picture = write_image(result, alpha, settings.image_format, quality=settings.quality)
        except Exception as error:
            return key, None, "bad", describe(error)
        taken = {field["name"] for field in row["fields"]}
        name = image_field_name(row["source_field"], settings.image_format, taken)
        fields = [
            (name, picture) if field["data"] is None else (field["name"], field["data"])
            for field in row["fields"]
        ]
        return key, fields, "ok", ""


def remove_decoded(store: Store, name: str) -> None:
    """Remove the tar of one data file; first its record, which promises it."""
    store.remove(f"{COMMITS}/{name}.json")
    store.remove(f"{name}.tar")


def image_field_name(field: str, image_format: str, taken: set[str]) -> str:
    """The picture's field with its new extension: ``jpg`` -> ``png``, ``a.jpg`` -> ``a.png``."""
    base, dot, _ = field.rpartition(".")
    name = f"{base}{dot}{image_format}"
    while name != field and name in taken:  # the sample has such a side field
        name = f"decoded.{name}"
    return name


def _windows(rows: Iterable[dict[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in groups that memory can hold, with their pictures decoded."""
    window: list[Mapping[str, Any]] = []
    total = 0
    for row in rows:
        cost = _cost(row)
        if window and (len(window) == WINDOW_ROWS or total + cost > WINDOW_BYTES):
            yield window
            window, total = [], 0
        window.append(row)
        total += cost
    if window:
        yield window


def _cost(row: Mapping[str, Any]) -> int:
    """Bytes in memory: what was read of the row, its picture, and its alpha channel."""
    channels = 3 if row["alpha"] is None else 4
    return row_bytes(row) + channels * (row["width"] or 0) * (row["height"] or 0)


def _taken(items: deque[T]) -> Iterator[T]:
    """The items one by one, each of which is then no longer held here."""
    while items:
        yield items.popleft()


def _stored_bytes(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """What reading these columns of a row group fetches."""
    leaves = map(group.column, range(group.num_columns))
    return sum(
        leaf.total_compressed_size
        for leaf in leaves
        if leaf.path_in_schema.split(".")[0] in columns
    )


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
