"""Reads a sample of a shard: makes its row, and decodes its picture or says why it has none."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from codec.images.alpha import pack_alpha
from codec.images.files import read_image

from ..dataset.rows import Row, Status
from ..sources.samples import Sample
from ..sources.shards import ShardFile
from ..stores.reasons import describe
from .keeping import keeps_field, without_picture
from .settings import CompressSettings


@dataclass(frozen=True)
class Loaded:
    """A loaded sample: its row so far, and the picture if there is one to encode.

    ``row.original`` is the picture's file until it is decided whether to keep it. An
    ``untouchable`` sample has killed a worker: its file is not read any more.
    """

    row: Row
    rgb: np.ndarray | None = None
    untouchable: bool = False

    @property
    def cost(self) -> int:
        """Bytes in memory: the picture, its file, and the sample's other fields."""
        contents = (self.row.original, self.row.alpha, *(data for _, data in self.row.fields))
        pixels = 0 if self.rgb is None else self.rgb.nbytes
        return pixels + sum(len(data) for data in contents if data is not None)


def load(
    settings: CompressSettings,
    file: ShardFile,
    index: int,
    sample: Sample,
    skip: str | None = None,
) -> Loaded:
    """Read a sample's fields and decode its picture, or say why it has none.

    ``skip`` is the reason why its picture must not be read. Safe in several threads.
    """
    if reason := sample.filtered or sample.problem or _too_large(settings, sample):
        status: Status = "filtered" if sample.filtered else "bad"
        kept = tuple(_read_some(settings, file, sample, status))
        return Loaded(Row(sample.key, index, status, reason, kept))
    image_field = sample.image_field
    data = {name: file.read(member) for name, member in sample.fields}
    if image_field is None:
        names = ", ".join(name or "(none)" for name in data)
        reason = f"no picture among its fields: {names}"
        return Loaded(Row(sample.key, index, "bad", reason, tuple(data.items())))
    source = data[image_field]
    row = Row(
        sample.key,
        index,
        fields=tuple((n, None if n == image_field else content) for n, content in data.items()),
        original=source,
        source_field=image_field,
        source_bytes=len(source),
        source_sha256=hashlib.sha256(source).digest(),
    )
    if skip is not None:
        return Loaded(without_picture(settings, row, "bad", skip), untouchable=True)
    try:
        picture = read_image(source, max_pixels=settings.max_pixels)
    except Exception as error:
        return Loaded(without_picture(settings, row, "bad", describe(error)))
    row = replace(row, source_format=picture.format, notes="; ".join(picture.notes))
    height, width = picture.rgb.shape[:2]
    if min(height, width) < settings.min_side:
        reason = f"smaller than --min-side {settings.min_side}: {width}x{height}"
        return Loaded(without_picture(settings, row, "filtered", reason))
    alpha = None if picture.alpha is None else pack_alpha(picture.alpha)
    rgb = np.ascontiguousarray(picture.rgb)
    digest = hashlib.sha256(rgb.data).digest()
    return Loaded(replace(row, alpha=alpha, image_sha256=digest), rgb)


def _too_large(settings: CompressSettings, sample: Sample) -> str:
    """Why the sample takes too much memory, or ''."""
    limit = settings.max_sample_bytes
    if sample.size <= limit:
        return ""
    return (
        f"larger than --max-sample-bytes {limit}: {sample.size} bytes in {len(sample.fields)} "
        "files of one sample"
    )


def _read_some(
    settings: CompressSettings, file: ShardFile, sample: Sample, status: Status
) -> Iterator[tuple[str, bytes | None]]:
    """The fields of a bad or filtered sample, with the bytes of those that are kept."""
    room = settings.max_sample_bytes
    for name, member in sample.fields:
        kept = not member.problem and keeps_field(settings, name, member.size, status)
        if kept and member.size <= room:
            room -= member.size
            yield name, file.read(member)
        else:
            yield name, None
