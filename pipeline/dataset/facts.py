"""What a finished data file holds, counted from the file itself: the facts of its record."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codec.images.losses import loss_of

from .captions import NOTHING, caption_of
from .parquet import ParquetFile
from .rows import (
    RecordError,
    column_bytes,
    encoded_image,
    file_sha256,
    is_side_picture,
    iter_rows,
    local_footer,
    read_metadata,
    schema,
)

MAX_LISTED_PROBLEMS, MAX_REASONS = 100, 20  # of a data file
MAX_LISTED_NAMES = 5
MAX_TOLD = 500  # characters of a key or a reason in a record


class Refusals:
    """Samples that are not ok: how often each reason occurs, and the first samples."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._first: list[tuple[str, ...]] = []

    def add(self, key: str, status: str, reason: str) -> None:
        self._reasons[reason_kind(reason)] += 1
        if len(self._first) < MAX_LISTED_PROBLEMS:
            self._first.append(tuple(text[:MAX_TOLD] for text in (key, status, reason)))

    def facts(self) -> dict[str, Any]:
        """``reasons`` and ``problems`` of a record."""
        reasons = dict(self._reasons.most_common(MAX_REASONS))
        return {"reasons": reasons, "problems": self._first}


@dataclass(frozen=True)
class FileFacts:
    """What a data file holds, counted from the file itself.

    ``footer_crc32`` is the checksum of the last ``footer_bytes`` of the file, because a damaged
    footer can crash the process that parses it. ``column_bytes`` are the compressed sizes of the
    columns. ``picture_bytes`` sums the source files of the ok rows, ``stream_bytes`` what replaces
    them (header, layers, alpha, kept originals), and ``kept`` counts kept originals.
    ``side_pictures`` counts pictures that are side fields, which are not encoded, and
    ``side_names`` are the first of them; ``side_fields`` and ``side_bytes`` are all fields but the
    pictures. ``by_layers`` counts ok rows by the number
    of their layers, ``by_reason`` ok rows that have a reason (why their original is kept), and
    rows without a picture of which files are kept, as "bad" or "filtered". ``by_loss`` counts ok
    rows whose file is not kept by what their stream does not hold of it. ``formats`` counts the
    ok rows by ``source_format``, and ``captions`` those with a caption or a label
    (``captions.py``). ``problems`` are the first (key, status, reason) of rows that are not ok.
    """

    rows: int
    ok: int
    bad: int
    filtered: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer_crc32: int
    pixels: int
    picture_bytes: int
    stream_bytes: int
    kept: int
    column_bytes: dict[str, int]
    side_pictures: int = 0
    side_names: list[str] = field(default_factory=list)
    side_fields: int = 0
    side_bytes: int = 0
    by_layers: dict[str, int] = field(default_factory=dict)
    by_reason: dict[str, int] = field(default_factory=dict)
    by_loss: dict[str, int] = field(default_factory=dict)
    captions: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, ...]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_file(path: Path, layers: int) -> FileFacts:
    """Reopen a finished file, read all of it with checksums, and count.

    Raises RecordError for rows that contradict themselves, OSError for damaged pages.
    """
    file = ParquetFile(path)
    read_metadata(file, path.name)
    counts, refusals = Counter[str](), Refusals()
    formats, by_loss = Counter[str](), Counter[str]()
    by_layers, by_reason, side = Counter[str](), Counter[str](), Counter[str]()
    side_names: list[str] = []
    pixels = picture_bytes = stream_bytes = kept = side_pictures = captions = 0
    for position, row in enumerate(iter_rows(file, schema(layers).names)):
        counts[row["status"]] += 1
        files = [len(one["data"]) for one in row["fields"] if one["data"] is not None]
        if row["status"] != "ok":
            whole = row["source_field"] is None and bool(files)
            by_reason[row["status"]] += whole or row["original"] is not None
            refusals.add(row["key"], row["status"], row["reason"])
            continue
        encoded = encoded_image(row, layers, path.name)
        if row["index"] != position or encoded.num_layers != row["layers"]:
            raise RecordError(f"{path.name}: row {position} ({row['key']}) contradicts itself")
        if row["cumulative_bytes"][-1:] != [encoded.nbytes]:
            raise RecordError(f"{path.name}: row {position} ({row['key']}) has lost bytes")
        pixels += encoded.width * encoded.height
        picture_bytes += row["source_bytes"]
        stream_bytes += encoded.nbytes + len(row["alpha"] or b"") + len(row["original"] or b"")
        kept += row["original"] is not None
        by_layers[str(encoded.num_layers)] += 1
        by_reason[row["reason"]] += bool(row["reason"])
        if row["original"] is None and row["notes"]:
            by_loss.update({loss_of(note) for note in row["notes"].split("; ")} - {""})
        side.update(fields=len(files), bytes=sum(files))
        pictures = [field["name"] for field in row["fields"] if is_side_picture(field)]
        side_pictures += len(pictures)
        for name in pictures[: MAX_LISTED_NAMES - len(side_names)]:
            side_names.append(f"{row['key']}.{name}"[:MAX_TOLD])
        captions += caption_of(row["fields"]) != NOTHING
        formats.update(filter(None, [row["source_format"]]))
    if sum(counts.values()) != file.metadata.num_rows:
        raise RecordError(f"{path.name}: has {sum(counts.values())} rows, unlike its footer")
    footer_bytes, footer_crc32 = local_footer(path, file.metadata)
    return FileFacts(
        rows=sum(counts.values()),
        ok=counts["ok"],
        bad=counts["bad"],
        filtered=counts["filtered"],
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        footer_bytes=footer_bytes,
        footer_crc32=footer_crc32,
        pixels=pixels,
        picture_bytes=picture_bytes,
        stream_bytes=stream_bytes,
        kept=kept,
        column_bytes=column_bytes(file.metadata),
        side_pictures=side_pictures,
        side_names=side_names,
        side_fields=side["fields"],
        side_bytes=side["bytes"],
        by_layers=dict(sorted(by_layers.items())),
        by_reason={name: count for name, count in sorted(by_reason.items()) if count},
        by_loss=dict(sorted(by_loss.most_common(MAX_REASONS))),
        captions=captions,
        formats=dict(formats.most_common()),
        **refusals.facts(),
    )


def reason_kind(reason: str) -> str:
    """The general part of a reason, for counting: the text before the first colon, shortened."""
    kind = reason.split(":", 1)[0]
    return kind if len(kind) <= 80 else f"{kind[:78].rpartition(' ')[0] or kind[:77]}..."
