"""Distances to train by: the package's figure, and features that change with noise and blur."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from codec.images.perception import ssimulacra2
from codec.perception import frechet
from codec.perception.features import CHANNELS, Features, as_unit, feature_distance
from codec.perception.ssimulacra2 import score, ssimulacra2_sum
from codec.perception.textures import wasserstein_distortion


@pytest.fixture(scope="module")
def features() -> Features:
    return Features()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[:256, 100:356])


def noisy(picture: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def blurred(picture: np.ndarray) -> np.ndarray:
    x = F.avg_pool2d(as_unit(picture), 5, 1, 2)[0]
    return (x.permute(1, 2, 0) * 255).byte().numpy()


@pytest.mark.parametrize("deviation", [3, 10, 30])
def test_ssimulacra2_is_the_packages(picture: np.ndarray, deviation: float) -> None:
    shown = noisy(picture, deviation)
    expected = ssimulacra2(picture, shown)
    found = score(ssimulacra2_sum(as_unit(picture), as_unit(shown)))
    assert float(found) == pytest.approx(expected, abs=0.5)
    assert float(score(ssimulacra2_sum(as_unit(picture), as_unit(picture)))) > 99


def test_distances_have_gradients_everywhere(picture: np.ndarray, features: Features) -> None:
    x = as_unit(picture[:64, :64])
    for start in (x, torch.zeros_like(x), torch.ones_like(x)):
        y = start.clone().requires_grad_()
        own, shown = features(x), features(y)
        textures = wasserstein_distortion(own[0], shown[0], (1, 4)).sum()
        (ssimulacra2_sum(x, y).sum() + feature_distance(own, shown).sum() + textures).backward()
        assert y.grad is not None
        assert bool(y.grad.isfinite().all())


def test_features_tell_noise_and_blur(picture: np.ndarray, features: Features) -> None:
    own = features(as_unit(picture))
    assert [f.shape[1] for f in own] == list(CHANNELS)
    found = [
        float(feature_distance(own, features(as_unit(shown))))
        for shown in (picture, noisy(picture, 3), noisy(picture, 20))
    ]
    assert found[0] < 1e-3
    assert found[0] < found[1] < found[2]
    assert float(feature_distance(own, features(as_unit(blurred(picture))))) > 0.2
    with pytest.raises(ValueError, match="32x32"):
        features(torch.zeros(1, 3, 31, 40))


def test_a_texture_elsewhere_is_near_by_a_large_radius_alone() -> None:
    texture = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = texture.roll((7, 5), (2, 3))
    small, large = (float(wasserstein_distortion(texture, moved, (r,))) for r in (1, 16))
    assert large < 0.1 * small
    assert float(wasserstein_distortion(texture, texture, (1, 16))) == 0


def test_statistics_add_up_and_noise_does_not_lower_the_distance(
    picture: np.ndarray, features: Features
) -> None:
    def sums(*pictures: np.ndarray) -> np.ndarray:
        of = [frechet.moments(features(as_unit(one))) for one in pictures]
        return np.sum(of, axis=0)

    halves = picture[:128], picture[128:]
    whole = sums(*halves)
    text = frechet.from_text(frechet.to_text(whole))
    np.testing.assert_allclose(text, whole, rtol=1e-6, atol=1e-6)
    assert frechet.frechet_distance(whole, whole) < 1e-9
    assert frechet.frechet_distance(whole, sums(halves[1], halves[0])) < 1e-9, "in any order"
    soft = [blurred(half) for half in halves]
    hidden = [noisy(half, 12) for half in soft]
    distances = [frechet.frechet_distance(whole, sums(*shown)) for shown in (soft, hidden)]
    assert 0.01 < distances[0] < distances[1]
    with pytest.raises(ValueError, match="not 3 numbers"):
        frechet.from_text(frechet.to_text(np.zeros(3)))
