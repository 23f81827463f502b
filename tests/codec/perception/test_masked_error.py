"""Errors as eyes see them: where there is texture they count less."""

import pytest
import torch

from codec.perception.masked_error import masked_error

pytest.importorskip("ssimulacra2")


def halves(size: int = 64) -> torch.Tensor:
    """Grey on the left, coarse grey noise on the right, ``(1, 3, size, size)``."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(1, 1, size, size // 2, generator=generator) * 0.5 + 0.25
    return torch.cat([torch.full_like(noise, 0.5), noise], 3).expand(-1, 3, -1, -1).clone()


def test_errors_count_less_where_there_is_texture() -> None:
    picture = halves()
    generator = torch.Generator().manual_seed(2)
    error = 0.03 * torch.randn(1, 3, 64, 32, generator=generator)
    flat, textured = picture.clone(), picture.clone()
    flat[..., :32] += error
    textured[..., 32:] += error
    seen = [float(masked_error(picture, shown.clamp(0, 1))) for shown in (flat, textured)]
    assert seen[0] > 2 * seen[1] > 0


def test_of_equal_energy_the_worst_place_counts_more() -> None:
    picture = torch.full((1, 3, 64, 64), 0.5)
    even, spot = picture.clone(), picture.clone()
    even += 0.01
    spot[..., 24:40, 24:40] += 0.04
    # 1.2 by energy alone: at the left and right edges the metric's blur sees texture
    assert float(masked_error(picture, spot)) > 1.35 * float(masked_error(picture, even))


def test_it_is_small_for_equal_pictures_and_has_gradients() -> None:
    picture = halves()
    shown = picture.clone().requires_grad_()
    error = masked_error(picture, shown).sum()
    error.backward()
    assert float(error.detach()) < 1e-3
    assert shown.grad is not None
    assert bool(shown.grad.isfinite().all())
    moved = (picture + 0.02).requires_grad_()
    masked_error(picture, moved).sum().backward()
    assert moved.grad is not None
    assert float(moved.grad.sum()) > 0  # less of it is better
