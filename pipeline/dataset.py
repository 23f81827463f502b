"""Open a compressed dataset and read it at any number of layers, fetching only those layers.

Reading goes through fsspec without read-ahead: s3fs's default cache fetches eighty times too much
when two of six layers are wanted. Each row group is one request (Parquet's ``pre_buffer``), because
the columns of the first layers lie side by side.
"""

import io
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from codec import Codec, EncodedImage
from codec.errors import StrataError
from codec.images import read_image

from . import records
from .commit import FORMAT_VERSION, latest_manifest, manifest_name
from .faults import may_pass
from .pictures import describe
from .storage import Store, storage_errors
from .urls import refuse_secrets

PLAN_NAME = "dataset.json"
_END = 8  # bytes behind Parquet's footer: its length and the magic number


class DatasetError(StrataError):
    """A URL holds no readable dataset, or not the key or layer that was asked for."""


@dataclass(frozen=True)
class DataFile:
    """One data file as the manifest lists it; ``name`` ends in its generation (``x``, ``x.1``).

    ``record`` is its commit record, as far as manifests have it (``commit.slim``).
    """

    name: str
    path: str
    bytes: int
    footer_bytes: int
    rows: int
    ok: int
    record: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "DataFile":
        """From an entry of the manifest. Raises KeyError for what is none."""
        told = {key: entry[key] for key in ("name", "path", "bytes", "footer_bytes", "rows", "ok")}
        return cls(**told, record=entry)


@dataclass(frozen=True)
class Record:
    """One picture of a dataset: its stream cut to the layers read, and the columns asked for."""

    key: str
    width: int
    height: int
    encoded: EncodedImage
    extra: dict[str, Any] = field(default_factory=dict)


class Dataset:
    """A compressed dataset; see ``open_dataset``. Rows that are bad or filtered are not yielded."""

    def __init__(self, store: Store, plan: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.store = store
        self.parameters: dict[str, Any] = plan["parameters"]
        self.fingerprint: str = plan["fingerprint"]
        self.files = [DataFile.of(entry) for entry in manifest["files"]]
        self.totals: dict[str, int] = manifest["totals"]
        # inputs (``url``, ``error``) that the last run of the job could not compress
        self.failed: list[dict[str, str]] = manifest.get("failed", [])
        self._codecs: dict[str, Codec] = {}

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def num_layers(self) -> int:
        """Layer columns; a picture may have fewer layers of its own."""
        return int(self.parameters["layers"])

    @property
    def model_id(self) -> str:
        return str(self.parameters["model_id"])

    def __len__(self) -> int:
        """The number of pictures (ok rows)."""
        return sum(file.ok for file in self.files)

    def codec(self, device: str = "cpu") -> Codec:
        """The model the dataset was written with, from the dataset's own copy."""
        from .worker import load_model

        if device not in self._codecs:
            options = self.store.options
            self._codecs[device] = load_model(self.url, self.model_id, device, options)
        return self._codecs[device]

    def keys(self) -> Iterator[str]:
        """The keys of all pictures, in the order of the shards."""
        for file in self.files:
            with self.open(file) as opened:
                for row in records.iter_rows(opened.parquet, ["key", "header"]):
                    if row["header"] is not None:
                        yield row["key"]

    def problems(self) -> Iterator[tuple[str, str, str, str]]:
        """(shard URL, key, status, reason) of every sample that is not a picture here."""
        for file in self.files:
            if file.ok == file.rows:
                continue
            with self.open(file) as opened:
                for row in records.iter_rows(opened.parquet, ["status", "reason", "key"]):
                    if row["status"] != "ok":
                        url = file.record["source"]["url"]
                        yield url, row["key"], row["status"], row["reason"]

    def read(
        self,
        layers: int | None = None,
        keys: Collection[str] | None = None,
        columns: Sequence[str] = (),
    ) -> Iterator[Record]:
        """Pictures with their first ``layers`` layers (default: all that are stored).

        ``keys`` restricts to these keys, in the order of the dataset; row groups without them are
        not read. ``columns`` names further columns for ``Record.extra`` (``fields``, ``alpha``,
        ...). A picture that stores fewer layers comes with those it has. Raises DatasetError for
        a number of layers the dataset does not have.
        """
        count = self._layers(layers)
        wanted = [*columns, *records.stream_columns(count)]
        chosen = None if keys is None else frozenset(keys)
        for file in self.files:
            with self.open(file) as opened:
                groups = opened.groups_with(chosen)
                for row in records.iter_rows(opened.parquet, wanted, groups):
                    if row["header"] is None or (chosen is not None and row["key"] not in chosen):
                        continue
                    encoded = records.encoded_image(row, count, file.name)
                    extra = {name: row[name] for name in columns}
                    yield Record(row["key"], row["width"], row["height"], encoded, extra)

    def record(self, key: str, layers: int | None = None, columns: Sequence[str] = ()) -> Record:
        """The first picture with this key. Raises DatasetError, with the reason, if none is."""
        for record in self.read(layers, [key], columns):
            return record
        for url, bad, status, reason in self.problems():
            if bad == key:
                raise DatasetError(f"{self.url}: {key!r} of {url} is {status}: {reason}")
        raise DatasetError(f"{self.url}: there is no picture with the key {key!r}")

    def image(
        self, key: str, layers: int | None = None, *, device: str = "cpu", **options: Any
    ) -> np.ndarray:
        """The picture ``key`` decoded from its first ``layers`` layers, ``(H, W, 3) uint8``.

        Where it has fewer layers because its file was kept instead, the file is what is decoded.
        ``options`` go to ``Codec.decode`` (``realism="flow"``, ``decoder="fast"``, ``seed=1``,
        ...). Raises DatasetError for an unknown key, CorruptStreamError for a damaged stream,
        TypeError or ValueError for options that the dataset's codec does not have.
        """
        codec = self.codec(device)
        codec.check_options("decode", options)  # before anything is read
        record = self.record(key, layers, ["layers"])
        if record.extra["layers"] < self._layers(layers):
            (original,) = self.record(key, 0, ["original"]).extra.values()
            if original is not None:
                return read_image(original, max_pixels=self.parameters["max_pixels"]).rgb
        return codec.decode([record.encoded], **options)[0]

    def open(self, file: DataFile) -> "OpenFile":
        """One data file, ready for projection; use it with ``with``."""
        return OpenFile(self.store, file)

    def _layers(self, layers: int | None) -> int:
        if layers is None:
            return self.num_layers
        if not 0 <= layers <= self.num_layers:
            raise DatasetError(
                f"{self.url} stores {self.num_layers} layers: layers={layers} cannot be read"
            )
        return layers


class OpenFile:
    """A data file with its footer read. Costs one request of exactly the footer's size."""

    def __init__(self, store: Store, file: DataFile) -> None:
        self.file = file
        self._store = store

    @cached_property
    def parquet(self) -> pq.ParquetFile:
        try:
            raw = self._store.open(self.file.path)
            raw.seek(self.file.bytes - self.file.footer_bytes)
            tail = raw.read(self.file.footer_bytes)
            if int.from_bytes(tail[-_END:-4], "little") + _END != len(tail):
                raise DatasetError(
                    f"{self._store.url}/{self.file.path}: its footer is not where the manifest "
                    "says: the file is damaged or was replaced"
                )
            if zlib.crc32(tail) != self.file.record.get("footer_crc32", zlib.crc32(tail)):
                raise DatasetError(f"{self._store.url}/{self.file.path}: its footer is damaged")
            return pq.ParquetFile(
                pa.PythonFile(raw, mode="r"),
                metadata=pq.read_metadata(io.BytesIO(tail)),
                pre_buffer=True,
                page_checksum_verification=True,
            )
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self._store.url}/{self.file.path}: the manifest lists this file, but it is gone"
            ) from error

    def groups_with(self, keys: Collection[str] | None) -> list[int] | None:
        """Row groups that hold any of ``keys``; None means all of them, [] none."""
        if keys is None:
            return None
        metadata = self.parquet.metadata
        groups = []
        for number in range(metadata.num_row_groups):
            if not any(key_may_be_in(metadata, number, key) for key in keys):
                continue
            table = self.parquet.read_row_group(number, columns=["key"])
            if any(key in keys for key in table.column("key").to_pylist()):
                groups.append(number)
        return groups

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        if "parquet" in self.__dict__:
            self.parquet.close(force=True)


def key_may_be_in(metadata: pq.FileMetaData, group: int, key: str) -> bool:
    """Whether the statistics of a row group allow ``key``."""
    for number in range(metadata.num_columns):
        column = metadata.row_group(group).column(number)
        if column.path_in_schema == "key":
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max:
                return True
            # Parquet orders strings by their UTF-8 bytes
            low, high = str(statistics.min).encode(), str(statistics.max).encode()
            return low <= key.encode("utf-8", "surrogatepass") <= high
    return True


def open_dataset(url: str, options: Mapping[str, Any] | None = None) -> Dataset:
    """Open the dataset at ``url`` (a path or any fsspec URL) as its newest manifest has it.

    ``options`` are fsspec's storage options, such as ``{"anon": True}`` for a public bucket.
    Raises DatasetError where there is none, or one of a newer format.
    """
    refuse_secrets(url)
    try:
        store = Store(url, options)
        plan = json.loads(store.read(PLAN_NAME))
        number = latest_manifest(store)
    except FileNotFoundError as error:
        raise DatasetError(f"{url}: there is no dataset here ({PLAN_NAME} is missing)") from error
    except Exception as error:  # stores have exceptions of many kinds
        message = f"{url}: cannot be opened as a dataset: {error}"
        raise DatasetError(message, passing=may_pass(error)) from error
    version = plan.get("parameters", {}).get("format")
    if version != FORMAT_VERSION:
        raise DatasetError(f"{url}: has format {version!r}, this release reads {FORMAT_VERSION}")
    if not number:
        raise DatasetError(
            f"{url}: the job that writes this dataset has not finished; run it again to resume"
        )
    name = manifest_name(number)
    with storage_errors(store.url, "cannot be opened as a dataset"):
        raw = store.read(name)
    try:
        return Dataset(store, plan, json.loads(raw))
    except (ValueError, TypeError, LookupError) as error:
        raise DatasetError(
            f"{url}: {name} is damaged ({describe(error)}); verify_dataset.py --repair makes it "
            "anew"
        ) from error
