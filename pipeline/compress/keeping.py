"""How many layers of a picture are stored, and whether its own file is kept beside them."""

from codec import EncodedImage

from ..dataset.rows import Row
from .settings import CompressSettings

# Beside an original that is kept, a stream only serves previews: an eighth of the bytes is enough.
PREVIEW_SHARE = 8


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
