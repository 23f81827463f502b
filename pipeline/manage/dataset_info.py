"""What an archive is: figures, and the lines that ``strata info`` prints."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..compress.summary import kept_lines
from ..running.progress.summary import plural, share, size

LISTED = 10


@dataclass(frozen=True)
class LayerFacts:
    """A layer's bytes in all data files, and the bits per pixel of all layers up to it.

    ``bits_per_pixel`` counts headers and the first ``number`` layers, over the pixels of all
    pictures, however many layers they store.
    """

    number: int
    bytes: int
    bits_per_pixel: float


@dataclass(frozen=True)
class ModelFacts:
    """The archive's model.

    ``name`` is that of the shipped model with this id, or empty. ``recipe`` and ``about`` are from
    the model's card. ``present`` says whether the archive has its copy of the model.
    """

    id: str
    codec: str
    layers: int
    name: str = ""
    recipe: str = ""
    about: str = ""
    present: bool = True


@dataclass(frozen=True)
class DatasetInfo:
    """A description of an archive.

    Attributes:
        counts: ``rows``, of which ``ok``, ``bad`` and ``filtered``; ``deleted`` samples, which have
            no row; ``kept`` originals of pictures, and ``side_pictures``.
        totals: those of ``totals_of``: pictures by layers, why originals are kept, the quality of a
            sample.
        bytes: of data files; ``index_bytes`` of indexes, ``picture_bytes`` of the original picture
            files, ``stream_bytes`` of the streams or originals that replace these.
        other_bytes: of other columns: ``original`` (also of bad samples), ``alpha``, ``fields``,
            ``metadata``.
        inputs: URLs and sizes; ``failed`` are inputs (``url``, ``error``) that could not be
            compressed.
        problems: contradictions between manifest, records and files.
        unfinished: what a job has started and not finished.
        records_read: bytes by column come from the records of so many data files. They are
            estimates if there are more.
        requests: how many were made; a listing of more than a thousand files takes more.
    """

    url: str
    manifest: int
    fingerprint: str
    parameters: dict[str, Any] = field(repr=False)
    plan: list[str]
    model: ModelFacts
    files: int
    counts: dict[str, int]
    totals: dict[str, Any]
    pixels: int
    bytes: int
    index_bytes: int
    picture_bytes: int
    stream_bytes: int
    header_bytes: int
    layers: list[LayerFacts]
    other_bytes: dict[str, int]
    inputs: list[dict[str, Any]] = field(repr=False)
    failed: list[dict[str, str]] = field(repr=False)
    problems: list[str]
    unfinished: list[str]
    records_read: int
    requests: int

    @property
    def exit_code(self) -> int:
        """0 if manifest, records and files agree."""
        return 1 if self.problems else 0

    @property
    def estimated(self) -> bool:
        """Whether bytes by column are estimated."""
        return self.records_read < self.files

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"estimated": self.estimated, "exit_code": self.exit_code}

    def lines(self) -> list[str]:
        return [*_contents(self), *_by_layer(self), *_origin(self), *_health(self)]


def _contents(info: DatasetInfo) -> Iterator[str]:
    counts, model = info.counts, info.model
    name = model.name or f"not shipped, {model.recipe or 'unknown'} recipe"
    yield f"{info.url} (manifest {info.manifest}, {plural(info.files, 'data file')})"
    others = [f"{counts['bad']:,} bad", f"{counts['filtered']:,} filtered"]
    others += [f"{counts['deleted']:,} deleted"] * bool(counts["deleted"])
    yield (
        f"pictures:    {counts['ok']:,} ({', '.join(others)}), "
        f"{info.pixels / 1e6:,.1f} million pixels"
    )
    part = share(info.bytes, info.picture_bytes)
    of_these = f", {part} of these" if part != "-" else ""
    pictures, files, indexes = map(size, (info.picture_bytes, info.bytes, info.index_bytes))
    yield f"bytes:       {pictures} of picture files -> {files} of data files{of_these}"
    yield f"             {indexes} of indexes"
    yield from kept_lines(info.totals)
    if counts["side_pictures"]:
        yield f"             {plural(counts['side_pictures'], 'picture')} as side fields"
    yield f"model:       {model.codec}, {plural(model.layers, 'layer')}: {name}; id {model.id}"
    if model.about:
        yield f"             {model.about}"


def _by_layer(info: DatasetInfo) -> Iterator[str]:
    if info.estimated:
        yield f"estimated from {plural(info.records_read, 'record')} of {info.files:,}:"
    yield f"  {'layer':8} {'bytes':>12} {'bits per pixel up to it':>24}"
    for layer in info.layers:
        yield f"  {layer.number:<8} {size(layer.bytes):>12} {layer.bits_per_pixel:24.3f}"
    others = {"headers": info.header_bytes, **info.other_bytes}
    words = [f"{name} {size(count)}" for name, count in others.items() if count]
    yield f"  other columns: {', '.join(words) or 'empty'}"


def _origin(info: DatasetInfo) -> Iterator[str]:
    yield "plan:"
    yield from (f"  {line}" for line in info.plan)
    total = sum(one["bytes"] for one in info.inputs)
    yield f"inputs:      {len(info.inputs):,}, {size(total)}"
    yield from (f"  {one['url']} ({size(one['bytes'])})" for one in info.inputs[:LISTED])
    yield from _more(info.inputs)
    if info.failed:
        yield f"inputs that could not be compressed: {len(info.failed):,}"
        yield from (f"  {one['url']}: {one['error']}" for one in info.failed[:LISTED])
        yield from _more(info.failed)


def _health(info: DatasetInfo) -> Iterator[str]:
    for line in info.unfinished:
        yield f"unfinished: {line}"
    if info.problems:
        yield "problems (strata verify finds more, and repairs):"
        yield from (f"  {line}" for line in info.problems[:LISTED])
        yield from _more(info.problems)
    else:
        yield (
            f"health:      manifest, sizes of files and {plural(info.records_read, 'record')} "
            f"agree ({plural(info.requests, 'request')}); strata verify checks more, and finds "
            "garbage"
        )


def _more(items: Sequence[Any]) -> list[str]:
    return [f"  ... and {len(items) - LISTED:,} more"] if len(items) > LISTED else []
