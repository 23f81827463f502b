"""The light transform's space before anything is learnt: weighted bands, and back."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from codec.cdc.networks.light_transform import LEVELS, STEP, LightCompressor, LightConfig
from codec.perception.bands import VISUAL_COLOURS, visual_weights
from tests.codec.small_models import noise_pictures

FLAT = LightConfig((0.004, 0.064), 48, 16, 24, (1, 1), (1, 1), 16)
EYES = dataclasses.replace(
    FLAT, colours=VISUAL_COLOURS, band_weights=tuple(visual_weights().tolist())
)


def started(config: LightConfig) -> LightCompressor:
    torch.manual_seed(0)
    model = LightCompressor(config)
    model.start_from_statistics(pictures(i) for i in range(4))
    with torch.no_grad():  # the linear maps alone
        model.fast_head.weight.zero_()
        model.to_latent.weight.zero_()
    return model


def pictures(seed: int) -> torch.Tensor:
    return noise_pictures(4, 64, seed=seed).float() / LEVELS - 1


@torch.no_grad()
def through(model: LightCompressor, x: torch.Tensor, quality: int) -> torch.Tensor:
    """The fast picture without rounding."""
    chosen = torch.full((len(x),), quality)
    return model.synthesis(model.analysis(x, chosen), chosen)[0]


def test_flat_weights_are_squared_error() -> None:
    x, y = pictures(8), pictures(9)
    expected = (x - y).square().mean((1, 2, 3))
    torch.testing.assert_close(LightCompressor(FLAT).error(x, y), expected)
    assert not torch.allclose(LightCompressor(EYES).error(x, y), expected, rtol=0.1)


def test_an_error_counts_by_the_weight_of_its_band() -> None:
    model, x = LightCompressor(EYES), pictures(8)
    bands = model._bands(x)
    for band in (0, 9, 63, 64, 128, 191):
        moved = bands.clone()
        moved[..., band] += 1.0  # weighted, so that all cost the same
        error = model.error(model._picture(moved), x)
        expected = torch.full((4,), (STEP / LEVELS) ** 2 / 192)
        torch.testing.assert_close(error, expected, rtol=1e-3, atol=0)


def test_the_start_keeps_what_weighs_most() -> None:
    """Of as many numbers, each start has the smaller error in its own sense."""
    flat, eyes = started(FLAT), started(EYES)
    x = pictures(9)
    shown = [through(model, x, 1) for model in (flat, eyes)]
    for model, (own, others) in ((flat, shown), (eyes, shown[::-1])):
        assert (model.error(own, x) < model.error(others, x)).all()


def test_a_picture_comes_back_where_nothing_is_left_out() -> None:
    model = started(dataclasses.replace(EYES, latents=768))
    x = pictures(9)
    torch.testing.assert_close(through(model, x, 0), x, atol=1e-3, rtol=0)


def test_steps_begin_where_their_rates_want_them() -> None:
    """A step's squared error, a twelfth of its square, against the bits it takes."""
    rates = torch.tensor(FLAT.rates)
    step = STEP / LightCompressor(FLAT).gain[:, 0].detach().exp()
    # Of a pixel's three numbers, by the step: -3 / (step ln 2) bits, and rate * step / 6.
    torch.testing.assert_close(3 / (step * math.log(2)), rates * step / 6)


@pytest.mark.parametrize(
    "change",
    [
        {"band_weights": (1.0,) * 191},
        {"band_weights": (0.0,) * 192},
        {"band_weights": (math.nan,) * 192},
        {"colours": (1.0,) * 9},
        {"colours": (1.0, 0.0, 0.0, 0.0)},
        {"colours": tuple(np.full(9, math.nan).tolist())},
    ],
)
def test_a_space_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"band_weights are|colours are"):
        dataclasses.replace(FLAT, **change)
