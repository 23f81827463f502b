"""Reconstruction heads: other pictures of the same streams, alike in any batch and tiles."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import InvalidModelError, load_codec
from codec.images import resizing
from codec.models import heads, zoo
from codec.stream.dither import unit_noise
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import head as head_module
from tests.codec.small_models import noise_pictures, write_head, write_nested_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's file with both heads beside it."""
    path = write_nested_model(tmp_path_factory.mktemp("model"))
    for decoder in heads.DECODERS:
        write_head(path, decoder)
    return path


@pytest.fixture(scope="module")
def codec(model: Path) -> UQDMCodec:
    codec = load_codec(model)
    assert isinstance(codec, UQDMCodec)
    return codec


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(noise_pictures(3, 72, seed=5).permute(0, 2, 3, 1).numpy())


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_heads_show_the_same_stream_in_other_ways(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    assert codec.decoders == ("mean", "eyes", "realistic")
    streams = codec.encode(pictures[:1])
    lossy = {name: codec.decode(streams, layers=3, decoder=name)[0] for name in codec.decoders}
    assert difference(lossy["mean"], lossy["eyes"]) > 3
    assert difference(lossy["mean"], lossy["realistic"]) > 3
    assert difference(lossy["eyes"], lossy["realistic"]) > 3
    np.testing.assert_array_equal(codec.decode(streams, layers=3)[0], lossy["eyes"])
    first = codec.decode(streams, layers=1)[0]  # one layer needs no head, unless it is named
    np.testing.assert_array_equal(first, codec.decode(streams, layers=1, decoder="mean")[0])
    assert difference(first, codec.decode(streams, layers=1, decoder="eyes")[0]) > 0
    for name in codec.decoders:
        np.testing.assert_array_equal(codec.decode(streams, decoder=name)[0], pictures[0])
        grey = codec.decode([streams[0].truncate(0)], decoder=name)[0]
        assert len(np.unique(grey)) == 1, "without a layer there is nothing that a head could see"
    with pytest.raises(ValueError, match="no decoder flow: it has mean, eyes, realistic"):
        codec.decode(streams, decoder="flow")


@pytest.mark.parametrize("decoder", heads.DECODERS)
def test_batch_and_tiles_do_not_matter(
    codec: UQDMCodec,
    pictures: list[np.ndarray],
    decoder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = codec.encode(pictures, layers=3)
    together = codec.decode(streams, decoder=decoder)
    for stream, picture in zip(streams, together, strict=True):
        assert difference(codec.decode([stream], decoder=decoder)[0], picture) <= 1
    monkeypatch.setattr(head_module, "TILE", 3)
    for tiled, picture in zip(codec.decode(streams, decoder=decoder), together, strict=True):
        assert difference(tiled, picture) <= 1
    prefixes = list(codec.decode_progressively(streams, decoder=decoder))
    assert difference(prefixes[-1][0], together[0]) <= 1


def test_noise_is_the_same_each_time_and_has_no_colour() -> None:
    noise = unit_noise((40, 30, 192))
    np.testing.assert_array_equal(noise, unit_noise((40, 30, 192)))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)
    bands = noise.reshape(-1, 192)
    others = np.corrcoef(bands.T) - np.eye(192)
    assert np.abs(others).max() < 0.2


def test_previews_are_of_means_unless_a_head_is_named(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    streams = codec.encode(pictures[:1], layers=3)
    small = codec.decode_small(streams, max_side=36)[0]
    np.testing.assert_array_equal(
        small, codec.decode_small(streams, max_side=36, decoder="mean")[0]
    )
    real = codec.decode_small(streams, max_side=36, decoder="realistic")[0]
    whole = codec.decode(streams, decoder="realistic")[0]
    np.testing.assert_array_equal(real, resizing.shrink(whole, 36, 36))


def test_a_head_for_another_model_says_so_and_the_mean_goes_on(
    model: Path, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    other = write_nested_model(tmp_path, seed=1)
    shutil.copy(heads.head_file(model, "eyes"), heads.head_file(other, "eyes"))
    codec = load_codec(other)
    streams = codec.encode(pictures[:1], layers=2)
    ids = (
        f"for model {zoo.model_id(model)[:8]}.*, not for {zoo.model_id(other)[:8]}.*--decoder mean"
    )
    with pytest.raises(InvalidModelError, match=ids):
        codec.decode(streams)
    assert codec.decode(streams, decoder="mean")[0].shape == pictures[0].shape


@pytest.mark.parametrize("damage", ["cut", "foreign", "other size", "not positive"])
def test_a_damaged_head_is_refused(
    model: Path, pictures: list[np.ndarray], tmp_path: Path, damage: str
) -> None:
    own = tmp_path / zoo.MODEL_FILE
    shutil.copy(model, own)
    path = write_head(own, "eyes")
    model_id = zoo.model_id(own)
    config, tensors = heads.read_head(path, model_id)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        shutil.copy(model, path)
    elif damage == "other size":
        heads.write_head(path, "eyes", model_id, {**config, "channels": 9}, tensors)
    else:
        tensors["scale"] = torch.zeros_like(tensors["scale"])
        heads.write_head(path, "eyes", model_id, config, tensors)
    codec = load_codec(own)
    with pytest.raises(InvalidModelError):
        codec.decode(codec.encode(pictures[:1], layers=2))


def test_ids_of_heads_name_their_files(codec: UQDMCodec, model: Path) -> None:
    eyes = zoo.model_id(heads.head_file(model, "eyes"))
    assert codec.head_id({}) == codec.head_id({"decoder": "eyes"}) == eyes
    assert codec.head_id({"decoder": "mean"}) == ""
