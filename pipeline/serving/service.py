"""Previews of one dataset, without HTTP: find, read, decode in batches, write, remember.

    key ──► find (index) ──► read (its layers) ──► decode (a batch) ──► write (webp, ...) ──► cache
            reader threads   reader threads        the device's thread   writer threads

Nothing of this runs in the event loop, and each step is bounded (``Limits``).
"""

import asyncio
import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from codec import Codec, CorruptStreamError, EncodedImage
from codec.errors import BrokenImageError, UnsupportedImageError

from ..retrieval.cache import ByteCache
from ..retrieval.datafiles import DamagedDataError
from ..retrieval.dataset import Dataset, open_dataset
from ..retrieval.index import IndexEntry
from .answers import Answer, CannotShow, NotThere
from .batching import Batcher
from .figures import Figures
from .limits import DEFAULT_LIMITS, Gate, Limits
from .rendering import MEDIA_TYPES, RELEASE, Format, alpha_like, etag, from_original, render

T = TypeVar("T")
log = logging.getLogger("strata.previews")

_READERS = 16  # they wait for a store more than they work
_LOOKUPS = Limits(running=_READERS, waiting=240)
_OVERHEAD = 1000  # bytes that a kept answer takes besides its body
_INFO = ["status", "layers", "cumulative_bytes", "psnr", "source_format", "source_bytes", "notes"]
# Of originals; browsers show most of them.
ORIGINALS = {
    name: f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
} | {"ppm": "image/x-portable-anymap", "jpeg2000": "image/jp2"}


@dataclass(frozen=True)
class Settings:
    """What a server process is told. ``options`` are fsspec's, and may hold secrets."""

    dataset: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True)
class Wish:
    """A picture as somebody wants it: its first ``layers``, no longer than ``max_side`` pixels."""

    key: str
    layers: int | None = None
    max_side: int | None = None
    format: Format = "webp"


@dataclass(frozen=True)
class _Found:
    """A wish and the place it leads to. ``layers`` are those that are stored and wanted."""

    wish: Wish
    entry: IndexEntry
    layers: int
    original: bool
    etag: str


@dataclass(frozen=True)
class _Source:
    """What a picture is made from. ``damaged`` is the first layer that cannot be used."""

    stream: EncodedImage
    alpha: bytes | None
    damaged: int | None


class PreviewService:
    """Everything a server needs of one dataset. Its coroutines belong to one event loop.

    They raise NotThere for unknown keys, CannotShow for what should be asked for in another way,
    Busy where too many wait, and TimeoutError after ``limits.deadline``.
    """

    def __init__(self, dataset: Dataset, codec: Codec, limits: Limits = DEFAULT_LIMITS) -> None:
        self.dataset, self.codec, self.limits = dataset, codec, limits
        self.figures = Figures()
        self.version = _version(dataset)
        self._gate = Gate(limits.running, limits.waiting)
        self._lookups = Gate(_LOOKUPS.running, _LOOKUPS.waiting)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="write")
        decode = self.figures.working("decode", self._decode)
        # First layers are cheap, and what people scroll through: they never wait for the others.
        self._first, self._others = (
            Batcher(decode, limits, self.figures.batches.observe) for _ in range(2)
        )
        self._cache = ByteCache(limits.cache_bytes)
        self.figures.inside.set_function(lambda: self._gate.inside)
        self.figures.cache_bytes.set_function(lambda: self._cache.bytes)

    @classmethod
    def open(cls, settings: Settings) -> "PreviewService":
        """Open the dataset, load its model onto the device and try both."""
        dataset = open_dataset(settings.dataset, settings.options)
        codec = dataset.codec(settings.device)
        grey = np.full((64, 64, 3), 128, np.uint8)
        codec.decode_small(codec.encode([grey], layers=1), max_side=32)  # the first is slow
        return cls(dataset, codec, settings.limits)

    def close(self) -> None:
        """End the threads after what they are doing."""
        self._first.close()
        self._others.close()
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=True, cancel_futures=True)

    # -- what is asked for ------------------------------------------------------------------------

    async def image(self, wish: Wish, known: Callable[[str], bool] = lambda _: False) -> Answer:
        """The picture as a file; with an empty body where the client has it (``known(etag)``)."""
        async with asyncio.timeout(self.limits.deadline):
            found = await self._look_up("find", self._find, wish)
            media_type = MEDIA_TYPES[wish.format]
            if known(found.etag):
                self.figures.cache.labels("not_modified").inc()
                return Answer(b"", media_type, found.etag)
            cached: Answer | None = self._cache.get(found.etag)
            self.figures.cache.labels("miss" if cached is None else "hit").inc()
            if cached is not None:
                return cached
            async with self._gate.enter():
                return await self._make(found)

    async def info(self, key: str) -> dict[str, Any]:
        """What there is to know of one picture besides its pixels."""
        async with asyncio.timeout(self.limits.deadline):
            return await self._look_up("info", self._info, key)

    async def original(self, key: str) -> Answer:
        """The kept original. Raises NotThere where none is kept."""
        async with asyncio.timeout(self.limits.deadline):
            async with self._gate.enter():
                return await self._in(self._readers, "read", self._original, key)

    async def page(self, after: str | None, limit: int, search: str, filter: Any) -> dict[str, Any]:
        """Some pictures in the dataset's order, and the cursor that goes on behind them.

        Raises CursorError for a cursor that was not given by this dataset.
        """

        def read() -> dict[str, Any]:
            items, cursor = self.dataset.page(after, limit, search=search, filter=filter)
            shown = [{**item, "psnr": _in_json(item["psnr"])} for item in items]
            return {"items": shown, "next": cursor}

        async with asyncio.timeout(self.limits.deadline):
            return await self._look_up("page", read)

    def facts(self) -> dict[str, Any]:
        """What there is to know of the dataset; its address is not for everybody."""
        dataset, codec = self.dataset, self.codec
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

    # -- the steps --------------------------------------------------------------------------------

    async def _look_up(self, stage: str, function: Callable[..., T], *arguments: Any) -> T:
        async with self._lookups.enter():
            return await self._in(self._readers, stage, function, *arguments)

    async def _in(
        self, pool: ThreadPoolExecutor, stage: str, function: Callable[..., T], *arguments: Any
    ) -> T:
        work = self.figures.working(stage, function)
        with self.figures.stage(stage):
            return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    def _entry(self, key: str) -> IndexEntry:
        entry = self.dataset.locate(key)
        if entry is None:
            raise NotThere(f"there is no picture with the key {key!r}")
        return entry

    def _find(self, wish: Wish) -> _Found:
        entry = self._entry(wish.key)
        wanted = self.dataset.num_layers if wish.layers is None else wish.layers
        layers = min(wanted, entry.num_layers)
        original = entry.num_layers < wanted and self._has_original(entry)
        # What a picture is made from: its place (data files are written once), and its bytes.
        place = (entry.file.name, entry.file.bytes, entry.row, entry.header)
        parts = (self.dataset.model_id, *place, entry.lengths[:layers], entry.crc32s[:layers])
        tag = etag((*parts, original, layers, wish.max_side, wish.format))
        return _Found(wish, entry, layers, original, tag)

    async def _make(self, found: _Found) -> Answer:
        figures = self.figures
        if found.original:
            return self._keep(await self._in(self._writers, "write", self._show_original, found))
        source = await self._in(self._readers, "read", self._read, found)
        figures.stream_bytes.inc(source.stream.nbytes)
        with figures.stage("decode"):
            rgb, source = await self._decode_sound_layers(source, found.wish)
        body = await self._in(self._writers, "write", self._write, rgb, source, found.wish)
        layers, nbytes = source.stream.num_layers, source.stream.nbytes
        media_type = MEDIA_TYPES[found.wish.format]
        if source.damaged is not None:
            figures.damaged.inc()
            return Answer(body, media_type, "", layers, nbytes, damaged=source.damaged)
        return self._keep(Answer(body, media_type, found.etag, layers, nbytes))

    def _keep(self, answer: Answer) -> Answer:
        cost = len(answer.body) + _OVERHEAD
        if 4 * cost <= self.limits.cache_bytes:  # one picture must not drive out all the others
            self._cache.put(answer.etag, answer, cost)
        return answer

    def _read(self, found: _Found) -> _Source:
        entry, layers = found.entry, found.layers
        while True:
            try:
                (record,) = self.dataset.fetch([entry.key], layers, columns=["alpha"])
                break
            except DamagedDataError as error:  # without an index, nobody knows which layer it is
                layers = layers - 1 if error.layer is None else error.layer
                if layers < 1:
                    raise _nothing_left(entry.key, error) from error
        self._check_size(record.width * record.height)
        damaged = layers if layers < found.layers else None
        return _Source(record.encoded, record.extra["alpha"], damaged)

    async def _decode_sound_layers(self, source: _Source, wish: Wish) -> tuple[np.ndarray, _Source]:
        """The picture from the layers that can be decoded, and these."""
        while True:
            stream = source.stream
            try:
                batcher = self._first if stream.num_layers == 1 else self._others
                rgb = await batcher.decode(stream, stream.num_layers, wish.max_side)
                return rgb, source
            except CorruptStreamError as error:
                if not error.layer:
                    raise _nothing_left(wish.key, error) from error
                source = replace(source, stream=stream.truncate(error.layer), damaged=error.layer)

    def _decode(
        self, streams: Sequence[EncodedImage], layers: int, max_side: int | None
    ) -> list[np.ndarray]:
        if max_side is None:
            return self.codec.decode(streams, layers=layers)
        return self.codec.decode_small(streams, max_side=max_side, layers=layers)

    def _write(self, rgb: np.ndarray, source: _Source, wish: Wish) -> bytes:
        if source.alpha is None:
            return render(rgb, None, wish.format)
        try:
            alpha = alpha_like(source.alpha, rgb, self.limits.max_pixels)
        except CorruptStreamError as error:
            raise _nothing_left(wish.key, error) from error
        return render(rgb, alpha, wish.format)

    def _show_original(self, found: _Found) -> Answer:
        entry, wish = found.entry, found.wish
        self._check_size(entry.width * entry.height)
        original = self._original_bytes(entry.key)
        try:
            rgb, alpha = from_original(original, wish.max_side, self.limits.max_pixels)
        except (BrokenImageError, UnsupportedImageError) as error:
            raise _nothing_left(wish.key, error) from error
        body = render(rgb, alpha, wish.format)
        return Answer(
            body, MEDIA_TYPES[wish.format], found.etag, entry.num_layers, len(original), True
        )

    # -- what the dataset knows -------------------------------------------------------------------

    def _has_original(self, entry: IndexEntry) -> bool:
        if entry.indexed:
            return entry.original is not None
        return self.dataset.original(entry.key) is not None

    def _original_bytes(self, key: str) -> bytes:
        try:
            original = self.dataset.original(key)
        except DamagedDataError as error:
            raise _nothing_left(key, error) from error
        if original is None:
            raise NotThere(f"the original of {key!r} was not kept")
        self.figures.stream_bytes.inc(len(original))
        return original

    def _original(self, key: str) -> Answer:
        entry = self._entry(key)
        original = self._original_bytes(key)
        format = self.dataset.metadata(key, ["source_format"])["source_format"]
        tag = etag((entry.file.name, entry.file.bytes, entry.row, "original"))
        media_type = ORIGINALS.get(format, "application/octet-stream")
        return Answer(original, media_type, tag, entry.num_layers, len(original), True)

    def _info(self, key: str) -> dict[str, Any]:
        entry = self._entry(key)
        row = self.dataset.metadata(key, _INFO)
        sizes = list(row["cumulative_bytes"] or ())
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
            "has_original": self._has_original(entry),
            "model_id": self.dataset.model_id,
            "codec": self.codec.codec,
            "notes": row["notes"] or "",
        }

    def _check_size(self, pixels: int) -> None:
        if pixels > self.limits.max_pixels:
            raise CannotShow(
                f"this picture has {pixels} pixels, and this server decodes at most "
                f"{self.limits.max_pixels}: read it with pipeline.open_dataset"
            )


def _in_json(psnr: list[float] | None) -> list[float | None] | None:
    """PSNR by layer with null where nothing is lost: JSON knows no infinity."""
    return None if psnr is None else [one if math.isfinite(one) else None for one in psnr]


def _nothing_left(key: str, error: Exception) -> NotThere:
    log.error("%r cannot be shown: %s", key, error)  # names files: for whoever runs the server
    return NotThere(f"the data of {key!r} is damaged: it cannot be shown")


def _version(dataset: Dataset) -> str:
    """Of what the dataset holds and how it is shown: it changes when any picture may."""
    files = sorted((file.name, file.bytes, file.footer_bytes) for file in dataset.files)
    text = repr((RELEASE, dataset.fingerprint, files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
