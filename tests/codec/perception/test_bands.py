"""Weights of bands: more where eyes see more, and those that UQDM's shipped model has."""

import numpy as np

from codec.models import zoo
from codec.perception.bands import VISUAL_COLOURS, visual_weights


def test_weights_fall_with_frequency() -> None:
    weights = visual_weights().reshape(3, 8, 8)
    for own in weights:
        np.testing.assert_array_equal(own, own.T)
        assert (np.diff(own, axis=0)[1:] < 0).all()
        assert own[0, 0] == own.max() > 6 * own[7, 7] > 0
    assert (weights[0] > weights[1:])[:, :5, :5].all()


def test_both_codecs_see_alike() -> None:
    nested = zoo.read_model(zoo.model_file("uqdm"))[0]["nested"]
    np.testing.assert_allclose(visual_weights(), nested["band_weights"], atol=1e-4)
    np.testing.assert_allclose(VISUAL_COLOURS, nested["colours"], atol=1e-4)
