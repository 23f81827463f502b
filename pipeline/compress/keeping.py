"""How many layers of a picture are stored, and whether its own file is kept beside them."""

from dataclasses import replace

from codec import EncodedImage

from ..dataset.rows import Row, Status
from ..sources.samples import is_picture
from .settings import CompressSettings

# Beside an original that is kept, a stream only serves previews: an eighth of the bytes is enough.
PREVIEW_SHARE = 8
KEEP_FILTERED_BYTES = 1 << 20  # larger fields of samples that were left out on purpose are dropped


def choose(
    settings: CompressSettings, row: Row, stream: EncodedImage, quality: tuple[float, ...] | None
) -> tuple[int, bool]:
    """Layers to store, and whether to keep the original.

    Args:
        quality: PSNR in dB after each layer; None where no floor is set.
    """
    alpha, source = len(row.alpha or b""), row.source_bytes or 0
    layers = settings.layers
    if settings.fit:
        layers = _layers_within(stream, layers, alpha, source)
    if settings.keep_original == "larger":
        larger = stream.truncate(layers).nbytes + alpha > source
        if larger or (quality is not None and quality[layers - 1] < (settings.min_psnr or 0)):
            return _layers_within(stream, layers, alpha, source // PREVIEW_SHARE), True
    return layers, settings.keep_original == "always"


def _layers_within(encoded: EncodedImage, limit: int, alpha_bytes: int, room: int) -> int:
    """The most layers, up to ``limit``, whose stream is not larger than ``room``.

    Never fewer than one: with none there would be no picture.
    """
    kept, total = 1, len(encoded.header) + alpha_bytes
    for number, layer in enumerate(encoded.layers[:limit], start=1):
        total += len(layer)
        if total <= room:
            kept = number
    return kept


def keeps_field(settings: CompressSettings, name: str, size: int, status: Status) -> bool:
    """Whether a field of ``size`` bytes of a sample that gives no picture is kept."""
    keep = settings.keep_original
    if keep == "always" or (keep != "never" and status == "bad"):
        return True
    return size <= KEEP_FILTERED_BYTES and not (keep == "never" and is_picture(name))


def without_picture(settings: CompressSettings, row: Row, status: Status, reason: str) -> Row:
    """The row of a sample that gives no picture; its file stays in it where it is kept."""
    source = row.original or b""
    kept = keeps_field(settings, row.source_field or "", len(source), status)
    original = source if kept else None
    return replace(row, status=status, reason=reason, original=original, alpha=None)
