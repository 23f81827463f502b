"""The summary of a compress job: sizes, quality, kept originals, failures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from codec.images.losses import METADATA
from codec.images.packing import PACKAGE, can_pack

from ..dataset.kept_files import ASKED, BELOW, EXACT, KEPT, LARGER, MISSED
from ..dataset.totals import totals_of
from ..running.progress.summary import Summary, plural, share, size
from ..sources.samples import SIDE_FIELDS

_WHY = {
    LARGER: "no stream is smaller",
    BELOW: "below --target-quality",
    EXACT: "--lossless JPEG files",
    ASKED: "--keep-original always",
    "bad": "bad samples",
    "filtered": "filtered samples",
}
_SMALL = 10_000  # bytes of a picture's file
_FEW = 20
_NAMED = 5


@dataclass
class CompressSummary(Summary):
    """``totals`` are as in the manifest, with ``input_bytes`` and ``archive_bytes``.

    They are sums over all shards of the job. ``archive_bytes`` are those of data files and indexes.
    """

    totals: dict[str, Any] = field(default_factory=dict)


def add_totals(
    summary: CompressSummary,
    records: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> None:
    """Add the records of all shards; ``parameters`` are the plan's."""
    side_pictures = 0
    names: list[str] = []
    inputs = archive = 0
    for record in records.values():
        summary.add_record(record, record["source"]["url"])
        side_pictures += record.get("side_pictures", 0)
        names += record.get("side_names", [])[: _NAMED - len(names)]
        inputs += record["source"]["size"]
        archive += record["bytes"] + (record.get("index") or {}).get("bytes", 0)
    totals = totals_of(records.values()) | {"input_bytes": inputs, "archive_bytes": archive}
    summary.totals = totals
    if records:
        summary.notes += _lines(totals)
    if side_pictures:
        summary.notes.append(
            f"warning: {plural(side_pictures, 'picture')} not encoded but kept as files "
            f"({', '.join(names)}{', ...' if side_pictures > len(names) else ''}), {SIDE_FIELDS}"
        )
    if archive > inputs > 0:
        summary.notes.append(
            f"warning: the archive is larger than its input: {_advice(totals, parameters)}"
        )
    if parameters["keep_original"] in ("larger", "always") and not can_pack():
        summary.notes.append(
            "originals that are JPEG files are kept as they are: they would be some 20 % smaller "
            f"with {PACKAGE} (pip install {PACKAGE})"
        )


def _lines(totals: Mapping[str, Any]) -> list[str]:
    """The summary, within 80 columns."""
    lines = [
        f"bytes:       {size(totals['input_bytes'])} of shards -> "
        f"{size(totals['archive_bytes'])} of data files and indexes, "
        f"{share(totals['archive_bytes'], totals['input_bytes'])}"
    ]
    if totals["pixels"]:
        before, after = totals["picture_bytes"], totals["stream_bytes"]
        lines.append(
            f"pictures:    {size(before)} -> {size(after)} of streams and kept files, "
            f"{share(after, before)}"
        )
    lines += kept_lines(totals)
    if totals["by_reason"].get(MISSED):
        lines.append(f"warning: {plural(totals['by_reason'][MISSED], 'picture')} {MISSED}")
    lines += loss_lines(totals)
    if totals["side_fields"]:
        lines.append(
            f"side fields: {plural(totals['side_fields'], 'file')}, {size(totals['side_bytes'])}"
        )
    return lines


def kept_lines(totals: Mapping[str, Any]) -> list[str]:
    """Layers, quality and originals in words, from ``totals_of``."""
    by_layers = sorted(totals["by_layers"].items(), key=lambda one: int(one[0]))
    lines = _table("layers:", (f"{plural(count, 'picture')} in {n}" for n, count in by_layers))
    lines += _table("quality:", (_told(*one) for one in reversed(totals["quality"].items())))
    reasons = totals["by_reason"]
    kept = [(count, why) for why, count in reasons.items() if why in _WHY]
    return lines + _table(
        "originals:",
        (
            f"{count:,} kept{', exact' if why in KEPT else ''}: {_WHY[why]}"
            for count, why in sorted(kept, reverse=True)
        ),
    )


def loss_lines(totals: Mapping[str, Any]) -> list[str]:
    """What the pictures whose files are not kept have lost, from ``totals_of``."""
    losses = totals["by_loss"]
    metadata = [why for why in losses if why.startswith(METADATA)]
    lines = []
    if metadata:
        kinds = {kind for why in metadata for kind in why.partition(": ")[2].split(", ")}
        pictures = plural(sum(losses[why] for why in metadata), "picture")
        lines.append(
            f"metadata ({', '.join(sorted(kinds))}) of {pictures} is not kept: "
            "--keep-original always keeps the files"
        )
    others = ((why, losses[why]) for why in losses if why not in metadata)
    return lines + [f"warning: {plural(count, 'picture')}: {why}" for why, count in others]


def _table(title: str, lines: Iterable[str]) -> list[str]:
    """Lines of a table; only the first has the title."""
    return [f"{'' if number else title:12} {line}" for number, line in enumerate(lines)]


def _told(name: str, found: Mapping[str, Any]) -> str:
    title = {"psnr": "PSNR", "ssimulacra2": "SSIMULACRA2"}[name]
    worst, low, median = (_figure(name, found[key]) for key in ("worst", "percent_5", "median"))
    of = plural(found["pictures"], "stream")
    return f"{title} of {of}: worst {worst}, 5 % {low}, median {median}"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "exact"
    return f"{value:.1f}{' dB' if name == 'psnr' else ''}"


def _advice(totals: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Advice how to make the archive smaller than its input."""
    pictures = sum(totals["by_layers"].values())
    if parameters["keep_original"] in ("never", "bad"):
        return "--keep-original larger keeps the files that are smaller than their streams"
    if totals["picture_bytes"] < _SMALL * pictures:
        return "its pictures are so small that metadata and previews weigh more than what is saved"
    if parameters["keep_original"] == "always":
        return "--keep-original larger keeps fewer files, and --store-layers 1 smaller previews"
    if pictures < _FEW:
        return "of so few pictures, what a data file has beside them weighs more than what is saved"
    if parameters["lossless"]:
        return "leave out --lossless, or give --target-quality 70, for smaller streams"
    return "--target-quality 70 gives smaller streams"
