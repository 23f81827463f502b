"""What JPEG, JPEG 2000, WebP and AVIF (Pillow's) reach on the same pictures, in real files.

The figures are a dictionary of points by codec, each point ``setting``, ``bpp``, ``psnr_mean``,
``psnr_of_mean_mse`` and ``ms_ssim``. ``of`` names the pictures: their number, and a hash.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codec.metrics import ms_ssim, mse, psnr_of_mean_mse

NAMES = ("jpeg", "jpeg_progressive", "jpeg2000", "webp", "avif")
_KEYS = {"psnr": "psnr_of_mean_mse", "ms_ssim": "ms_ssim"}
_JPEG = (1, 3, 5, 8, 12, 18, 25, 35, 50, 65, 80, 90, 95)
_RATIOS = (480, 300, 200, 120, 80, 50, 30, 20, 12, 8, 6, 4)  # JPEG 2000's, against 24 bpp
_WEBP = (0, 5, 10, 20, 30, 45, 60, 75, 85, 92, 97)
_AVIF = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


def settings() -> dict[str, list[dict[str, Any]]]:
    """Arguments of Pillow's ``save`` for each point of each codec. Each writes its smallest file.

    AVIF is at Pillow's own speed (6); one that takes five times as long gains 0.2 to 0.3 dB.
    """
    jpeg = {"format": "JPEG", "optimize": True}
    jpeg2000 = {
        "format": "JPEG2000",
        "irreversible": True,
        "mct": 1,  # the colour transform, without which it is far worse
        "no_jp2": True,  # the box around the codestream costs 85 bytes
        "quality_mode": "rates",
    }
    avif = {"format": "AVIF", "max_threads": 1}
    return {
        "jpeg": [{**jpeg, "quality": q} for q in _JPEG],
        "jpeg_progressive": [{**jpeg, "progressive": True, "quality": q} for q in _JPEG],
        "jpeg2000": [{**jpeg2000, "quality_layers": [r]} for r in _RATIOS],
        "webp": [{"format": "WEBP", "method": 6, "quality": q} for q in _WEBP],
        "avif": [{**avif, "quality": q} for q in _AVIF],
    }


def fingerprint(pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Which pictures figures belong to."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(picture.shape).encode() + picture.tobytes())
    return {"pictures": len(pictures), "sha256": digest.hexdigest()}


def measure(pictures: Sequence[np.ndarray], pool: Executor) -> dict[str, Any]:
    """Figures of every codec and setting."""
    out: dict[str, Any] = {"of": fingerprint(pictures)}
    for name, points in settings().items():
        out[name] = [
            _summary(arguments, pictures, list(pool.map(partial(_save, arguments), pictures)))
            for arguments in points
        ]
    return out


def _save(arguments: dict[str, Any], picture: np.ndarray) -> tuple[int, float, float]:
    """Bytes, mean squared error and MS-SSIM of one picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, **arguments)
    with Image.open(file) as opened:
        shown = np.asarray(opened.convert("RGB"))
    return len(file.getvalue()), mse(picture, shown), ms_ssim(picture, shown)


def _summary(
    arguments: dict[str, Any],
    pictures: Sequence[np.ndarray],
    rows: Sequence[tuple[int, float, float]],
) -> dict[str, Any]:
    pixels = np.array([picture.shape[0] * picture.shape[1] for picture in pictures])
    nbytes, errors, similarities = np.array(rows).T
    return {
        "setting": arguments.get("quality", arguments.get("quality_layers")),
        "bpp": round(float(8 * nbytes.sum() / pixels.sum()), 4),
        "psnr_mean": round(float(np.mean([psnr_of_mean_mse([e]) for e in errors])), 3),
        "psnr_of_mean_mse": round(psnr_of_mean_mse([np.average(errors, weights=pixels)]), 3),
        "ms_ssim": round(float(similarities.mean()), 6),
    }


def load_or_measure(
    path: Path | None, pictures: Sequence[np.ndarray], pool: Executor
) -> dict[str, Any]:
    """The figures in a file, or new ones, which are written there.

    Raises ValueError for a file that was not made of these pictures.
    """
    if path is not None and path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("of") != fingerprint(pictures):
            raise ValueError(f"{path} was not made of these pictures: give another file")
        return found
    made = measure(pictures, pool)
    if path is not None:
        path.write_text(json.dumps(made, indent=1) + "\n")
    return made


def decibel(similarity: float) -> float:
    """MS-SSIM as -10 log10(1 - MS-SSIM): near 1 it spreads what the plain figure crowds."""
    return float("inf") if similarity >= 1 else float(-10 * np.log10(1 - similarity))


def names(figures: dict[str, Any], metric: str) -> list[str]:
    """Which codecs there are figures of, for ``psnr`` or ``ms_ssim``."""
    return [n for n in NAMES if all(_KEYS[metric] in p for p in figures.get(n, [{}]))]


def curve(figures: dict[str, Any], name: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Rates (bpp) and ``psnr`` or ``ms_ssim`` in dB of one codec, by rate."""
    points = sorted({(p["bpp"], p[_KEYS[metric]]) for p in figures[name]})
    values = [decibel(p[1]) if metric == "ms_ssim" else p[1] for p in points]
    return np.array([p[0] for p in points]), np.array(values)


def at_rate(figures: dict[str, Any], name: str, metric: str, bpp: float) -> float | None:
    """What a codec reaches at a rate, in dB; None outside the rates it was measured at.

    Decibels are nearly linear in the logarithm of the rate.
    """
    rates, values = curve(figures, name, metric)
    if not rates[0] <= bpp <= rates[-1]:
        return None
    return float(np.interp(np.log(bpp), np.log(rates), values))
