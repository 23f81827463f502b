"""Pictures for the report: crops of one picture, as each codec shows it at the same bytes."""

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from codec import Codec

from .bench import model_files, peer_of
from .contenders import Contender
from .measuring import ssimulacra2

CROP = 192  # pixels per side
NEAR = math.log(1.25)  # a file of a more different size is not shown


class _File(NamedTuple):
    group: str
    nbytes: int
    picture: np.ndarray

    def apart(self, nbytes: float) -> float:
        return abs(math.log(self.nbytes / nbytes))


def crops(
    picture: np.ndarray,
    contenders: Sequence[Contender],
    rates: Sequence[float],
    codec: Callable[[str], Codec],
) -> list[dict[str, Any]]:
    """For each of ``rates`` (bits per pixel) the crops of all codecs, with bpp and SSIMULACRA2.

    A model has only a few sizes. So the sizes are those of the first model that are nearest to
    ``rates``, and the settings of the peers are searched for these sizes.
    """
    pixels = picture.shape[0] * picture.shape[1]
    models: dict[str, list[_File]] = {}
    for contender in contenders:
        if contender.is_model:
            models.setdefault(contender.group, []).extend(_files(contender, codec, picture))
    sizes = [rate * pixels / 8 for rate in rates]
    if models:
        first = next(iter(models.values()))
        sizes = [min(first, key=lambda file: file.apart(size)).nbytes for size in sizes]
    out = []
    for size in dict.fromkeys(sizes):
        found = [min(files, key=lambda file: file.apart(size)) for files in models.values()]
        for contender in contenders:
            if not (contender.is_model or contender.lossless):
                peer = peer_of(contender)
                data = peer.near(picture, round(size))
                found.append(_File(contender.group, len(data), peer.decode(data)))
        near = [file for file in found if file.apart(size) < NEAR]
        shown = [
            {
                "of": file.group,
                "bpp": 8 * file.nbytes / pixels,
                "score": ssimulacra2(picture, file.picture),
                "picture": _crop(file.picture),
            }
            for file in near
        ]
        original = {"of": "original", "bpp": None, "score": None, "picture": _crop(picture)}
        out.append({"bpp": 8 * size / pixels, "files": [original, *shown]})
    return out


def _files(
    contender: Contender, codec: Callable[[str], Codec], picture: np.ndarray
) -> Iterator[_File]:
    for _, nbytes, pictures in model_files(codec, contender.spec, [picture]):
        for size, shown in zip(nbytes, pictures, strict=True):
            yield _File(contender.group, size, shown)


def _crop(picture: np.ndarray) -> str:
    """The middle of a picture as an exact WebP."""
    height, width = picture.shape[:2]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    out = io.BytesIO()
    piece = Image.fromarray(picture[top : top + CROP, left : left + CROP])
    piece.save(out, "WEBP", lossless=True, quality=80, method=4)
    return base64.b64encode(out.getvalue()).decode()
