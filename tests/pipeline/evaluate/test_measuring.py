"""Figures of merit of single pictures."""

import shutil

import numpy as np
import pytest

from codec.images import metrics
from codec.images.perception import ssimulacra2
from pipeline.evaluate.bench import Point
from pipeline.evaluate.measuring import METRICS, Original, butteraugli
from tests.pipeline.evaluate.inprocess import photograph

NAMES = ("ssimulacra2", "ms_ssim", "psnr", "swd")


def noisy(picture: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, deviation, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_what_is_recorded() -> None:
    picture = photograph(64, 80)
    shown = noisy(picture, 8)
    nbytes, exact, first, second, error, distance = Original(picture, NAMES).compare(shown, 123)
    assert (nbytes, exact) == (123, 0)
    assert first == ssimulacra2(picture, shown)
    assert second == metrics.ms_ssim(picture, shown)
    assert error == metrics.mse(picture, shown)
    assert distance == metrics.sliced_wasserstein(picture, shown)
    assert METRICS["psnr"].shown(4.0) == pytest.approx(10 * np.log10(255**2 / 4))


def test_an_exact_picture_is_recorded_as_the_best() -> None:
    picture = photograph(40, 40)
    original = Original(picture, tuple(METRICS))
    row = original.compare(picture.copy(), 9)
    known = dict(zip(METRICS, row[2:], strict=True))
    assert known.pop("frechet") == original.statistics()
    assert row[:2] == [9, 1]
    assert known == {**dict.fromkeys(known, 0), "ssimulacra2": 100, "ms_ssim": 1}
    with pytest.raises(ValueError, match="expected a picture of"):
        Original(picture, NAMES).compare(picture[:30], 9)


def test_ssimulacra2_falls_with_noise_and_has_no_opinion_of_tiny_pictures() -> None:
    picture = photograph(64, 64)
    scores = [ssimulacra2(picture, noisy(picture, deviation)) for deviation in (1, 6, 30)]
    assert None not in scores
    assert 100 > scores[0] > scores[1] > scores[2]  # type: ignore[operator]
    assert ssimulacra2(picture[:7], noisy(picture, 6)[:7]) is None


@pytest.mark.skipif(not shutil.which("butteraugli_main"), reason="butteraugli_main: not installed")
def test_butteraugli_grows_with_noise() -> None:
    picture = photograph(64, 64)
    distances = [butteraugli(picture, noisy(picture, deviation)) for deviation in (0, 2, 20)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]  # type: ignore[operator]
    assert butteraugli(picture[:7], picture[:7]) is None
    with pytest.raises(RuntimeError, match="butteraugli_main failed"):
        butteraugli(picture, picture[:20])


def test_points_have_names() -> None:
    for point in (Point("", 1), Point("1:80", 3), Point("a|b", 12)):
        assert Point.of_key(point.key) == point
