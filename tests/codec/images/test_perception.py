"""SSIMULACRA2 of small pictures agrees with that of large ones."""

import numpy as np
import pytest

from codec.images.perception import WHOLE, ssimulacra2
from tests.pipeline.makers import picture


@pytest.mark.parametrize("shape", [(64, 64), (24, 300), (8, 8), (WHOLE, WHOLE - 1)])
def test_a_part_of_a_picture_is_as_good_as_the_picture(shape: tuple[int, int]) -> None:
    whole = picture(3, 320, 320)
    noise = np.random.default_rng(0).normal(0, 3, whole.shape)
    noisy = np.clip(np.rint(whole + noise), 0, 255).astype(np.uint8)
    part = tuple(slice(side) for side in shape)
    expected, found = ssimulacra2(whole, noisy), ssimulacra2(whole[part], noisy[part])
    assert expected is not None
    assert found == pytest.approx(expected, abs=6)
