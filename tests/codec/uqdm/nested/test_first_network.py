"""The light network of level 0 and previews: exactness, and its rate."""

import numpy as np
import pytest
import torch

from codec import CorruptStreamError, EncodedImage, load_codec
from codec.images import metrics, resizing
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import bands, first_network, schedule
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.ideal import ideal_bits
from tests.codec.small_models import CONFIG, nested_codec, nested_model, noise_pictures


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """With contrast: noise that makes level 0 busy, beyond its bands, too."""
    coarse = list(noise_pictures(3, 136, seed=5).permute(0, 2, 3, 1).numpy())
    coarse[1] = np.where(coarse[1] > 128, 255, 0).astype(np.uint8)
    coarse[2] = np.random.default_rng(0).integers(0, 2, coarse[2].shape, np.uint8) * 255
    return coarse


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 17), (65, 130), (3, 200)])
def test_any_size_is_lossless_and_every_prefix_decodes(
    codec: UQDMCodec, size: tuple[int, int]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (stream,) = codec.encode([picture])
    np.testing.assert_array_equal(codec.decode([stream])[0], picture)
    for layers in range(codec.num_layers):
        assert codec.decode([stream], layers=layers)[0].shape == picture.shape
        small = codec.decode_small([stream], layers=layers, max_side=4)[0]
        assert small.shape == (*resizing.fit(*size, 4), 3)


def test_streams_do_not_depend_on_batch_or_tiles(
    codec: UQDMCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = codec.encode(pictures, layers=2)
    assert [codec.encode([picture], layers=2)[0] for picture in pictures] == streams
    expected = codec.decode_small(streams, layers=1, max_side=50)
    monkeypatch.setattr(first_network, "TILE", 5)
    assert codec.encode(pictures, layers=2) == streams
    for a, b in zip(expected, codec.decode_small(streams, layers=1, max_side=50), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def test_the_first_pass_is_what_the_whole_grid_gives(codec: UQDMCodec) -> None:
    """It is computed on a few blocks and spread."""
    scheme = codec.scheme
    assert isinstance(scheme, NestedScheme)
    level = scheme._first
    for height, width in ((1, 1), (3, 40), (10, 11), (11, 10), (25, 24), (24, 31)):
        with torch.inference_mode():
            grid = torch.zeros(1, height, width, len(level.bands))
            (short,) = level.index(grid, 0).numpy()
            trunk = level._trunk(grid, 0, schedule.places_of(grid, scheme.config, 0, 0))
            long = level._index(trunk, level._passes[0]).flatten().numpy()
        np.testing.assert_array_equal(short, long)
        assert height == 1 or len(np.unique(short)) > 6  # borders differ from the middle


def test_bands_that_levels_leave_out_come_back_exactly(codec: UQDMCodec) -> None:
    """Stripes of a pixel are in bands that have digits from level 2 on: those escape there."""
    scheme = codec.scheme
    assert isinstance(scheme, NestedScheme)
    config, stripes = scheme.config, np.zeros((40, 48, 3), np.uint8)
    stripes[:, ::2] = 255
    left_out = ~(config.level_bands(0) | config.level_bands(1))
    images = torch.from_numpy(stripes).permute(2, 0, 1)[None]
    coefficients = bands.to_bands(images, config)[..., left_out]
    assert coefficients.abs().max() > 3 * config.unit(2)
    (stream,) = scheme.encode([stripes], [0], 3)
    largest = [max(np.abs(symbols).max() for symbols in layer.symbols) for layer in stream]
    assert largest[1] <= config.digits < largest[2]
    np.testing.assert_array_equal(codec.decode(codec.encode([stripes]))[0], stripes)


def test_the_training_loss_is_the_coded_rate(codec: UQDMCodec, pictures: list[np.ndarray]) -> None:
    model = nested_model()
    images = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None]
    states = model.encoded_states(images)
    with torch.no_grad():
        losses = [model(images, [n], states=states)[0] for n in range(CONFIG.levels + 1)]
    bits = float(losses[0]["bits"])
    assert bits == pytest.approx(ideal_bits(codec, pictures[0])[0] / 136**2, rel=0.07)
    assert [sorted(loss) for loss in losses] == [
        ["bits"],
        ["bits", "mse", "preview"],
        *[["bits", "mse"]] * CONFIG.levels,
    ][: len(losses)]


def test_damage_in_the_first_layer_is_named(codec: UQDMCodec, pictures: list[np.ndarray]) -> None:
    stream = codec.encode(pictures[1:2], layers=1)[0]
    for at in range(0, len(stream.layers[0]), 7):
        broken = bytearray(stream.layers[0])
        broken[at] ^= 0x10
        with pytest.raises(CorruptStreamError, match="layer 1"):
            codec.decode_small([EncodedImage(stream.header, (bytes(broken),))], max_side=64)


@pytest.mark.parametrize("side", [100, 68, 34, 20, 17, 9])
@pytest.mark.parametrize("layers", [4, 6])
def test_previews_are_what_full_decodes_are_made_small(
    codec: UQDMCodec, pictures: list[np.ndarray], side: int, layers: int
) -> None:
    wide = np.ascontiguousarray(pictures[0][:101, :133])
    streams = codec.encode([wide, pictures[1]])
    for small, whole in zip(
        codec.decode_small(streams, max_side=side, layers=layers),
        codec.decode(streams, layers=layers),
        strict=True,
    ):
        reference = resizing.shrink(whole, *resizing.fit(*whole.shape[:2], side))
        assert small.shape == reference.shape
        assert metrics.psnr(reference, small) > 30
    large = codec.decode_small(streams, max_side=200, layers=layers)
    np.testing.assert_array_equal(large[0], codec.decode(streams, layers=layers)[0])


def test_the_shipped_model_previews_one_layer_as_well_as_it_decodes_it(photo: np.ndarray) -> None:
    """By the light network here, by the trunk there."""
    codec = load_codec("uqdm")
    streams = codec.encode([photo], layers=1)
    (small,) = codec.decode_small(streams, max_side=128, layers=1)
    (whole,) = codec.decode(streams)
    original = resizing.shrink(photo, *small.shape[:2])
    reached = metrics.psnr(original, resizing.shrink(whole, *small.shape[:2]))
    assert metrics.psnr(original, small) > reached - 0.75


def test_lossless_previews_are_made_of_the_whole(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    streams = codec.encode(pictures[:1])
    (small,) = codec.decode_small(streams, max_side=64)
    np.testing.assert_array_equal(small, resizing.shrink(pictures[0], 64, 64))
    with pytest.raises(ValueError, match="decoder"):
        codec.decode_small(streams, max_side=64, decoder="very")
