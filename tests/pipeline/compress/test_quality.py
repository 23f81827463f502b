"""A quality that pictures must reach, and the layers that it needs."""

import numpy as np
import pytest

from codec.images.metrics import psnr
from codec.images.perception import ssimulacra2
from pipeline.compress.quality import TargetQuality, target_quality
from tests.pipeline.makers import picture


def shown(image: np.ndarray) -> list[np.ndarray]:
    """The picture with more and more bits of each value; at last, exact."""
    return [image & (255 << bits & 255) for bits in (7, 6, 5, 4, 3, 1, 0)]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("80", TargetQuality(80.0)),
        ("72.5", TargetQuality(72.5)),
        ("38dB", TargetQuality(38.0, decibels=True)),
        (" 38 db ", TargetQuality(38.0, decibels=True)),
        ("120dB", TargetQuality(120.0, decibels=True)),
    ],
)
def test_how_it_is_spelled(text: str, target: TargetQuality) -> None:
    assert target_quality(text) == target
    assert target_quality(str(target)) == target


@pytest.mark.parametrize("text", ["", "good", "-3", "0", "80%", "101", "nan", "38 d", "1e1"])
def test_what_is_no_quality(text: str) -> None:
    with pytest.raises(ValueError, match="SSIMULACRA2"):
        target_quality(text)


@pytest.mark.parametrize("target", ["5dB", "25dB", "38dB", "20", "75", "95", "100"])
def test_the_fewest_layers_that_reach_it(target: str) -> None:
    image = picture(1, 64, 80)
    steps, wanted = shown(image), target_quality(target)
    found = wanted.measure(image, steps)
    assert found.psnr == tuple(psnr(image, one) for one in steps)
    scores = found.psnr if wanted.decibels else [ssimulacra2(image, one) for one in steps[:-1]]
    reached = [score >= wanted.value for score in scores if score is not None]
    assert found.needed == ([*reached, True].index(True) + 1)
    assert TargetQuality(150.0, decibels=True).measure(image, steps[:-1]).needed is None
    assert TargetQuality(99.9).measure(image, steps[:-1]).needed is None


def test_pictures_that_are_too_small_to_judge_need_all_layers() -> None:
    image = picture(1, 5, 80)
    steps = shown(image)
    assert TargetQuality(10.0).measure(image, steps[:-1]).needed == 6
