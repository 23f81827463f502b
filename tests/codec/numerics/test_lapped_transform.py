import numpy as np
import pytest
import torch

from codec.images import metrics, resizing
from codec.numerics import lapped_transform
from tests.codec.small_models import noise_pictures


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (40, 16), (64, 96)])
def test_the_transform_is_orthonormal(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    coefficients = lapped_transform.forward(x)
    assert coefficients.shape == (2, lapped_transform.BANDS, size[0] // 8, size[1] // 8)
    assert float(coefficients.square().sum() / x.square().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(lapped_transform.inverse(coefficients), x, atol=1e-12, rtol=0)


def test_it_compacts_energy_better_than_the_dct() -> None:
    """Coding gain on an AR(0.95) row: the lapped transform's published 9.22 dB, DCT 8.83."""
    n = 72
    covariance = torch.from_numpy(0.95 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))))
    lap = torch.from_numpy(lapped_transform._prefilter_matrix())
    dct = torch.from_numpy(lapped_transform.dct_matrix(8))

    def gain(rows: torch.Tensor) -> float:
        blocks = rows.unflatten(-1, (-1, 8)) @ dct.T
        transform = blocks.flatten(1).T  # (coefficients, samples)
        variance = torch.diagonal(transform @ covariance @ transform.T)[32:40]
        return float(-10 * variance.log10().mean())

    identity = torch.eye(n, dtype=torch.float64)
    assert gain(identity) == pytest.approx(8.83, abs=0.01)
    assert gain(lapped_transform._lap(identity, lap, 1)) == pytest.approx(9.22, abs=0.01)


def test_the_exact_inverse_is_the_inverse_in_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(
        -20_000, 20_000, (2, lapped_transform.BANDS, 5, 7), generator=generator
    ).double()
    exact = lapped_transform.inverse_exact(integers)
    assert torch.equal(exact, exact.round())
    # Its matrices are rounded at 2**-14, a hundredth of a pixel's 1/16 at these magnitudes.
    assert (exact - lapped_transform.inverse(integers)).abs().max() < 20
    one_by_one = torch.cat([lapped_transform.inverse_exact(x[None]) for x in integers])
    assert torch.equal(one_by_one, exact)


@pytest.mark.parametrize("scale", lapped_transform.SCALES)
def test_the_reduced_inverse_is_a_filtered_copy(scale: int) -> None:
    """Of a smooth picture with some noise, at every border, too."""
    picture = noise_pictures(1, 128, seed=1)
    coefficients = lapped_transform.forward(picture.float())[
        :, torch.from_numpy(lapped_transform.reduced_bands(scale))
    ]
    reduced = lapped_transform.inverse_reduced(coefficients, scale)
    assert reduced.shape == (1, 3, 128 // scale, 128 // scale)
    small = (reduced[0] + 0.5).floor().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    reference = resizing.shrink(picture[0].permute(1, 2, 0).numpy(), *small.shape[:2])
    assert metrics.psnr(reference, small) > 38
    for a, b in ((reference[:2], small[:2]), (reference[:, -2:], small[:, -2:])):
        assert metrics.psnr(a, b) > 33


@pytest.mark.parametrize("scale", lapped_transform.SCALES)
def test_the_reduced_inverse_keeps_a_flat_colour(scale: int) -> None:
    flat = torch.tensor([0.5, -0.25, 0.75], dtype=torch.float64).view(1, 3, 1, 1)
    for size in ((8, 8), (16, 8), (40, 64)):
        coefficients = lapped_transform.forward(flat.expand(1, 3, *size))
        chosen = torch.from_numpy(lapped_transform.reduced_bands(scale))
        reduced = lapped_transform.inverse_reduced(coefficients[:, chosen], scale)
        assert (reduced - flat).abs().max() < 0.01


# What each component adds to red, green and blue: neither orthogonal nor of one length.
COLOURS = np.array([[1.0, 0.9, 1.1], [0.6, -0.1, -0.5], [-0.3, 0.7, -0.4]])


def test_other_colours_come_back_from_every_inverse() -> None:
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bands = lapped_transform.forward(x, np.linalg.inv(COLOURS.T))
    assert (bands - lapped_transform.forward(x)).abs().max() > 0.1
    torch.testing.assert_close(lapped_transform.inverse(bands, COLOURS), x, atol=1e-12, rtol=0)
    exact = lapped_transform.inverse_exact((1000 * bands).round(), COLOURS)
    assert torch.equal(exact, exact.round())
    assert (exact - 1000 * x).abs().max() < 8
    assert (exact - 1000 * x).square().mean().sqrt() < 1


@pytest.mark.parametrize("scale", lapped_transform.SCALES)
def test_other_colours_come_back_small(scale: int) -> None:
    x = noise_pictures(1, 64, seed=2).double()
    chosen = torch.from_numpy(lapped_transform.reduced_bands(scale))
    bands = lapped_transform.forward(x, np.linalg.inv(COLOURS.T))[:, chosen]
    expected = lapped_transform.inverse_reduced(lapped_transform.forward(x)[:, chosen], scale)
    found = lapped_transform.inverse_reduced(bands, scale, COLOURS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_gradients_flow_in_a_process_that_has_decoded() -> None:
    lapped_transform._matrix.cache_clear()
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        lapped_transform.inverse(lapped_transform.forward(x))
    x.requires_grad_()
    lapped_transform.inverse(lapped_transform.forward(x)).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach())
