"""The compressing worker: one shard in, one Parquet file out, published and recorded.

It is a plain class, so it can be tested and used without Ray; the scheduler makes it an actor.
Its arguments and results are small (URLs and counts): picture bytes never enter the object store.
"""

import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from codec import Codec, EncodedImage, load_codec
from codec.errors import CorruptStreamError, InvalidModelError
from codec.images import MAX_PIXELS, pack_alpha, read_image
from codec.zoo import MODEL_FILE

from .commit import Ledger
from .pictures import (
    ahead,
    batches_by_size,
    check_codec_result,
    describe,
    layers_worth_storing,
    one_by_one_on_error,
)
from .records import (
    Row,
    RowWriter,
    Status,
    encoded_image,
    inspect_file,
    iter_rows,
    stream_columns,
)
from .shards import Sample, Shard, ShardFile, open_shard
from .storage import Store, scratch_folder

KEEP_BAD_BYTES = 1 << 20  # broken pictures up to this size are kept, so that nothing is lost
# Pictures held decoded at once, twice (the window being encoded and what is read ahead): 96 MB.
WINDOW_PIXELS = 1 << 25
WINDOW_ROWS = 256
BATCH_PIXELS = 1 << 22
SYSTEMATIC = 8  # so many failures and no success in one window: the codec is broken, not pictures


@dataclass(frozen=True)
class CompressSettings:
    """What every compressing worker is told. ``output`` is the dataset's URL.

    ``layers`` is the number of layer columns; with ``fit`` each picture stores the most of them
    that are not larger than its file, otherwise all. ``codec_options`` go to ``Codec.encode``.
    """

    output: str
    fingerprint: str
    model_id: str
    layers: int
    fit: bool
    codec_options: dict[str, Any] = field(default_factory=dict)
    min_side: int = 0
    max_pixels: int = MAX_PIXELS
    batch_size: int = 32
    device: str = "cpu"
    threads: int = 1
    scratch: str | None = None


@dataclass(frozen=True)
class _Loaded:
    """A sample on its way: its row so far, and the picture if there is one to encode."""

    row: Row
    rgb: np.ndarray | None = None

    @property
    def pixels(self) -> int:
        return 0 if self.rgb is None else self.rgb.shape[0] * self.rgb.shape[1]


class ShardCompressor:
    """Owns one device: ``ready`` loads the model, ``run`` does a shard; ``progress`` is polled."""

    def __init__(self, settings: CompressSettings) -> None:
        self.settings = settings
        self._progress: dict[str, Any] = {}
        self._lock = threading.Lock()

    @cached_property
    def codec(self) -> Codec:
        """The dataset's own copy of the model, loaded once."""
        settings = self.settings
        return load_model(settings.output, settings.model_id, settings.device)

    def ready(self) -> str:
        """Load the model; returns its id. Raises UnknownModelError, InvalidModelError."""
        return self.codec.model_id

    def progress(self) -> dict[str, Any]:
        """Counts of the shard under way (samples, of, picture_bytes, stream_bytes, key)."""
        with self._lock:
            return dict(self._progress)

    def run(self, name: str, shard: Shard) -> dict[str, Any]:
        """Compress ``shard`` into ``data/<name>.parquet`` and return its commit record.

        Raises ShardError for a damaged shard; other exceptions may pass with another attempt.
        """
        self.ready()
        started, cpu_started = time.monotonic(), time.process_time()
        store = Store(self.settings.output)
        with scratch_folder(self.settings.scratch) as scratch:
            local = scratch / f"{name}.parquet"
            samples = self._encode(shard, local, scratch)
            facts = inspect_file(local, self.settings.layers)
            if facts.rows != samples:
                raise RuntimeError(f"{shard.url}: {samples} samples gave {facts.rows} rows")
            self._decode_one(local)
            path = f"data/{name}.parquet"
            if not store.create_from(path, local):
                # An earlier attempt published and died before its record: its file stands.
                store.fetch(path, local)
                facts = inspect_file(local, self.settings.layers)
        record = {
            **facts.to_json(),
            "source": {"url": shard.url, "size": shard.size, "etag": shard.etag},
            "model_id": self.settings.model_id,
            "seconds": round(time.monotonic() - started, 3),
            "cpu_seconds": round(time.process_time() - cpu_started, 3),
        }
        ledger = Ledger(store, self.settings.fingerprint)
        return ledger.commit(name, record)

    def _encode(self, shard: Shard, local: Path, scratch: Path) -> int:
        """Write every sample of the shard as a row of ``local``; returns their number."""
        metadata = {
            "fingerprint": self.settings.fingerprint,
            "model_id": self.settings.model_id,
            "source": {"url": shard.url, "size": shard.size, "etag": shard.etag},
        }
        threads = self.settings.threads
        with open_shard(shard, scratch) as file, ThreadPoolExecutor(threads) as pool:
            self._report(samples=0, of=len(file.samples), picture_bytes=0, stream_bytes=0, key="")
            writer = RowWriter(local, self.settings.layers, metadata)
            for window in self._windows(file, pool):
                for row in self._encode_window(window):
                    writer.append(row)
            writer.close()
            return len(file.samples)

    def _windows(self, file: ShardFile, pool: ThreadPoolExecutor) -> Iterator[list[_Loaded]]:
        """Samples loaded in threads, in groups that memory can hold."""
        largest = 1

        def read_ahead() -> int:
            fitting = WINDOW_PIXELS // largest
            return min(WINDOW_ROWS, max(self.settings.threads, fitting))

        def load(numbered: tuple[int, Sample]) -> _Loaded:
            return self._load(file, *numbered)

        window: list[_Loaded] = []
        pixels = 0
        for loaded in ahead(pool, load, enumerate(file.samples), read_ahead):
            largest = max(largest, loaded.pixels)
            if window and (len(window) == WINDOW_ROWS or pixels + loaded.pixels > WINDOW_PIXELS):
                yield window
                window, pixels = [], 0
            window.append(loaded)
            pixels += loaded.pixels
        if window:
            yield window

    def _load(self, file: ShardFile, index: int, sample: Sample) -> _Loaded:
        """Read a sample's fields and decode its picture, or say why it has none."""
        base = Row(sample.key, index)
        if sample.problem or sample.filtered:
            # Its bytes are kept where they are small: the tar may be deleted one day.
            kept = tuple(
                (name, file.read(m) if m.size <= KEEP_BAD_BYTES and not m.problem else None)
                for name, m in sample.fields
            )
            status: Status = "bad" if sample.problem else "filtered"
            return _Loaded(
                replace(base, status=status, reason=sample.problem or sample.filtered, fields=kept)
            )
        image_field = sample.image_field
        data = {name: file.read(member) for name, member in sample.fields}
        if image_field is None:
            names = ", ".join(name or "(none)" for name in data)
            reason = f"no picture among its fields: {names}"
            return _Loaded(replace(base, status="bad", reason=reason, fields=tuple(data.items())))
        source = data[image_field]
        row = replace(
            base,
            fields=tuple((n, None if n == image_field else content) for n, content in data.items()),
            source_field=image_field,
            source_bytes=len(source),
            source_sha256=hashlib.sha256(source).digest(),
        )
        kept_source = source if len(source) <= KEEP_BAD_BYTES else None
        try:
            picture = read_image(source, max_pixels=self.settings.max_pixels)
        except Exception as error:
            return _Loaded(replace(row, status="bad", reason=describe(error), original=kept_source))
        row = replace(
            row, source_format=picture.format, notes="; ".join(picture.notes), original=kept_source
        )
        height, width = picture.rgb.shape[:2]
        if min(height, width) < self.settings.min_side:
            reason = f"smaller than --min-side {self.settings.min_side}: {width}x{height}"
            return _Loaded(replace(row, status="filtered", reason=reason))
        alpha = None if picture.alpha is None else pack_alpha(picture.alpha)
        return _Loaded(replace(row, alpha=alpha), picture.rgb)

    def _encode_window(self, window: list[_Loaded]) -> list[Row]:
        """Encode the pictures of a window in batches of similar size; rows in the given order."""
        pictures = [position for position, loaded in enumerate(window) if loaded.rgb is not None]
        sizes = [window[position].rgb.shape[:2] for position in pictures]  # type: ignore[union-attr]
        rows = [loaded.row for loaded in window]
        failures: list[Exception] = []
        for batch in batches_by_size(sizes, self.settings.batch_size, BATCH_PIXELS):
            positions = [pictures[number] for number in batch]
            images = [window[position].rgb for position in positions]
            results = one_by_one_on_error(self._encode_batch, images)
            for position, result in zip(positions, results, strict=True):
                rows[position] = self._finish(rows[position], result)
                if isinstance(result, Exception):
                    failures.append(result)
            self._count([rows[position] for position in positions])
        if len(failures) >= SYSTEMATIC and len(failures) == len(pictures):
            raise RuntimeError(f"no picture could be encoded: {describe(failures[0])}")
        self._count([loaded.row for loaded in window if loaded.rgb is None])
        return rows

    def _count(self, rows: list[Row]) -> None:
        """Add finished rows to the progress that the driver sees."""
        with self._lock:
            for row in rows:
                self._progress["samples"] += 1
                self._progress["key"] = row.key
                if row.encoded is not None:
                    self._progress["picture_bytes"] += row.source_bytes or 0
                    self._progress["stream_bytes"] += row.encoded.nbytes + len(row.alpha or b"")

    def _encode_batch(self, images: list[Any]) -> list[EncodedImage]:
        settings = self.settings
        encoded = self.codec.encode(images, layers=settings.layers, **settings.codec_options)
        for image, stream in zip(images, encoded, strict=True):
            check_codec_result(self.codec, stream, *image.shape[:2])
        return encoded

    def _finish(self, row: Row, result: EncodedImage | Exception) -> Row:
        """The row with its stream, or with the reason why the codec could not make one."""
        if isinstance(result, Exception):
            reason = f"the codec failed: {describe(result)}"
            return replace(row, status="bad", reason=reason, alpha=None)
        layers = self.settings.layers
        if self.settings.fit:
            alpha_bytes = len(row.alpha or b"")
            layers = layers_worth_storing(result, layers, alpha_bytes, row.source_bytes or 0)
        return replace(row, encoded=result.truncate(layers), original=None)

    def _decode_one(self, local: Path) -> None:
        """Decode the smallest of the first pictures from the finished file itself."""
        file = pq.ParquetFile(local, page_checksum_verification=True)
        columns = stream_columns(self.settings.layers)
        groups = range(min(1, file.num_row_groups))
        rows = [row for row in iter_rows(file, columns, groups) if row["header"] is not None]
        if not rows:
            return
        row = min(rows, key=lambda row: row["width"] * row["height"])
        stream = encoded_image(row, self.settings.layers, local.name)
        (picture,) = self.codec.decode([stream])
        if picture.shape != (row["height"], row["width"], 3):
            raise CorruptStreamError(f"{local.name}: {row['key']} decodes to {picture.shape}")

    def _report(self, **values: Any) -> None:
        with self._lock:
            self._progress = values


def load_model(dataset_url: str, model_id: str, device: str) -> Codec:
    """Load a dataset's own copy of a model. Raises UnknownModelError, InvalidModelError."""
    store = Store(dataset_url)
    name = f"models/{model_id}/{MODEL_FILE}"
    if store.is_local:
        codec = load_codec(store.path(name), device=device)
    else:
        with tempfile.TemporaryDirectory(prefix="strata-model-") as folder:
            local = Path(folder) / MODEL_FILE
            store.fetch(name, local)
            codec = load_codec(str(local), device=device)
    if codec.model_id != model_id:
        raise InvalidModelError(
            f"{dataset_url}/{name} is damaged: its content is model {codec.model_id}"
        )
    return codec
