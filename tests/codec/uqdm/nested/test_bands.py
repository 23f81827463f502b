"""Bands of a picture: their weights and their colours, on the way there and back."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.images import metrics, resizing
from codec.numerics.lapped_transform import BANDS
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested.bands import from_bands, predict_pixels, to_bands, to_pictures, to_unit
from codec.uqdm.nested.schedule import SHIFT_UNIT, NestedConfig
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.small_models import CONFIG, grids_after, nested_codec, noise_pictures

FLAT = dataclasses.replace(CONFIG, band_weights=(1.0,) * BANDS)
# Neither orthogonal nor of one length.
ODD = dataclasses.replace(CONFIG, colours=(1.0, 0.9, 1.1, 0.6, -0.1, -0.5, -0.3, 0.7, -0.4))
CONFIGS = pytest.mark.parametrize("config", [FLAT, CONFIG, ODD], ids=["flat", "weights", "colours"])


@pytest.fixture(scope="module", params=[FLAT, CONFIG, ODD], ids=["flat", "weights", "colours"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"), config=request.param)


def config_of(codec: UQDMCodec) -> NestedConfig:
    assert isinstance(codec.scheme, NestedScheme)
    return codec.scheme.config


@CONFIGS
def test_pictures_come_back_from_their_bands(config: NestedConfig) -> None:
    images = noise_pictures(2, 40, seed=1)
    bands = to_bands(images, config)
    torch.testing.assert_close(to_pictures(bands, config), to_unit(images), atol=2e-5, rtol=0)
    chosen = torch.tensor([150, 3, 64])
    some = from_bands(bands[..., chosen], config, chosen)
    torch.testing.assert_close(some, from_bands(bands, config)[:, chosen], atol=0, rtol=0)


def test_a_band_is_multiplied_by_its_weight() -> None:
    images = noise_pictures(1, 40, seed=1)
    flat, weighted = (to_bands(images, config) for config in (FLAT, CONFIG))
    torch.testing.assert_close(weighted, flat * torch.tensor(CONFIG.band_weights))
    assert flat[..., 0].std() * 2 < weighted[..., 0].std()


@CONFIGS
def test_exact_predictions_are_what_floats_give(config: NestedConfig) -> None:
    """To within a sixth of a pixel value: units are of a sixteenth, bands of a sixty-fourth."""
    images = noise_pictures(2, 40, seed=1)
    means = (to_bands(images, config) * SHIFT_UNIT).round()
    exact = predict_pixels(means, config)
    assert torch.equal(exact, exact.round())
    floats = (to_pictures(means / SHIFT_UNIT, config) + 1) * 128 - 0.5
    assert (exact / 16 - floats.clamp(0, 255)).abs().max() < 1 / 6
    far = predict_pixels(means * 1e6, config)  # as forged streams may have them
    assert 0 <= far.min() <= far.max() <= 255 * 16


def test_a_bands_error_is_within_its_own_steps(codec: UQDMCodec) -> None:
    """What the encoder sends: heavier bands are nearer to what they were."""
    picture = noise_pictures(1, 48, seed=2)[0].permute(1, 2, 0).numpy()
    config = config_of(codec)
    coefficients = to_bands(torch.from_numpy(picture).permute(2, 0, 1)[None], config)[0].numpy()
    error = np.abs(coefficients - grids_after(codec, picture)[-1])
    assert error.max() <= config.mendable + 1e-3
    own = error / np.array(config.band_weights) * config.last_delta
    heaviest = own[..., 0].max()  # in units of a band that has no weight
    assert (heaviest < 0.4 * config.last_delta) == (config.band_weights[0] > 2)


@torch.inference_mode()
def test_decoded_pictures_are_as_near_as_their_bands(codec: UQDMCodec) -> None:
    """Of an orthonormal transform; what a decoder makes of its expectations."""
    picture = noise_pictures(1, 48, seed=2)[0].permute(1, 2, 0).numpy()
    config, scheme = config_of(codec), codec.scheme
    assert isinstance(scheme, NestedScheme)
    coefficients = to_bands(torch.from_numpy(picture).permute(2, 0, 1)[None], config)
    for layers in (3, 6):
        grid = torch.from_numpy(grids_after(codec, picture)[layers - 1])[None]
        expected = scheme._levels.expected(grid, layers) / SHIFT_UNIT
        off = (coefficients - expected) / torch.tensor(config.band_weights) * config.last_delta
        components = off.unflatten(-1, (3, 64)).permute(0, 1, 2, 4, 3).double()
        in_pixels = (components @ torch.from_numpy(config.synthesis)) * 128
        (shown,) = codec.decode(codec.encode([picture]), layers=layers)
        error = np.mean((shown.astype(float) - picture) ** 2)
        assert error == pytest.approx(float(in_pixels.square().mean()) + 1 / 12, rel=0.05)


def test_all_of_it_decodes(codec: UQDMCodec) -> None:
    picture = noise_pictures(1, 72, seed=3)[0].permute(1, 2, 0).numpy()[:66, :51]
    streams = codec.encode([np.ascontiguousarray(picture)])
    np.testing.assert_array_equal(codec.decode(streams)[0], picture)
    for side in (33, 17, 8):
        (small,) = codec.decode_small(streams, max_side=side, layers=6)
        (whole,) = codec.decode(streams, layers=6)
        reference = resizing.shrink(whole, *resizing.fit(66, 51, side))
        assert metrics.psnr(reference, small) > 30


def test_the_first_layer_previews_all_colours(tmp_path: Path) -> None:
    """A flat colour, which only the lowest bands have."""
    codec = nested_codec(tmp_path, config=ODD)
    flat = np.broadcast_to(np.array([230, 90, 20], np.uint8), (64, 64, 3)).copy()
    streams = codec.encode([flat], layers=1)
    (small,) = codec.decode_small(streams, max_side=8)
    (whole,) = codec.decode(streams)
    # Chroma has digits of level 1, luma of level 0; both networks are untrained.
    means = [x.reshape(-1, 3).mean(0) for x in (small, whole)]
    for mean in means:
        assert mean[0] > mean[1] > mean[2]
