"""Measures of a picture's distance from its original, and of its rate. Needs only numpy."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PEAK = 255.0
# Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment":
# the exponents of section 3.2, and the window and constants of the single-scale paper (2004).
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
ROWS = 24  # that are compared at once
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Of the sliced Wasserstein distance, after Karras et al. 2018, "Progressive growing of GANs",
# section 5: patches of 7x7 of a Laplacian pyramid's levels, none smaller than 16 pixels.
PATCH, PATCHES, LINES = 7, 1024, 64
BANDS, SMALLEST_LEVEL = 4, 16
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error of two uint8 pictures of the same shape, in squared levels."""
    _check(a, b)
    difference = a.astype(np.int32) - b.astype(np.int32)
    return float(np.mean(np.square(difference), dtype=np.float64))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB, over all channels; inf when equal."""
    return _decibel(mse(a, b))


def psnr_of_mean_mse(errors: Iterable[float]) -> float:
    """PSNR in dB of the mean of the pictures' MSEs, as codecs report it for a set of pictures.

    The mean of PSNRs would be infinite if one picture is exact.
    """
    values = list(errors)
    if not values:
        raise ValueError("no errors to average")
    return _decibel(sum(values) / len(values))


def bits_per_pixel(nbytes: int, width: int, height: int) -> float:
    """Bits per pixel of ``nbytes`` bytes for a ``width`` x ``height`` picture."""
    if width <= 0 or height <= 0:
        raise ValueError(f"a picture of {width}x{height} has no pixels")
    return 8 * nbytes / (width * height)


def ms_ssim(a: np.ndarray, b: np.ndarray, *, weights: Sequence[float] = MS_SSIM_WEIGHTS) -> float:
    """Multi-scale structural similarity (Wang 2003) of the lumas of two uint8 pictures, 0 to 1.

    Pictures are ``(H, W, 3)`` or ``(H, W)``. Windows lie wholly inside the picture. Each scale is
    the 2x2 mean of the one before, with an odd last row or column repeated. Five scales need a
    shorter side of 161 pixels. Smaller pictures use the scales that fit, with weights divided by
    their sum; pictures under 11 pixels use one window as large as their shorter side. Such values
    cannot be compared with those of larger pictures. Negative structure counts as 0.
    """
    _check(a, b)
    x, y = _luma(a), _luma(b)
    scales = 1
    while scales < len(weights) and (min(x.shape) - 1) // 2**scales + 1 >= WINDOW:
        scales += 1
    exponents = np.array(weights[:scales])
    if scales < len(weights):  # all five are used as published; their sum is 1.0001
        exponents /= exponents.sum()
    score = 1.0
    for scale, exponent in enumerate(exponents):
        if scale:
            x, y = _halve(x), _halve(y)
        luminance, structure = _ssim_terms(x, y)
        term = luminance if scale == scales - 1 else structure
        score *= max(term, 0.0) ** exponent
    return float(score)


def ms_ssim_decibel(similarity: float) -> float:
    """MS-SSIM in dB, -10 log10(1 - MS-SSIM), which shows differences near 1."""
    return float("inf") if similarity >= 1 else float(-10 * np.log10(1 - similarity))


@dataclass(frozen=True, eq=False)
class PatchLines:
    """The projections of a picture's patches on fixed random lines, for each level of its pyramid.

    Attributes:
        positions: for each level ``(patches, LINES) float32``, in levels of 255, the patches in
            a random order that is the same for all pictures of one size.
        mean, power: for each level the mean, and the mean square, of the patches' elements.
    """

    positions: tuple[np.ndarray, ...]
    mean: tuple[float, ...]
    power: tuple[float, ...]


def patch_lines(image: np.ndarray) -> PatchLines:
    """The patches that ``sliced_wasserstein`` compares, of an ``(H, W, 3) uint8`` picture.

    The levels are up to four bands of a Laplacian pyramid (Burt & Adelson 1983, 5-tap binomial
    filter, mirrored at the edges), from the finest on, and the remaining low-pass picture. From
    each level, up to 1024 patches of 7x7x3 are taken at random but fixed places, and projected on
    64 random but fixed lines through the origin.
    """
    _check(image, image)
    if image.ndim != 3:
        raise ValueError(f"expected an (H, W, 3) picture, got {image.shape}")
    positions, means, powers = [], [], []
    for number, level in enumerate(_pyramid(image.astype(np.float32))):
        side = min(PATCH, *level.shape[:2])
        windows = np.lib.stride_tricks.sliding_window_view(level, (side, side), axis=(0, 1))
        places = windows.shape[0] * windows.shape[1]
        random = np.random.default_rng([number, *level.shape[:2]])
        chosen = random.choice(places, min(PATCHES, places), replace=False)
        patches = windows[np.unravel_index(chosen, windows.shape[:2])].reshape(len(chosen), -1)
        positions.append(patches @ _lines(patches.shape[1]))
        means.append(float(patches.mean(dtype=np.float64)))
        powers.append(float(np.square(patches).mean(dtype=np.float64)))
    return PatchLines(tuple(positions), tuple(means), tuple(powers))


def sliced_wasserstein(a: np.ndarray | PatchLines, b: np.ndarray | PatchLines) -> float:
    """Sliced Wasserstein distance of the patches of two pictures of one shape; 0 when equal.

    It measures whether both have the same *kinds* of patches, wherever they are: plausible invented
    detail costs little, missing detail costs much. On each line it is the mean distance between the
    sorted positions, divided by the deviation of all elements of both pictures' patches (at least
    one level of 255, so that it is defined for plain pictures). The result is the mean over lines,
    then over the pyramid's levels. It is symmetric and deterministic.
    """
    x, y = (patch_lines(one) if isinstance(one, np.ndarray) else one for one in (a, b))
    if [p.shape for p in x.positions] != [p.shape for p in y.positions]:
        raise ValueError("expected two pictures of one shape")
    distances = []
    for number, (of_x, of_y) in enumerate(zip(x.positions, y.positions, strict=True)):
        apart = np.abs(np.sort(of_x, axis=0) - np.sort(of_y, axis=0)).mean(dtype=np.float64)
        mean = (x.mean[number] + y.mean[number]) / 2
        power = (x.power[number] + y.power[number]) / 2
        distances.append(apart / deviation(mean, power))
    return float(np.mean(distances))


def deviation(mean: float, power: float) -> float:
    """Standard deviation from mean and mean square; at least one level of 255."""
    return max(1.0, max(power - mean**2, 0.0) ** 0.5)


def _pyramid(level: np.ndarray) -> list[np.ndarray]:
    """Bands of ``(H, W, 3) float32``, the finest first, and the low-pass rest as the last."""
    levels: list[np.ndarray] = []
    while len(levels) < BANDS and (min(level.shape[:2]) + 1) // 2 >= SMALLEST_LEVEL:
        smaller = _blur(level)[::2, ::2]
        spread = np.zeros_like(level)
        spread[::2, ::2] = 4 * smaller
        levels.append(level - _blur(spread))
        level = smaller
    return [*levels, level]


def _blur(image: np.ndarray) -> np.ndarray:
    return _filter(np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="reflect"), BINOMIAL)


@functools.cache
def _lines(dimensions: int) -> np.ndarray:
    """Unit vectors ``(dimensions, LINES) float32``, evenly distributed over all directions."""
    normal = np.random.default_rng(dimensions).standard_normal((dimensions, LINES))
    return (normal / np.linalg.norm(normal, axis=0)).astype(np.float32)


def _ssim_terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean SSIM, and mean of its contrast-structure part alone (Wang 2004, eqs. 9, 13).

    Works on some rows at a time, which stay in the processor's cache.
    """
    window = _gaussian(min(WINDOW, *x.shape))
    height, width = (side - len(window) + 1 for side in x.shape)
    similarity, structure = 0.0, 0.0
    for top in range(0, height, ROWS):
        a, b = (image[top : top + ROWS + len(window) - 1] for image in (x, y))
        mean_a, mean_b = _filter(a, window), _filter(b, window)
        means, squares = mean_a * mean_b, mean_a**2 + mean_b**2
        variances = _filter(a * a + b * b, window) - squares
        covariance = _filter(a * b, window) - means
        contrast = (2 * covariance + C2) / (variances + C2)
        structure += float(np.sum(contrast))
        similarity += float(np.sum((2 * means + C1) / (squares + C1) * contrast))
    return similarity / (height * width), structure / (height * width)


def _gaussian(size: int) -> np.ndarray:
    at = np.arange(size) - (size - 1) / 2
    window = np.exp(-(at**2) / (2 * SIGMA**2))
    return window / window.sum()


def _filter(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Separable symmetric filter, valid part only: ``(H, W, ...)`` to ``(H-n+1, W-n+1, ...)``."""
    rows = _filter_rows(image, window)
    return _filter_rows(rows.swapaxes(0, 1), window).swapaxes(0, 1)


def _filter_rows(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    last, half = len(window) - 1, len(window) // 2
    height = image.shape[0] - last
    out = image[half : half + height] * (window[half] if len(window) % 2 else 0)
    pair = np.empty_like(out)
    for i in range(half):
        np.add(image[i : i + height], image[last - i : last - i + height], out=pair)
        pair *= window[i]
        out += pair
    return out


def _halve(image: np.ndarray) -> np.ndarray:
    """2x2 means; an odd last row or column is repeated first, as TensorFlow's version does."""
    image = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2)], mode="edge")
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def _luma(image: np.ndarray) -> np.ndarray:
    levels = image.astype(np.float64)
    return levels @ LUMA if image.ndim == 3 else levels


def _decibel(error: float) -> float:
    return float("inf") if error == 0 else float(10 * np.log10(PEAK**2 / error))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures, got {a.dtype} and {b.dtype}")
    if a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"expected two pictures of one shape, got {a.shape} and {b.shape}")
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] != 3):
        raise ValueError(f"expected (H, W, 3) or (H, W) pictures, got {a.shape}")
