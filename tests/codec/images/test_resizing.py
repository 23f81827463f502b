"""Sizes of smaller copies, and the default way of every codec to decode previews."""

from pathlib import Path

import numpy as np
import pytest

from codec import load_codec
from codec.images import resizing
from tests.codec import toy


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((512, 768), 256, (171, 256)),
        ((768, 512), 256, (256, 171)),
        ((100, 50), 100, (100, 50)),
        ((100, 50), 4000, (100, 50)),
        ((3, 5000), 16, (1, 16)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_the_longest_side_fits_and_nothing_is_enlarged(
    size: tuple[int, int], max_side: int, expected: tuple[int, int]
) -> None:
    assert resizing.fit(*size, max_side) == expected


def test_no_side_below_one_pixel() -> None:
    with pytest.raises(ValueError, match="max_side"):
        resizing.fit(10, 10, 0)


def test_fine_stripes_become_their_mean() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resizing.shrink(stripes, 16, 16)
    assert small.shape == (16, 16, 3)
    assert abs(small[4:-4, 4:-4].astype(int) - 100).max() <= 3


def test_previews_of_any_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.use(monkeypatch)
    codec = load_codec(toy.write_model(tmp_path))
    pictures = [np.full((h, w, 3), 250, np.uint8) for h, w in ((40, 64), (10, 9))]
    streams = codec.encode(pictures)
    small = codec.decode_small(streams, max_side=16)
    assert [x.shape for x in small] == [(10, 16, 3), (10, 9, 3)]
    (first,) = codec.decode_small(streams[:1], max_side=16, layers=1, decoder="diffusion", seed=4)
    whole = codec.decode(streams[:1], layers=1, decoder="diffusion", seed=4)[0]
    np.testing.assert_array_equal(first, resizing.shrink(whole, 10, 16))
    with pytest.raises(TypeError, match="steps"):
        codec.decode_small(streams, max_side=16, steps=3)
    with pytest.raises(ValueError, match="max_side"):
        codec.decode_small(streams, max_side=0)
