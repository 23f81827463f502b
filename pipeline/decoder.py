"""The decoding worker: one data file in, one tar or folder of files out."""

import io
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from codec import Codec, EncodedImage
from codec.images import unpack_alpha, write_image

from .commit import Ledger
from .dataset import DataFile, Dataset, open_dataset
from .pictures import ahead, batches_by_size, describe, one_by_one_on_error
from .records import MAX_LISTED_PROBLEMS, encoded_image, iter_rows, original_key, stream_columns
from .storage import Store, scratch_folder

COMMITS = ".strata/commits"
WINDOW_PIXELS = 1 << 25
BATCH_PIXELS = 1 << 22
MAX_NAME_BYTES = 240  # file systems take 255; the store's temporary names need a few


@dataclass(frozen=True)
class DecodeSettings:
    """What every decoding worker is told. ``dataset`` and ``output`` are URLs.

    ``codec_options`` go to ``Codec.decode``: they say nothing of shards, batches or places, since
    a picture must come out the same wherever it is decoded.
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


@dataclass(frozen=True)
class _Picture:
    """A row that is to become a picture: its columns and its stream."""

    row: Mapping[str, Any]
    encoded: EncodedImage

    @property
    def size(self) -> tuple[int, int]:
        return self.encoded.height, self.encoded.width


class ShardDecoder:
    """Owns one device. ``ready`` loads the dataset's model, ``run`` decodes a data file."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._progress: dict[str, Any] = {}
        self._lock = threading.Lock()

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.settings.dataset)

    @cached_property
    def codec(self) -> Codec:
        """The dataset's own copy of the model."""
        return self.dataset.codec(self.settings.device)

    def ready(self) -> str:
        """Load the model; returns its id. Raises DatasetError, UnknownModelError."""
        return self.codec.model_id

    def progress(self) -> dict[str, Any]:
        """Counts of the file under way (samples, of, key)."""
        with self._lock:
            return dict(self._progress)

    def run(self, file: DataFile) -> dict[str, Any]:
        """Decode one data file and return its commit record. Raises OSError for damaged pages."""
        self.ready()
        started = time.monotonic()
        settings, store = self.settings, Store(self.settings.output)
        with scratch_folder(settings.scratch) as folder:
            local = folder / "out.tar"
            counts = {"ok": 0, "bad": 0, "filtered": 0}
            problems: list[tuple[str, str, str]] = []
            as_tar = settings.format == "webdataset"
            target = _TarTarget(local) if as_tar else _FileTarget(store, file.name)
            for key, fields, status, reason in self._samples(file):
                if fields is not None:
                    try:
                        target.write(key, fields)
                    except UnwritableNameError as error:
                        status, reason = "bad", describe(error)
                counts[status] += 1
                if status != "ok" and len(problems) < MAX_LISTED_PROBLEMS:
                    problems.append((key, status, reason))
            target.close()
            if sum(counts.values()) != file.rows:
                raise RuntimeError(f"{file.path}: {file.rows} rows gave {counts}")
            if as_tar:
                # When the name is taken, an earlier attempt of this very plan put it there.
                store.create_from(f"{file.name}.tar", local)
        record = {
            **counts,
            "rows": file.rows,
            "bytes": store.sizes()[f"{file.name}.tar"] if as_tar else 0,
            "problems": [(_printable(key), status, reason) for key, status, reason in problems],
            "seconds": round(time.monotonic() - started, 3),
        }
        return Ledger(store, settings.fingerprint, COMMITS).commit(file.name, record)

    def _samples(
        self, file: DataFile
    ) -> Iterator[tuple[str, list[tuple[str, bytes]] | None, str, str]]:
        """(key, fields or None, status, reason) of every row of ``file``, in its order."""
        layers = self.settings.layers
        metadata = ["fields", "alpha", "key_bytes", "status", "reason", "source_field"]
        done = 0
        with self.dataset.open(file) as opened, ThreadPoolExecutor(self.settings.threads) as pool:
            rows = iter_rows(opened.parquet, [*metadata, *stream_columns(layers)])
            for window in _windows(rows):
                results = self._decode_window(window, file, done)

                def finish(
                    pair: tuple[Mapping[str, Any], np.ndarray | Exception],
                ) -> tuple[str, list[tuple[str, bytes]] | None, str, str]:
                    return self._finish(*pair)

                yield from ahead(pool, finish, results, lambda: 2 * self.settings.threads)
                done += len(window)

    def _decode_window(
        self, window: list[Mapping[str, Any]], file: DataFile, done: int
    ) -> list[tuple[Mapping[str, Any], Any]]:
        """Each row with its decoded picture, the exception that prevented it, or None."""
        results: list[Any] = [None] * len(window)
        pictures: list[tuple[int, _Picture]] = []
        for position, row in enumerate(window):
            if row["status"] == "ok":
                try:
                    encoded = encoded_image(row, self.settings.layers, file.name)
                    pictures.append((position, _Picture(row, encoded)))
                    _ = encoded.info
                except Exception as error:
                    results[position] = error
        pictures = [pair for pair in pictures if results[pair[0]] is None]
        sizes = [picture.size for _, picture in pictures]
        for batch in batches_by_size(sizes, self.settings.batch_size, BATCH_PIXELS):
            streams = [pictures[number][1].encoded for number in batch]
            decoded = one_by_one_on_error(self._decode_batch, streams)
            for number, result in zip(batch, decoded, strict=True):
                results[pictures[number][0]] = result
            done += len(batch)
            with self._lock:
                key = pictures[batch[-1]][1].row["key"]
                self._progress = {"samples": done, "of": file.rows, "key": key}
        return list(zip(window, results, strict=True))

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
            alpha = None if row["alpha"] is None else unpack_alpha(row["alpha"])
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


def image_field_name(field: str, image_format: str, taken: set[str]) -> str:
    """The picture's field with its new extension: ``jpg`` -> ``png``, ``a.jpg`` -> ``a.png``."""
    base, dot, _ = field.rpartition(".")
    name = f"{base}{dot}{image_format}"
    while name != field and name in taken:  # the sample has such a side field
        name = f"decoded.{name}"
    return name


def _windows(rows: Iterator[dict[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in groups whose decoded pictures fit in memory."""
    window: list[Mapping[str, Any]] = []
    pixels = 0
    for row in rows:
        size = (row["width"] or 0) * (row["height"] or 0)
        if window and (pixels + size > WINDOW_PIXELS or len(window) == 256):
            yield window
            window, pixels = [], 0
        window.append(row)
        pixels += size
    if window:
        yield window


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class UnwritableNameError(Exception):
    """A key cannot be a file's name beside the others."""


class _TarTarget:
    """A tar on local disk that does not depend on when or by whom it is written."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def write(self, key: str, fields: list[tuple[str, bytes]]) -> None:
        for name, data in fields:
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        self._tar.close()


class _FileTarget:
    """A folder per data file; a name that exists already was written by an earlier attempt."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def write(self, key: str, fields: list[tuple[str, bytes]]) -> None:
        for name, data in fields:
            path = f"{self._folder}/{safe_path(f'{key}.{name}')}"
            try:
                self._store.create(path, data)
            except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
                raise UnwritableNameError(f"{path} is a folder's name as well") from error

    def close(self) -> None:
        pass


def safe_path(name: str) -> str:
    """``name`` as a relative path that cannot leave its folder; different names stay different.

    Parts that would be skipped or climb (empty, ``.``, ``..``) and bytes that some file system
    refuses are written as ``%XX``, and so is ``%`` itself.
    """
    return "/".join(_safe_part(part) for part in name.split("/"))


def _safe_part(part: str) -> str:
    if not part:
        return "%"
    raw = part.encode("utf-8", "surrogateescape")
    if part.strip(".") == "":
        return "".join(f"%{byte:02X}" for byte in raw)
    refused = b'%\\:*?"<>|'
    safe = "".join(
        f"%{byte:02X}" if byte < 32 or byte == 127 or byte in refused else chr(byte) for byte in raw
    )
    try:
        text = safe.encode("latin-1").decode()
    except UnicodeDecodeError:
        text = "".join(c if ord(c) < 128 else f"%{ord(c):02X}" for c in safe)
    if len(text.encode()) > MAX_NAME_BYTES:
        raise UnwritableNameError(f"{part[:60]!r}... is too long for a file's name")
    return text
