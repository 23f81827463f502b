"""Training pictures: crops, flips, and groups of one size."""

import numpy as np

from codec.training_data import Pictures
from tests.codec.models import noise_pictures


def test_pictures_are_cropped_flipped_and_kept_apart_by_size() -> None:
    pictures = Pictures(crop=32)
    for picture in noise_pictures(5, 48).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    for picture in noise_pictures(6, 24).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    pictures.add(np.zeros((8, 8, 3), np.uint8))  # too small to learn from
    assert len(pictures) == 11
    rng = np.random.default_rng(0)
    assert pictures.batch(4, 0.0, rng).shape == (4, 3, 32, 32)
    assert pictures.batch(4, 1.0, rng).shape[2:] == (24, 24)
    assert len(pictures.take(4)) == 4
    assert len(pictures) == 7
