"""Metrics against independent implementations, and in edge cases."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from codec.images import metrics
from codec.images.metrics import LUMA, bits_per_pixel, ms_ssim, mse, psnr, psnr_of_mean_mse


def noisy(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def test_mse_and_psnr(photo):
    other = noisy(photo, 10)
    assert psnr(photo, other) == pytest.approx(peak_signal_noise_ratio(photo, other), abs=1e-9)
    assert psnr(photo, photo) == math.inf
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert mse(black, white) == mse(white, black) == 65_025  # and no wrapping of uint8
    assert psnr(black, white) == 0


def test_psnr_of_mean_mse():
    assert psnr_of_mean_mse([65_025.0, 65_025.0]) == 0
    assert psnr_of_mean_mse(iter([0.0, 130.05])) == pytest.approx(30)
    assert psnr_of_mean_mse([0.0]) == math.inf
    with pytest.raises(ValueError, match="no errors"):
        psnr_of_mean_mse([])


def test_bits_per_pixel():
    assert bits_per_pixel(512, 64, 64) == 1
    with pytest.raises(ValueError, match="0x5"):
        bits_per_pixel(1, 0, 5)


@pytest.mark.parametrize("side", [11, 16, 20])
def test_one_scale_is_ssim(photo, side):
    """Under 21 pixels one scale fits, and MS-SSIM is SSIM."""
    a = photo[100 : 100 + side, 200:230]
    b = noisy(a, 12)
    luma_a, luma_b = a @ LUMA, b @ LUMA
    expected = structural_similarity(
        luma_a, luma_b, gaussian_weights=True, use_sample_covariance=False, data_range=255
    )
    assert ms_ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_five_scales_against_a_plain_implementation(photo):
    """Scale by scale from scikit-image's full SSIM maps, with Wang's exponents."""
    a, b = photo[:256, :256] @ LUMA, noisy(photo[:256, :256], 15) @ LUMA
    expected = 1.0
    for scale, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
        if scale < 4:  # contrast and structure only: a first constant that swamps the means
            options["K1"] = 1e6
        expected *= structural_similarity(a, b, **options) ** exponent
        a, b = ((x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4 for x in (a, b))
    assert ms_ssim(photo[:256, :256], noisy(photo[:256, :256], 15)) == pytest.approx(
        expected, abs=1e-6
    )


def test_ms_ssim_orders_damage(photo):
    scores = [ms_ssim(photo, noisy(photo, sigma)) for sigma in (0, 5, 20, 60)]
    assert scores[0] == pytest.approx(1)
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[1] < 1
    assert ms_ssim(photo, 255 - photo) < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (10, 300), (21, 21), (160, 161), (161, 163)])
def test_ms_ssim_of_any_size(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert ms_ssim(image, image) == pytest.approx(1)
    assert 0 <= ms_ssim(image, noisy(image, 90)) < 1


def test_wrong_arguments():
    image = np.zeros((4, 4, 3), np.uint8)
    for metric in (mse, psnr, ms_ssim):
        with pytest.raises(ValueError, match="one shape"):
            metric(image, image[:3])
        with pytest.raises(ValueError, match="uint8"):
            metric(image, image.astype(np.float32))
        with pytest.raises(ValueError, match="H, W"):
            metric(image[..., :2], image[..., :2])


def _blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def test_sliced_wasserstein_of_equal_pictures_is_zero(photo: np.ndarray) -> None:
    assert metrics.sliced_wasserstein(photo, photo.copy()) == 0


def test_sliced_wasserstein_grows_with_blur_and_has_no_direction(photo: np.ndarray) -> None:
    little, much = _blurred(photo, 1), _blurred(photo, 2)
    near = metrics.sliced_wasserstein(photo, little)
    assert 0 < near < metrics.sliced_wasserstein(photo, much)
    assert metrics.sliced_wasserstein(little, photo) == near
    assert metrics.sliced_wasserstein(photo, little) == near  # nothing random is left


def test_sliced_wasserstein_asks_for_kinds_of_detail_not_for_places(photo: np.ndarray) -> None:
    """Grain with another seed is near in kind, though squared error calls it the worse picture."""
    random = np.random.default_rng(0)
    base = _blurred(photo, 3).astype(float)
    grains = [random.normal(0, 12, photo.shape) for _ in range(2)]
    original, other = ((base + grain).clip(0, 255).astype(np.uint8) for grain in grains)
    smooth = base.astype(np.uint8)
    assert metrics.mse(original, other) > metrics.mse(original, smooth)
    distance = metrics.sliced_wasserstein(original, other)
    assert distance < metrics.sliced_wasserstein(original, smooth) / 3


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (31, 33), (65, 64)])
def test_sliced_wasserstein_takes_pictures_of_any_size(size: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    a, b = random.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert metrics.sliced_wasserstein(a, a) == 0
    assert metrics.sliced_wasserstein(a, b) > 0
    plain = np.full_like(a, 7)
    assert np.isfinite(metrics.sliced_wasserstein(plain, plain + 1))
    with pytest.raises(ValueError, match="one shape"):
        metrics.sliced_wasserstein(a, np.zeros((50, 50, 3), np.uint8))


def test_patch_lines_of_every_level(photo: np.ndarray) -> None:
    lines = metrics.patch_lines(photo)
    assert [level.shape for level in lines.positions] == [(1024, 64)] * 4 + [(676, 64)]


def test_ms_ssim_in_decibels() -> None:
    assert metrics.ms_ssim_decibel(0.99) == pytest.approx(20)
    assert metrics.ms_ssim_decibel(1.0) == float("inf")
