"""Reads from a dataset what previews need. ``service.py`` calls this in threads."""

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from codec import Codec, EncodedImage

from ..dataset.captions import caption_of
from ..dataset.data_file import DamagedDataError, DatasetError
from ..dataset.index import IndexEntry
from ..reader.captions import fields_at
from ..reader.dataset import Dataset
from ..reader.pages import PageQuery, beside, page
from ..stores.filesystems import storage_errors
from ..stores.passing import may_pass
from .answers import CannotShow, NotFound
from .rendering import RELEASE, Format, etag
from .side_fields import shown_fields

log = logging.getLogger("strata.previews")

_QUICK_PIXELS = 1 << 16  # a picture of so many pixels is quick even at full size
_PIXEL_BYTES = 8  # memory per pixel: shares of stream and file, three bytes of RGB, some to spare
_INFO = [
    "status",
    "layers",
    "cumulative_bytes",
    "psnr",
    "source_field",
    "source_format",
    "source_bytes",
    "notes",
]
# Media types of originals, by format.
ORIGINALS = {
    name: f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
} | {"ppm": "image/x-portable-anymap", "jpeg2000": "image/jp2"}


@dataclass(frozen=True)
class PreviewRequest:
    """A picture to show: its first ``layers``, with no side longer than ``max_side`` pixels."""

    key: str
    layers: int | None = None
    max_side: int | None = None
    format: Format = "webp"


@dataclass(frozen=True)
class LocatedPicture:
    """A request and the place of its picture. ``layers`` are those both stored and requested."""

    request: PreviewRequest
    entry: IndexEntry
    layers: int
    original: bool
    etag: str

    @property
    def quick(self) -> bool:
        """Whether it decodes quickly: codecs are fast at a small picture of the first layer."""
        longest, side = max(self.entry.width, self.entry.height), self.request.max_side
        small = self.entry.width * self.entry.height <= _QUICK_PIXELS
        return self.layers == 1 and (small or (side is not None and 2 * side <= longest))

    @property
    def shrinks(self) -> bool:
        """Whether the picture must be made smaller."""
        side = self.request.max_side
        return side is not None and max(self.entry.width, self.entry.height) > side

    @property
    def memory(self) -> int:
        """About how many bytes it takes while it is processed, without those of decoding."""
        longest, side = max(self.entry.width, self.entry.height), self.request.max_side
        scale = min(1.0, side / longest) if self.quick and side else 1.0
        pixels = int(self.entry.width * self.entry.height * scale**2)
        kept = _file_bytes(self.entry) if self.original else 0
        return sum(self.entry.lengths[: self.layers]) + kept + _PIXEL_BYTES * pixels


@dataclass(frozen=True)
class LocatedStream:
    """The place of the first ``layers`` layers of a picture."""

    entry: IndexEntry
    layers: int
    etag: str

    @property
    def nbytes(self) -> int:
        """Bytes of these layers."""
        return sum(self.entry.lengths[: self.layers])


@dataclass(frozen=True)
class LocatedOriginal:
    """The place of a kept original. Without an index, it may turn out that none is kept."""

    entry: IndexEntry
    etag: str

    @property
    def nbytes(self) -> int:
        """About its length in bytes; a guess if that is not known."""
        return _file_bytes(self.entry) or self.entry.width * self.entry.height


@dataclass(frozen=True)
class PictureData:
    """The bytes of a picture. ``damaged`` is the number of the first unusable layer."""

    stream: EncodedImage
    alpha: bytes | None
    damaged: int | None


class PreviewReader:
    """Reads pictures, streams, originals and metadata of one dataset.

    ``shown`` names the decoder, as a part of ETags. Methods raise NotFound for a picture that is
    missing or damaged, CannotShow for one that is too large, StorageError if the store does not
    answer.
    """

    def __init__(self, dataset: Dataset, codec: Codec, max_pixels: int, shown: str = "") -> None:
        self.dataset, self._codec, self._max_pixels = dataset, codec, max_pixels
        self._shown = shown
        self.version = _version(dataset)

    # -- pictures ---------------------------------------------------------------------------------

    def find(self, request: PreviewRequest) -> LocatedPicture:
        """Find a picture. Reads only the index."""
        with self._reading(request.key):
            entry = self._entry(request.key)
            wanted = self.dataset.num_layers if request.layers is None else request.layers
            layers = min(wanted, entry.num_layers)
            original = entry.num_layers < wanted and self._has_original(entry)
        self._check_size(entry.width, entry.height)
        parts = self._content(entry, layers)
        form = request.max_side, request.format, self._shown
        tag = etag((*parts, original, layers, *form))
        return LocatedPicture(request, entry, layers, original, tag)

    def read(self, found: LocatedPicture) -> PictureData:
        """The layers of the picture before the first damaged one."""
        data = self._read(found.entry, found.layers, ["alpha"])
        self._check_size(data.stream.width, data.stream.height)
        return data

    def _read(self, entry: IndexEntry, wanted: int, columns: list[str]) -> PictureData:
        layers = wanted
        with self._reading(entry.key):
            while True:
                try:
                    (record,) = self.dataset.fetch([entry.key], layers, columns=columns)
                    break
                except DamagedDataError as error:  # without an index, it does not name a layer
                    layers = layers - 1 if error.layer is None else error.layer
                    if layers < 1:
                        raise
        damaged = layers if layers < wanted else None
        return PictureData(record.encoded, record.extra.get("alpha"), damaged)

    # -- streams ----------------------------------------------------------------------------------

    def find_stream(self, key: str, layers: int | None) -> LocatedStream:
        """Find a stream. Reads only the index."""
        with self._reading(key):
            entry = self._entry(key)
        stored = entry.num_layers if layers is None else min(layers, entry.num_layers)
        return LocatedStream(entry, stored, etag((*self._content(entry, stored), "stream")))

    def stream(self, found: LocatedStream) -> PictureData:
        """The layers before the first damaged one."""
        return self._read(found.entry, found.layers, [])

    # -- originals --------------------------------------------------------------------------------

    def find_original(self, key: str) -> LocatedOriginal:
        """Find a kept original. Reads only the index."""
        with self._reading(key):
            entry = self._entry(key)
        if entry.indexed and entry.original is None:
            raise _not_kept(key)
        return LocatedOriginal(entry, etag((*_place(entry), "original")))

    def original(self, entry: IndexEntry) -> tuple[bytes, str]:
        """The kept file and its media type."""
        with self._reading(entry.key):
            original = self.dataset.original(entry.key)
            if original is None:
                raise _not_kept(entry.key)
            format = self.dataset.metadata(entry.key, ["source_format"])["source_format"]
        return original, ORIGINALS.get(format, "application/octet-stream")

    # -- metadata ---------------------------------------------------------------------------------

    def info(self, key: str) -> dict[str, Any]:
        """The metadata of one picture."""
        with self._reading(key):
            entry = self._entry(key)
            row = self.dataset.metadata(key, _INFO)
            with self.dataset.open(entry.file) as opened:
                fields = fields_at(opened, entry.row_group, entry.row)
            has_original = self._has_original(entry)
            sizes = list(row["cumulative_bytes"] or ())
            if None in sizes:
                raise DamagedDataError(f"{entry.file.path}: {key!r} lacks layer sizes", key)
        pixels, most = entry.width * entry.height, self.dataset.num_layers
        return {
            "key": key,
            "width": entry.width,
            "height": entry.height,
            "layers": entry.num_layers,
            "cumulative_bytes": sizes,
            "bpp": [8 * size / pixels for size in sizes],
            "psnr": _in_json(row["psnr"]),
            "source_format": row["source_format"],
            "source_bytes": row["source_bytes"],
            "has_original": has_original,
            "model_id": self.dataset.model_id,
            "codec": self._codec.codec,
            "notes": row["notes"] or "",
            # With so many layers or more, the original replaces the layers that are not stored.
            "original_from": entry.num_layers + 1
            if has_original and entry.num_layers < most
            else None,
            **caption_of(fields or ())._asdict(),
            "fields": shown_fields(fields, row["source_field"]),
        }

    def page(self, query: PageQuery, next_to: str | None = None) -> dict[str, Any]:
        """Some pictures in the dataset's order, and the cursor of the next page.

        ``next_to`` is a key: the page begins after it, or before it if it goes backwards. Damaged
        and missing files are left out. Raises CursorError for a cursor of another dataset,
        NotFound for an unknown ``next_to``.
        """
        if next_to is not None:
            with self._reading(next_to):
                after = beside(self.dataset.lookup, self._entry(next_to), query.backwards)
            if after is None:
                return {"items": [], "next": None, "unread": 0}
            query = replace(query, after=after)
        with self._answering():
            found = page(self.dataset.lookup, query, _left_out)
        shown = [{**item, "psnr": _in_json(item["psnr"])} for item in found.items]
        return {"items": shown, "next": found.next, "unread": found.unread}

    def facts(self) -> dict[str, Any]:
        """Facts about the dataset. Not its URL, which clients need not know."""
        dataset, codec = self.dataset, self._codec
        return {
            "name": dataset.url.rstrip("/").rpartition("/")[2],
            "pictures": len(dataset),
            "layers": dataset.num_layers,
            "codec": codec.codec,
            "model_id": dataset.model_id,
            "lossless": codec.lossless and dataset.num_layers == codec.num_layers,
            "failed": len(dataset.failed),
            "formats": _formats(dataset),
            "captions": _captions(dataset),
            "version": self.version,
        }

    # -- small helpers ----------------------------------------------------------------------------

    def _content(self, entry: IndexEntry, layers: int) -> tuple[object, ...]:
        """What identifies a stream. Its file and row would do: data files never change."""
        lengths, crc32s = entry.lengths[:layers], entry.crc32s[:layers]
        return (self.dataset.model_id, *_place(entry), entry.header, lengths, crc32s)

    def _entry(self, key: str) -> IndexEntry:
        entry = self.dataset.locate(key)
        if entry is None:
            raise NotFound(f"there is no picture with the key {key!r}")
        return entry

    def _has_original(self, entry: IndexEntry) -> bool:
        if entry.indexed:
            return entry.original is not None
        return self.dataset.original(entry.key) is not None

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise CannotShow(
                f"this picture has {width * height} pixels; this server decodes at most "
                f"{self._max_pixels} (--max-pixels): read it with pipeline.open_dataset"
            )

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Turn damage into NotFound. Trying again cannot help, unlike after errors of a store."""
        try:
            with self._answering():
                yield
        except DatasetError as error:
            if error.passing:
                raise
            raise nothing_left(key, error) from error

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn errors of stores into StorageError. They are no bugs of this program."""
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OSError) or may_pass(error)):
                raise
            with storage_errors(self.dataset.url, "cannot be read"):
                raise


def nothing_left(key: str, error: Exception) -> NotFound:
    """The error for a client. The cause names files, so it goes to the log only."""
    log.error("%r cannot be shown: %s", key, error)
    return NotFound(f"{key!r} cannot be shown: its data is damaged or missing")


def _left_out(error: DatasetError) -> None:
    log.error("a page leaves out pictures: %s", error)


def _not_kept(key: str) -> NotFound:
    return NotFound(f"the original of {key!r} was not kept")


def _file_bytes(entry: IndexEntry) -> int:
    """About how many bytes of memory an original takes, packed and unpacked."""
    stored = entry.original.length if entry.original else 0
    return 3 * stored if entry.original_packing else stored


def _place(entry: IndexEntry) -> tuple[object, ...]:
    return entry.file.name, entry.file.bytes, entry.row


def _in_json(psnr: list[float | None] | None) -> list[float | None] | None:
    """PSNR by layer, with null for infinity (lossless), which JSON does not have."""
    if psnr is None:
        return None
    return [one if one is not None and math.isfinite(one) else None for one in psnr]


def _version(dataset: Dataset) -> str:
    """A hash of the data files and of this release. It changes whenever a picture may change."""
    text = repr((RELEASE, dataset.fingerprint, dataset.files.digest))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _formats(dataset: Dataset) -> list[str]:
    """The formats of the original files, from the records; all formats if a record has none."""
    found: set[str] = set()
    for file in dataset.files:
        counts = file.record.get("formats")
        if not isinstance(counts, dict):
            return sorted(ORIGINALS)
        found.update(name for name in counts if name in ORIGINALS)
    return sorted(found)


def _captions(dataset: Dataset) -> int | None:
    """How many pictures have a caption or a label; None where a record does not say."""
    counts = [file.record.get("captions") for file in dataset.files]
    known = [one for one in counts if isinstance(one, int)]
    return sum(known) if len(known) == len(counts) else None
