"""Decides how many layers of a picture are stored, and whether its own file is kept."""

from dataclasses import replace

from codec import EncodedImage
from codec.images.packing import pack_file

from ..dataset.kept_files import ASKED, BELOW, EXACT, LARGER, MISSED
from ..dataset.rows import Row, Status
from ..sources.samples import is_picture
from ..stores.reasons import describe
from .quality import Measured
from .settings import CompressSettings

PREVIEW_LAYERS = 2  # if the original is kept, the stream is only for previews
PACKED_SHARE = 2  # Lepton packs a file to not less than half its bytes
KEEP_FILTERED_BYTES = 1 << 20  # larger fields of filtered samples are dropped


def layers_to_encode(settings: CompressSettings, row: Row) -> int:
    """How many layers the codec must make of a picture: no more than can be stored."""
    if _is_exact_file(settings, row):
        return min(PREVIEW_LAYERS, settings.layers)
    if isinstance(settings.store_layers, int):
        return min(settings.store_layers, settings.layers)
    return settings.layers


def packed(row: Row) -> Row:
    """The row with its original, if it has one, packed for storing."""
    if row.original is None:
        return row
    data, packing = pack_file(row.original)
    return replace(row, original=data, original_packing=packing)


def finished_row(
    settings: CompressSettings,
    row: Row,
    stream: EncodedImage | Exception,
    measured: Measured | Exception | None,
) -> Row:
    """The row with the stored layers of its stream, or with the reason why there is no stream.

    ``row.original`` is the picture's file; it is packed if it is kept.
    """
    if isinstance(stream, Exception):
        reason = f"the codec failed: {describe(stream)}"
        return packed(without_picture(settings, row, "bad", reason))
    if isinstance(measured, Exception):
        reason = f"the codec cannot read its own stream: {describe(measured)}"
        return packed(without_picture(settings, row, "bad", reason))
    layers = _wanted(settings, row, stream, measured)
    nbytes = stream.truncate(layers).nbytes + len(row.alpha or b"")
    if _kept(settings, row, PACKED_SHARE * nbytes, measured):
        row = packed(row)
    reason = _kept(settings, row, nbytes, measured)
    if reason in (LARGER, BELOW):
        layers = min(PREVIEW_LAYERS, layers)
    elif not reason:
        reason = MISSED if measured is not None and measured.needed is None else ""
        row = replace(row, original=None, original_packing=None)
    return replace(
        row,
        reason=reason,
        encoded=stream.truncate(layers),
        psnr=None if measured is None else measured.psnr[:layers],
    )


def _wanted(
    settings: CompressSettings, row: Row, stream: EncodedImage, measured: Measured | None
) -> int:
    """The number of layers to store if the file is not kept."""
    if settings.store_layers == "fit":
        return _layers_within(stream, len(row.alpha or b""), row.source_bytes or 0)
    if settings.store_layers is None and measured is not None and measured.needed is not None:
        return measured.needed
    return stream.num_layers


def _kept(settings: CompressSettings, row: Row, nbytes: int, measured: Measured | None) -> str:
    """Why the picture's file is kept, or ""; ``nbytes`` is the size of what would replace it."""
    if settings.keep_original == "always":
        return ASKED
    if settings.keep_original != "larger":
        return ""
    if _is_exact_file(settings, row):
        return EXACT
    if measured is not None and measured.needed is None:
        return BELOW
    return LARGER if nbytes >= len(row.original or b"") else ""


def _is_exact_file(settings: CompressSettings, row: Row) -> bool:
    """Whether the file is kept rather than an exact stream, which would be larger for a JPEG."""
    larger = settings.keep_original == "larger"
    return settings.lossless and larger and row.source_format == "jpeg"


def _layers_within(encoded: EncodedImage, alpha_bytes: int, room: int) -> int:
    """The most layers whose stream is not larger than ``room``.

    At least one, because without layers there is no picture.
    """
    kept, total = 1, len(encoded.header) + alpha_bytes
    for number, layer in enumerate(encoded.layers, start=1):
        total += len(layer)
        if total <= room:
            kept = number
    return kept


def keeps_field(settings: CompressSettings, name: str, size: int, status: Status) -> bool:
    """Whether a field of ``size`` bytes of a bad or filtered sample is kept."""
    keep = settings.keep_original
    if keep == "always" or (keep != "never" and status == "bad"):
        return True
    return size <= KEEP_FILTERED_BYTES and not (keep == "never" and is_picture(name))


def without_picture(settings: CompressSettings, row: Row, status: Status, reason: str) -> Row:
    """The row of a bad or filtered sample, with its file if that is kept."""
    source = row.original or b""
    kept = keeps_field(settings, row.source_field or "", len(source), status)
    original = source if kept else None
    return replace(row, status=status, reason=reason, original=original, alpha=None)
