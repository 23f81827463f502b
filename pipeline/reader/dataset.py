"""Opens a dataset and reads its pictures with any number of layers, fetching only those layers.

    Dataset.read, batches      whole files by columns, selected by key and filter   rows.py
    Dataset.fetch, record      places of keys (lookup.py), then only their bytes    fetch.py
    Dataset.page               pages of pictures in order                           pages.py

``DataFile`` and the footers are in ``pipeline.dataset``, requests for ranges in
``pipeline.stores``.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codec import Codec

from ..dataset import rows
from ..dataset.data_file import (
    CursorError,
    DamagedDataError,
    DataFile,
    DatasetError,
    OpenFile,
    UnknownKeyError,
)
from ..dataset.index import IndexEntry
from ..dataset.manifest import Manifest, open_manifest
from ..dataset.models import load_model
from ..stores.cache import ByteCache
from ..stores.store import Store
from . import fetch
from .fetch import Record
from .lookup import Lookup
from .opening import open_plan
from .originals import ORIGINAL, file_of, file_of_problem, read_original, stored_columns
from .pages import PageQuery, page
from .rows import RowFilter, batches, rows_at

__all__ = [
    "CursorError",
    "DamagedDataError",
    "DataFile",
    "Dataset",
    "DatasetError",
    "IndexEntry",
    "OpenFile",
    "Record",
    "UnknownKeyError",
    "open_dataset",
]

CACHE_BYTES = 128 << 20  # of footers and indexes
SEARCHED_FILES = 20  # searched at most for the reason why a sample is bad or filtered
# The default columns of Dataset.metadata.
METADATA = (
    *("status", "reason", "source_field", "source_format", "source_bytes", "source_sha256"),
    *("image_sha256", "notes", "index", "layers", "cumulative_bytes", "psnr"),
)


class Dataset:
    """A compressed dataset; see ``open_dataset``. Bad and filtered rows are not yielded.

    ``manifest`` is the manifest's number. ``failed`` are the inputs (``url``, ``error``) that the
    last run of the job could not compress.
    """

    def __init__(self, store: Store, plan: dict[str, Any], manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest.number
        self.parameters: dict[str, Any] = plan["parameters"]
        self.fingerprint: str = plan["fingerprint"]
        self.files, self.totals, self.failed = manifest.files, manifest.totals, manifest.failed
        self.lookup = Lookup(store, self.files, ByteCache(CACHE_BYTES))
        self._codecs: dict[str, Codec] = {}

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def num_layers(self) -> int:
        """The number of layer columns. A picture may store fewer layers."""
        return int(self.parameters["layers"])

    @property
    def model_id(self) -> str:
        return str(self.parameters["model_id"])

    def __len__(self) -> int:
        """The number of pictures (ok rows)."""
        return self.files.ok

    def codec(self, device: str = "cpu", scratch: str | None = None) -> Codec:
        """The dataset's model, loaded from the dataset's own copy.

        ``scratch`` is a local folder for temporary files (default: the system's).
        """
        if device not in self._codecs:
            options = self.store.options
            codec = load_model(self.url, self.model_id, device, options, scratch)
            codec.max_pixels = max(codec.max_pixels, self.parameters.get("max_pixels", 0))
            self._codecs[device] = codec
        return self._codecs[device]

    def __getstate__(self) -> dict[str, Any]:
        """Without the models: other processes load them again."""
        return self.__dict__ | {"_codecs": {}}

    def keys(self) -> Iterator[str]:
        """The keys of all pictures, in the order of the shards."""
        for file in self.files:
            with self.open(file) as opened:
                for row in opened.rows(["key", "header"]):
                    if row["header"] is not None:
                        yield row["key"]

    def problems(
        self, files: Iterable[DataFile] | None = None
    ) -> Iterator[tuple[str, str, str, str]]:
        """(shard URL, key, status, reason) of each bad or filtered sample, in all files or some."""
        for file in self.files if files is None else files:
            if file.ok == file.rows:
                continue
            with self.open(file) as opened:
                for row in opened.rows(["status", "reason", "key"]):
                    if row["status"] != "ok":
                        url = file.record["source"]["url"]
                        yield url, row["key"], row["status"], row["reason"]

    def batches(
        self,
        layers: int | None = None,
        keys: Collection[str] | None = None,
        columns: Sequence[str] = (),
        filter: pc.Expression | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Pictures as Arrow batches, one for each row group: at most 256 pictures and 16 MiB.

        A batch has ``columns``, ``key``, ``width``, ``height``, ``header`` and the first ``layers``
        of ``layer_00``, ... (default: all; null if a picture stores fewer). ``keys`` and ``filter``
        select pictures, in the order of the dataset. ``filter`` is an expression over the columns
        of metadata, such as ``pyarrow.compute.field("width") >= 512``. If a row group has no
        selected picture, only the columns of filter and keys are read. Raises DatasetError for
        layers and columns that the dataset does not have and for a filter that cannot be applied,
        DamagedDataError for a damaged file.
        """
        self.check_columns(columns)
        wanted = [*columns, *rows.stream_columns(self.layer_count(layers))]
        where = RowFilter.of(filter, self.url)
        chosen = None if keys is None else sorted(set(keys))
        files = self.files if chosen is None else self.files.having(chosen)
        for file in files:
            if not file.ok:
                continue
            with self.open(file) as opened:
                yield from batches(opened, wanted, chosen, where)

    def read(
        self,
        layers: int | None = None,
        keys: Collection[str] | None = None,
        columns: Sequence[str] = (),
        filter: pc.Expression | None = None,
    ) -> Iterator[Record]:
        """Pictures with their first ``layers`` layers (default: all that are stored).

        ``keys`` and ``filter`` select pictures as in ``batches``; for few keys ``fetch`` reads
        less. ``columns`` are further columns for ``Record.extra`` (``fields``, ``alpha``, ...). A
        picture that stores fewer layers has only these. Raises what ``batches`` raises.
        """
        count = self.layer_count(layers)
        for batch in self.batches(layers, keys, columns, filter):
            for row in batch.to_pylist():
                encoded = rows.encoded_image(row, count, self.url)
                extra = {name: row[name] for name in columns}
                yield Record(row["key"], row["width"], row["height"], encoded, extra)

    # -- by key -----------------------------------------------------------------------------------

    def locate(self, key: str) -> IndexEntry | None:
        """The place of the first picture with this key, None if there is none.

        Reads the part of the index that may hold the key, and caches it.
        """
        return self.lookup.find([key]).get(key)

    def fetch(
        self,
        keys: Iterable[str],
        layers: int | None = None,
        *,
        missing: Literal["error", "skip"] = "error",
        columns: Sequence[str] = (),
    ) -> Iterator[Record]:
        """The pictures with these keys, in the order of ``keys``, with their first ``layers``.

        Looks up their places and reads only their bytes, many at once, neighbours in one request;
        each layer is checked against its checksum. Files without an index are read by row groups.
        ``columns`` may be ``alpha`` and ``original``. At most a thousand pictures and 64 MiB of
        their bytes (or one picture) are in memory. Raises UnknownKeyError for an unknown key unless
        ``missing`` is ``"skip"``, DamagedDataError for damaged bytes.
        """
        count = self.layer_count(layers)
        if not {*columns} <= {*fetch.SIDE_COLUMNS}:
            raise ValueError(f"columns to fetch are {fetch.SIDE_COLUMNS}, not {columns}")
        left = iter(keys)
        while portion := list(islice(left, fetch.FETCHED_KEYS)):
            found = self.lookup.find(portion)
            if missing == "error":
                for key in portion:
                    if key not in found:
                        raise self._unknown(key)
            entries = [found[key] for key in portion if key in found]
            for chosen in fetch.portions(entries, count, columns):
                for record in fetch.fetch(self.lookup, chosen, count, columns):
                    extra = {name: record.extra[name] for name in columns}
                    if ORIGINAL in columns:
                        extra[ORIGINAL] = file_of({"key": record.key, **record.extra}, self.url)
                    yield replace(record, extra=extra)

    def metadata(self, key: str, columns: Sequence[str] = METADATA) -> dict[str, Any]:
        """The metadata of a picture: ``key``, ``width``, ``height`` and ``columns``.

        Reads these columns of one row group. Raises UnknownKeyError for an unknown key,
        DatasetError for an unknown column.
        """
        self.check_columns(columns)
        entry = self._entry(key)
        kept = ("key", "width", "height")
        names = stored_columns([*kept, *columns])
        row = self._row(entry, names)
        if row is None or row["key"] != key:
            row = self._row(self.lookup.in_row_groups(entry), names) or {}
            self.lookup.ignore(entry.file, f"the index of {entry.file.path} has wrong places")
        if ORIGINAL in names:
            row = row | {ORIGINAL: file_of(row, self.url)}
        return {name: row[name] for name in dict.fromkeys([*kept, *columns])}

    def original(self, key: str) -> bytes | None:
        """The original file of a picture or of any other sample; None if it is not kept.

        Bad and filtered samples are not in an index, so their keys are searched in the data files
        that have such samples. Raises UnknownKeyError, DamagedDataError, MissingPackageError.
        """
        entry = self.locate(key)
        if entry is not None:
            (record,) = fetch.fetch(self.lookup, [entry], 0, [ORIGINAL])
            return file_of({"key": key, **record.extra}, self.url)
        for file in self.files:
            if file.ok < file.rows:
                with self.open(file) as opened:
                    found, data = file_of_problem(opened, key)
                if found:
                    return data
        raise self._unknown(key)

    def page(
        self,
        after: str | None = None,
        limit: int = 100,
        *,
        search: str = "",
        filter: pc.Expression | None = None,
        captions: bool = False,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Some pictures in the order of the dataset, and the cursor of the next page, if any.

        A picture is a dictionary of ``key``, ``width``, ``height``, ``layers`` (stored),
        ``cumulative_bytes`` and ``psnr`` (lists by layer, or None) and ``has_original``. ``search``
        is a part of the key, in upper or lower case; ``filter`` is as in ``batches``. With
        ``captions`` side fields are read: pictures also have ``caption`` and ``label`` (text or
        None), which are searched as well. A page takes bounded time, so it may hold fewer pictures
        than ``limit``, or none, although more pages follow. A cursor is text that fits into a URL,
        and is valid for this manifest. Raises CursorError for any other text.
        """
        found = page(self.lookup, PageQuery(after, limit, search, filter, captions))
        return found.items, found.next

    def record(self, key: str, layers: int | None = None, columns: Sequence[str] = ()) -> Record:
        """The first picture with this key.

        Raises UnknownKeyError if there is none. If the key is that of a bad or filtered sample that
        is found quickly, the message has the reason.
        """
        count = self.layer_count(layers)
        entry = self.locate(key)
        if entry is None:
            raise self._unknown(key, self._reason(key))
        (record,) = fetch.fetch(self.lookup, [entry], count)
        extra = self.metadata(key, columns) if columns else {}
        return replace(record, extra={name: extra[name] for name in columns})

    def image(
        self, key: str, layers: int | None = None, *, device: str = "cpu", **options: Any
    ) -> np.ndarray:
        """The picture ``key`` decoded from its first ``layers`` layers, ``(H, W, 3) uint8``.

        If it stores fewer layers and its original is kept, the original is read instead.
        ``options`` go to ``Codec.decode`` (``decoder="realistic"``, ``seed=1``, ...). Raises
        UnknownKeyError for an unknown key, CorruptStreamError or DamagedDataError for a damaged
        stream, TypeError or ValueError for options that the dataset's codec does not have.
        """
        codec = self.codec(device)
        codec.check_options("decode", options)  # before anything is read
        record = self.record(key, layers)
        if record.encoded.num_layers < self.layer_count(layers):
            original = self.original(key)
            if original is not None:
                return read_original(original, self.parameters["max_pixels"]).rgb
        return codec.decode([record.encoded], **options)[0]

    def open(self, file: DataFile) -> "OpenFile":
        """Open a data file, for a ``with`` statement. Its footer is cached."""
        return OpenFile(self.store, file, self.lookup.cache)

    def _row(self, entry: IndexEntry, columns: Sequence[str]) -> dict[str, Any] | None:
        """The row at a place, None if there is no such row."""
        with self.open(entry.file) as opened, suppress(IndexError):
            ((_, row),) = rows_at(opened, columns, {entry.row_group: [entry.row]})
            return row
        return None

    def _entry(self, key: str) -> IndexEntry:
        entry = self.locate(key)
        if entry is None:
            raise self._unknown(key)
        return entry

    def _unknown(self, key: str, reason: str = "") -> UnknownKeyError:
        return UnknownKeyError(
            f"{self.url}: {reason or f'there is no picture with the key {key!r}'}"
        )

    def _reason(self, key: str) -> str:
        """Why a sample is bad or filtered, from the manifest or some files; '' if not found."""
        further = []
        for file in self.files:
            listed = file.record.get("problems", ())
            for found, status, reason in listed:
                if found == key:
                    return f"{key!r} of {file.record['source']['url']} is {status}: {reason}"
            if file.rows - file.ok > len(listed):
                further.append(file)
        for url, found, status, reason in self.problems(further[:SEARCHED_FILES]):
            if found == key:
                return f"{key!r} of {url} is {status}: {reason}"
        return ""

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise DatasetError for a column that the dataset does not have."""
        there = rows.schema(self.num_layers).names
        for name in columns:
            if name not in there:
                raise DatasetError(
                    f"{self.url}: there is no column {name!r}; there are {', '.join(there)}"
                )

    def layer_count(self, layers: int | None) -> int:
        """``layers``, or all for None. Raises DatasetError for more than the dataset has."""
        if layers is None:
            return self.num_layers
        if not 0 <= layers <= self.num_layers:
            raise DatasetError(
                f"{self.url} stores {self.num_layers} layers: layers={layers} cannot be read"
            )
        return layers


def open_dataset(
    url: str, options: Mapping[str, Any] | None = None, *, manifest: int | None = None
) -> Dataset:
    """Open the dataset at ``url`` (a path or any fsspec URL) with its newest manifest.

    ``options`` are fsspec's storage options, such as ``{"anon": True}`` for a public bucket. With
    the number of a ``manifest`` (``Dataset.manifest``) the dataset is as it was then. Raises
    DatasetError if there is no dataset, or one of a newer format.
    """
    store, plan = open_plan(url, options)
    return Dataset(store, plan, open_manifest(store, manifest))
