"""The light network of level 0 and previews: exactness, older models, training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codec import CorruptStreamError, EncodedImage, load_codec
from codec.errors import InvalidModelError
from codec.images import metrics, resizing
from codec.models import zoo
from codec.training.data import Pictures
from codec.training.recipe import write_training_file
from codec.uqdm import recipes
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import first_network, schedule
from codec.uqdm.nested.model import NestedModel
from codec.uqdm.nested.objective import NestedObjective
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.small_models import (
    nested_model,
    noise_pictures,
    with_new_passes,
    write_nested_model,
)

DATA = Path(__file__).parent / "data"


def with_first(new_passes: bool = False) -> NestedModel:
    """``nested_model`` with a light network whose output layer is not zero either."""
    model = recipes.with_first_network(nested_model())
    if new_passes:
        model = with_new_passes(model)
    assert model.first_network is not None
    with torch.no_grad():
        model.first_network.head.normal_(std=0.05)
        model.first_network.stem_bias.normal_()
        for block in model.first_network.blocks:
            block.project.normal_(std=0.2)
            block.bias.normal_(std=0.3)
        model.bias[: model.layout.steps - 1, schedule.OUTPUTS["width"]] += 1.0
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["checkerboard", "lattices"])
def new_passes(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory, new_passes: bool) -> UQDMCodec:
    path = tmp_path_factory.mktemp("model") / zoo.MODEL_FILE
    model = with_first(new_passes)
    zoo.write_model(path, model.model_config(archive_layers=5), model.export())
    loaded = load_codec(path)
    assert isinstance(loaded, UQDMCodec)
    return loaded


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """With contrast: noise that makes level 0 busy, beyond its bands, too."""
    coarse = list(noise_pictures(3, 136, seed=5).permute(0, 2, 3, 1).numpy())
    coarse[1] = np.where(coarse[1] > 128, 255, 0).astype(np.uint8)
    coarse[2] = np.random.default_rng(0).integers(0, 2, coarse[2].shape, np.uint8) * 255
    return coarse


def test_older_models_and_streams_decode_as_they_did() -> None:
    """Model, stream and prefixes were written before there was a light network."""
    codec = load_codec(DATA / "before_first.safetensors")
    golden = np.load(DATA / "before_first.npz")
    stream = EncodedImage.from_bytes(golden["stream"].tobytes())
    *lossy, exact = golden["prefixes"]
    np.testing.assert_array_equal(codec.decode([stream])[0], exact)
    for layers, expected in enumerate(lossy, start=1):
        decoded = codec.decode([stream], layers=layers)[0].astype(int)
        assert np.abs(decoded - expected).max() <= 1  # floats: elsewhere they may round otherwise
        assert (decoded != expected).mean() < 0.01
    # The encoder chooses otherwise today; what it chooses is for the model to decode.
    np.testing.assert_array_equal(codec.decode(codec.encode([exact]))[0], exact)


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
    assert level is not None
    for height, width in ((1, 1), (3, 40), (10, 11), (11, 10), (25, 24), (24, 31)):
        with torch.inference_mode():
            grid = torch.zeros(1, height, width, len(level.bands))
            (short,) = level.index(grid, 0).numpy()
            trunk = level._trunk(grid, 0, schedule.places_of(grid, scheme.config, 0, 0))
            long = level._index(trunk, level._passes[0]).flatten().numpy()
        np.testing.assert_array_equal(short, long)
        assert height == 1 or len(np.unique(short)) > 12  # borders differ from the middle


def test_bands_that_level_0_leaves_out_come_back_exactly(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    """Pixels of noise between black and white: many bands escape at level 1."""
    scheme = codec.scheme
    assert isinstance(scheme, NestedScheme)
    left_out = ~scheme.config.level_bands(0)
    noise = pictures[2]
    images = torch.from_numpy(noise).permute(2, 0, 1)[None]
    coefficients = schedule.to_bands(images, scheme.config)[..., left_out]
    assert (coefficients.abs() > scheme.config.unit(0)).any()
    np.testing.assert_array_equal(codec.decode(codec.encode([noise]))[0], noise)


def test_the_training_loss_is_the_coded_rate(
    codec: UQDMCodec, pictures: list[np.ndarray], new_passes: bool
) -> None:
    model = with_first(new_passes)
    images = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None]
    with torch.no_grad():
        losses = [model(images, [step])[0] for step in range(model.layout.steps + 1)]
    bits = sum(float(loss["bits"]) for loss in losses[: model.layout.steps - 1])
    assert bits == pytest.approx(codec.cross_entropy(pictures[0])[0] / 136**2, rel=0.05)
    assert [sorted(loss) for loss in losses] == [
        ["bits", "mse"],
        *[["bits"]] * (5 if new_passes else 2),
        ["bits", "mse", "preview"],
        ["bits"],
    ]


def test_damage_in_the_first_layer_is_named(codec: UQDMCodec, pictures: list[np.ndarray]) -> None:
    stream = codec.encode(pictures[1:2], layers=1)[0]
    for at in range(0, len(stream.layers[0]), 7):
        broken = bytearray(stream.layers[0])
        broken[at] ^= 0x10
        with pytest.raises(CorruptStreamError, match="layer 0"):
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


def test_the_shipped_model_previews_one_layer_as_well_as_it_decodes_it() -> None:
    """By the light network here, by the large one there."""
    codec = load_codec("uqdm")
    pictures = list(noise_pictures(2, 192, seed=6).permute(0, 2, 3, 1).numpy())
    streams = codec.encode(pictures, layers=1)
    previews = codec.decode_small(streams, max_side=64, layers=1)
    for picture, small, whole in zip(pictures, previews, codec.decode(streams), strict=True):
        original = resizing.shrink(picture, 64, 64)
        reached = metrics.psnr(original, resizing.shrink(whole, 64, 64))
        assert metrics.psnr(original, small) > reached - 0.5


def test_lossless_and_flow_previews_are_made_of_the_whole(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    streams = codec.encode(pictures[:1])
    (small,) = codec.decode_small(streams, max_side=64)
    np.testing.assert_array_equal(small, resizing.shrink(pictures[0], 64, 64))
    (flow,) = codec.decode_small(streams, layers=3, max_side=64, realism="flow")
    (whole,) = codec.decode(streams, layers=3, realism="flow")
    np.testing.assert_array_equal(flow, resizing.shrink(whole, 64, 64))
    with pytest.raises(ValueError, match="realism"):
        codec.decode_small(streams, max_side=64, realism="very")


def _pictures() -> Pictures:
    pictures = Pictures(crop=64)
    for picture in noise_pictures(12, 96).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    return pictures


def test_an_older_model_gets_a_light_network_and_keeps_all_else(tmp_path: Path) -> None:
    """``--train first``: level 0's rate falls, and the large network is not touched."""
    model = nested_model()
    old = recipes.UQDMTrainable(model, NestedObjective(), model.model_config())
    write_nested_model(tmp_path)
    write_training_file(tmp_path / "training.safetensors", old, model.state_dict())
    before = {n: p.clone() for n, p in recipes.restore(tmp_path).model.named_parameters()}
    trainable = recipes.restore(tmp_path, {"train": "first"})
    assert trainable.config["first_network"]["blocks"] == 2
    assert "first_network" not in recipes.restore(tmp_path).config
    images = _pictures().batch(8, 0.0, np.random.default_rng(0))

    def bits() -> float:
        with torch.no_grad():
            return sum(float(trainable.model(images, [step])[0]["bits"]) for step in range(3))

    start = bits()
    trained = [p for p in trainable.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 3e-3)
    for step in range(20):
        loss, _ = trainable.objective(trainable.model, images, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bits() < 0.97 * start
    after = dict(trainable.model.named_parameters())
    for name, value in before.items():
        if name == "bias":  # of level 0 alone, and there not of what the large network shows
            kept = after["bias"][:-1].clone()
            kept[:3] = value[:3]
            assert torch.equal(kept, value)
        elif not name.startswith("first_"):
            assert torch.equal(after[name], value), name


def test_a_new_model_trains_both_and_goes_on(tmp_path: Path) -> None:
    recipe = recipes.RECIPES["tiny"]
    model = {**recipe.model, "first_network": {"channels": 16, "hidden": 32, "blocks": 1}}
    small = recipes.Recipe(model)
    with pytest.raises(InvalidModelError, match="--init"):
        recipes.build(small, _pictures(), overrides={"train": "first"})
    trainable = recipes.build(small, _pictures())
    images = _pictures().batch(8, 0.0, np.random.default_rng(0))
    trainable.model(images, [0, 6])[1]["preview"].backward()
    assert trainable.model.first_network.head.grad is not None
    losses = trainable.model(images, [0, 6])
    sum(value for loss in losses for value in loss.values()).backward()
    assert trainable.model.network.head.grad is not None
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, trainable.config, trainable.tensors())
    (stream,) = (loaded := load_codec(path)).encode([np.asarray(images[0].permute(1, 2, 0))])
    np.testing.assert_array_equal(loaded.decode([stream])[0], images[0].permute(1, 2, 0).numpy())
