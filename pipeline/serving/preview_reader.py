"""Read what previews need from a dataset. ``service.py`` calls all of this in threads."""

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from codec import Codec, EncodedImage

from ..dataset.data_file import DamagedDataError, DatasetError
from ..dataset.index import IndexEntry
from ..reader.dataset import Dataset
from ..reader.pages import page
from ..stores.filesystems import storage_errors
from ..stores.passing import may_pass
from .answers import CannotShow, NotFound
from .rendering import RELEASE, Format, etag

log = logging.getLogger("strata.previews")

_QUICK_PIXELS = 1 << 16  # of a picture whose first layer may be decoded in full size
_PIXEL_BYTES = 8  # in work: its part of the stream and of the file, three of RGB, some to spare
_INFO = ["status", "layers", "cumulative_bytes", "psnr", "source_format", "source_bytes", "notes"]
# Of originals; browsers show most of them.
ORIGINALS = {
    name: f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
} | {"ppm": "image/x-portable-anymap", "jpeg2000": "image/jp2"}


@dataclass(frozen=True)
class PreviewRequest:
    """Which picture to show: its first ``layers``, with no side longer than ``max_side`` pixels."""

    key: str
    layers: int | None = None
    max_side: int | None = None
    format: Format = "webp"


@dataclass(frozen=True)
class LocatedPicture:
    """A request and where its picture lies. ``layers`` is how many are stored and asked for."""

    request: PreviewRequest
    entry: IndexEntry
    layers: int
    original: bool
    etag: str

    @property
    def quick(self) -> bool:
        """Whether it decodes quickly: codecs have a fast path to a small picture of layer one."""
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
        """About how many bytes it takes while it is processed, besides those of decoding."""
        longest, side = max(self.entry.width, self.entry.height), self.request.max_side
        scale = min(1.0, side / longest) if self.quick and side else 1.0
        pixels = int(self.entry.width * self.entry.height * scale**2)
        kept = _file_bytes(self.entry) if self.original else 0
        return sum(self.entry.lengths[: self.layers]) + kept + _PIXEL_BYTES * pixels


@dataclass(frozen=True)
class LocatedOriginal:
    """Where a kept original lies; without an index, it may turn out that none is kept."""

    entry: IndexEntry
    etag: str

    @property
    def nbytes(self) -> int:
        """About its length; a guess where that is not known."""
        return _file_bytes(self.entry) or self.entry.width * self.entry.height


@dataclass(frozen=True)
class PictureData:
    """What a picture is made from. ``damaged`` is the number of the first unusable layer."""

    stream: EncodedImage
    alpha: bytes | None
    damaged: int | None


class PreviewReader:
    """One dataset as previews need it.

    Methods raise NotFound for a picture that is missing or damaged, CannotShow for one that is too
    large, StorageError if the store does not answer.
    """

    def __init__(self, dataset: Dataset, codec: Codec, max_pixels: int) -> None:
        self.dataset, self._codec, self._max_pixels = dataset, codec, max_pixels
        self.version = _version(dataset)

    # -- pictures ---------------------------------------------------------------------------------

    def find(self, request: PreviewRequest) -> LocatedPicture:
        """Where the picture lies. Reads nothing but the index."""
        with self._reading(request.key):
            entry = self._entry(request.key)
            wanted = self.dataset.num_layers if request.layers is None else request.layers
            layers = min(wanted, entry.num_layers)
            original = entry.num_layers < wanted and self._has_original(entry)
        self._check_size(entry.width, entry.height)
        # The file and row identify the data, because data files are written once.
        parts = (self.dataset.model_id, *_place(entry), entry.header)
        parts = (*parts, entry.lengths[:layers], entry.crc32s[:layers])
        tag = etag((*parts, original, layers, request.max_side, request.format))
        return LocatedPicture(request, entry, layers, original, tag)

    def read(self, found: LocatedPicture) -> PictureData:
        """The layers of the picture before the first damaged one."""
        entry, layers = found.entry, found.layers
        with self._reading(entry.key):
            while True:
                try:
                    (record,) = self.dataset.fetch([entry.key], layers, columns=["alpha"])
                    break
                except DamagedDataError as error:  # without an index, it does not name a layer
                    layers = layers - 1 if error.layer is None else error.layer
                    if layers < 1:
                        raise
        self._check_size(record.encoded.width, record.encoded.height)
        damaged = layers if layers < found.layers else None
        return PictureData(record.encoded, record.extra["alpha"], damaged)

    # -- originals --------------------------------------------------------------------------------

    def find_original(self, key: str) -> LocatedOriginal:
        """Where the kept file lies. Reads nothing but the index."""
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

    # -- what is known ----------------------------------------------------------------------------

    def info(self, key: str) -> dict[str, Any]:
        """The metadata of one picture."""
        with self._reading(key):
            entry = self._entry(key)
            row = self.dataset.metadata(key, _INFO)
            has_original = self._has_original(entry)
            sizes = list(row["cumulative_bytes"] or ())
            if None in sizes:
                raise DamagedDataError(f"{entry.file.path}: {key!r} lacks layer sizes", key)
        pixels = entry.width * entry.height
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
        }

    def page(self, after: str | None, limit: int, search: str, filter: Any) -> dict[str, Any]:
        """Some pictures in the dataset's order, and the cursor of the next page.

        Damaged and missing files are left out. Raises CursorError for a cursor of another dataset.
        """
        with self._answering():
            items, cursor = page(self.dataset.lookup, after, limit, search, filter, _left_out)
        shown = [{**item, "psnr": _in_json(item["psnr"])} for item in items]
        return {"items": shown, "next": cursor}

    def facts(self) -> dict[str, Any]:
        """Facts about the dataset, without its URL, which clients need not know."""
        dataset, codec = self.dataset, self._codec
        return {
            "name": dataset.url.rstrip("/").rpartition("/")[2],
            "pictures": len(dataset),
            "layers": dataset.num_layers,
            "codec": codec.codec,
            "model_id": dataset.model_id,
            "lossless": codec.lossless and dataset.num_layers == codec.num_layers,
            "failed": len(dataset.failed),
            "version": self.version,
        }

    # -- small helpers ----------------------------------------------------------------------------

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
                f"this picture has {width * height} pixels, and this server decodes at most "
                f"{self._max_pixels} (--max-pixels): read it with pipeline.open_dataset"
            )

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Turn damage into NotFound: unlike a store that does not answer, it does not pass."""
        try:
            with self._answering():
                yield
        except DatasetError as error:
            if error.passing:
                raise
            raise nothing_left(key, error) from error

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn errors of stores into StorageError: they are not bugs of this program."""
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OSError) or may_pass(error)):
                raise
            with storage_errors(self.dataset.url, "cannot be read"):
                raise


def nothing_left(key: str, error: Exception) -> NotFound:
    """The error for a client. The cause names files, so it goes to the log."""
    log.error("%r cannot be shown: %s", key, error)
    return NotFound(f"{key!r} cannot be shown: its data is damaged or gone")


def _left_out(error: DatasetError) -> None:
    log.error("a page leaves out pictures: %s", error)


def _not_kept(key: str) -> NotFound:
    return NotFound(f"the original of {key!r} was not kept")


def _file_bytes(entry: IndexEntry) -> int:
    """About how many bytes an original takes, with the bytes that it is unpacked from."""
    stored = entry.original.length if entry.original else 0
    return 3 * stored if entry.original_packing else stored


def _place(entry: IndexEntry) -> tuple[object, ...]:
    return entry.file.name, entry.file.bytes, entry.row


def _in_json(psnr: list[float | None] | None) -> list[float | None] | None:
    """PSNR by layer with null where nothing is lost: JSON knows no infinity."""
    if psnr is None:
        return None
    return [one if one is not None and math.isfinite(one) else None for one in psnr]


def _version(dataset: Dataset) -> str:
    """A hash of the data files and of this release: it changes whenever a picture may."""
    files = sorted((file.name, file.bytes, file.footer_bytes) for file in dataset.files)
    text = repr((RELEASE, dataset.fingerprint, files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
