"""Wrong arguments of a codec raise errors with clear messages; PIL images are accepted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec import EncodedImage, load_codec
from tests.codec.toy import ToyCodec, load


def toy_codec() -> ToyCodec:
    return load("toy", Path("toy"), "0" * 64, {}, {"gain": torch.tensor(1)}, "cpu")


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_pictures_of_pil() -> None:
    codec = toy_codec()
    grey = Image.fromarray(PICTURE[..., 0])
    arrays = [PICTURE, np.repeat(PICTURE[..., :1], 3, 2)]
    assert codec.encode([Image.fromarray(PICTURE), grey]) == codec.encode(arrays)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16", "F"])
def test_modes_that_would_lose_something(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"picture 1 has the PIL mode {mode}.*convert\('RGB'\)"):
        toy_codec().encode([PICTURE, Image.new(mode, (8, 8))])


@pytest.mark.parametrize("single", [PICTURE, Image.fromarray(PICTURE)])
def test_a_single_picture(single: object) -> None:
    with pytest.raises(TypeError, match=r"write encode\(\[picture\]\)"):
        toy_codec().encode(single)  # type: ignore[arg-type]


def test_a_batch_in_one_array() -> None:
    codec = toy_codec()
    assert codec.encode(np.stack([PICTURE, PICTURE])) == codec.encode([PICTURE, PICTURE])  # type: ignore[arg-type]


def test_what_is_no_picture() -> None:
    with pytest.raises(TypeError, match=r"picture 0 must be an array .* not str"):
        toy_codec().encode(["a.jpg"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"picture 0 must be .* float64"):
        toy_codec().encode([PICTURE / 255])


def test_a_single_stream_and_bytes() -> None:
    codec = toy_codec()
    (stream,) = codec.encode([PICTURE])
    for decode in (codec.decode, lambda given: codec.decode_small(given, max_side=8)):
        with pytest.raises(TypeError, match=r"write decode\(\[stream\]\)"):
            decode(stream)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"EncodedImage\.from_bytes"):
        codec.decode([stream.to_bytes()])  # type: ignore[list-item]
    assert EncodedImage.from_bytes(stream.to_bytes()) == stream


def test_layers_that_the_model_does_not_have() -> None:
    codec = toy_codec()
    streams = codec.encode([PICTURE])
    for layers in (-1, codec.num_layers + 1):
        with pytest.raises(ValueError, match=f"layers must be 0 to {codec.num_layers}, got"):
            codec.decode(streams, layers=layers)
        with pytest.raises(ValueError, match=f"layers must be 0 to {codec.num_layers}, got"):
            codec.encode([PICTURE], layers=layers)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"'cuda:0': torch finds no GPU here.*use 'cpu'"):
        load_codec("uqdm", device="cuda:0")
