"""Patches of whole sets of pictures."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from codec.images.metrics import patch_lines, sliced_wasserstein
from pipeline.evaluate.measuring import SET_LINES, SET_PATCHES, PatchSet, Point
from tests.pipeline.evaluate.inprocess import photograph

SIZES = [(96, 80), (64, 64), (130, 70), (20, 20)]


def patches(blur: float = 0.0, sizes: list[tuple[int, int]] = SIZES) -> PatchSet:
    out = PatchSet()
    for number, size in enumerate(sizes):
        picture = Image.fromarray(photograph(*size, seed=number))
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        out.add(patch_lines(np.asarray(picture)).first(SET_PATCHES, SET_LINES))
    return out


def test_a_set_is_nothing_away_from_itself_and_further_the_more_is_lost() -> None:
    sharp, soft, blurred = patches(), patches(0.7), patches(2)
    assert sharp.distance(patches()) == 0
    assert 0 < sharp.distance(soft) < sharp.distance(blurred)
    assert sharp.distance(soft) == pytest.approx(soft.distance(sharp))


def test_a_set_of_one_picture_is_about_that_picture() -> None:
    size = [(200, 220)]
    both = [patches(blur, size) for blur in (0.0, 1.5)]
    picture = photograph(*size[0])
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.5)))
    alone = sliced_wasserstein(picture, blurred)
    assert both[0].distance(both[1]) == pytest.approx(alone, rel=0.2)


def test_parts_add_up_and_travel_as_text() -> None:
    whole, parts = patches(), PatchSet()
    for number, size in enumerate(SIZES):
        part = PatchSet()
        part.add(patch_lines(photograph(*size, seed=number)).first(SET_PATCHES, SET_LINES))
        parts.merge(PatchSet.unpack(part.pack()))
    assert np.array_equal(parts.counts, whole.counts)
    assert parts.moments == pytest.approx(whole.moments)
    assert parts.distance(whole) == pytest.approx(0, abs=1e-12)


def test_points_have_names() -> None:
    for point in (Point("", 1), Point("1:80", 3), Point("a|b", 12)):
        assert Point.of_key(point.key) == point
