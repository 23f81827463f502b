"""The lossless layer: exact in any circumstances, and its bits are its loss."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codec import CorruptStreamError, EncodedImage, InvalidModelError, load_codec
from codec.models import zoo
from codec.numerics import strips
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import pixel_lattice, pixel_network, tuning
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.pixel_network import Look
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.ideal import cross_entropy
from tests.codec.small_models import (
    LAYERS,
    nested_codec,
    nested_model,
    noise_pictures,
    write_nested_model,
)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(noise_pictures(3, 64, seed=5).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (7, 5), (8, 8), (33, 65)])
def test_pictures_of_any_size_come_back_exactly(codec: UQDMCodec, size: tuple[int, int]) -> None:
    height, width = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (encoded,) = codec.encode([picture])
    assert len(encoded.layers) == LAYERS
    np.testing.assert_array_equal(codec.decode([encoded])[0], picture)


def test_streams_do_not_depend_on_batch_tiles_or_threads(
    codec: UQDMCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = codec.encode(pictures)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        monkeypatch.setattr(pixel_network, "TILE", 12)  # cells: several tiles, each with its halo
        monkeypatch.setattr(strips, "NUMBERS", 50 * 256)
        alone = [codec.encode([picture])[0] for picture in pictures]
        assert alone == together
        decoded = codec.decode(together)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(decoded, pictures)


def test_the_layers_before_it_are_those_of_a_model_without(
    codec: UQDMCodec, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    without = nested_codec(tmp_path, pixels=False)
    before, after = (c.scheme.encode(pictures, [0] * 3, LAYERS - 1) for c in (without, codec))
    for one, other in zip(before, after, strict=True):
        for layer, same in zip(one, other, strict=True):
            assert layer.symbol_bytes() == same.symbol_bytes()
            assert layer.index_bytes() == same.index_bytes()


def test_the_loss_is_the_length_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is rounded, and what escapes, makes up to three thousandths with other random weights.
    model = nested_model()
    assert model.pixel_network is not None
    torch.nn.init.normal_(model.pixel_network.network.head, std=0.02)
    for name, parameter in model.pixel_network.heads.named_parameters():
        if name.endswith("project"):
            torch.nn.init.normal_(parameter, std=0.1)
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    monkeypatch.setattr(tuning.Tuner, "_find", lambda *_: None)  # streams have none
    images = noise_pictures(1, 64, seed=9)
    states = model.encoded_states(images)
    with torch.no_grad():
        (losses,) = model(images, [LAYERS - 1], states=states)
    scheme = NestedScheme(model_config(model), export(model), "cpu")
    (stream,) = scheme.encode(list(images.permute(0, 2, 3, 1).numpy()), [0], LAYERS)
    parts = list(stream[-1].parts())[tuning.PASSES :]
    bits = sum(cross_entropy(*part) for part in parts) / 64**2
    assert float(losses["bits"]) == pytest.approx(bits, rel=2e-3)


def test_a_colour_tells_the_next_one_of_its_error(codec: UQDMCodec) -> None:
    """Only the head of the same pixel does: nothing else sees a colour before the next place."""
    scheme = codec.scheme
    assert isinstance(scheme, NestedScheme)
    assert scheme._lossless is not None
    own = scheme._lossless.network
    base = torch.full((1, 3, 16, 16), 2000.0)
    off = torch.zeros_like(base)
    off[0, 1, 4, 6] = 320.0  # the green of one pixel of the first place lies 20 values higher
    found = []
    for residual in (torch.zeros_like(base), off):
        look = Look()
        first = own.predict(base, torch.zeros_like(base), 0, look)
        own.predict(base, residual, 1, look)
        found.append((*first, *own.predict(base, residual, 1, look)))  # asked twice: the same
    for green, same in zip(*(x[:2] for x in found), strict=True):
        torch.testing.assert_close(green, same, rtol=0, atol=0)
    changed = (found[0][2] != found[1][2]) | (found[0][3] != found[1][3])
    assert changed.nonzero().tolist() == [[0, 2, 3]]


def test_bits_have_a_gradient_however_far_a_pixel_is_off() -> None:
    error = torch.tensor([0.0, 0.3, 4.0, 200.0], dtype=torch.float64, requires_grad=True)
    spread = torch.tensor([0.0, -1.0, 1.5, -3.0], dtype=torch.float64)
    bits = pixel_lattice.logistic_bits(error, spread, torch.full_like(spread, 128.0))
    scale = 2.0**spread
    mass = torch.sigmoid((error + 0.5) / scale) - torch.sigmoid((error - 0.5) / scale)
    torch.testing.assert_close(bits[:3], -mass.log2()[:3])
    bits.sum().backward()
    assert error.grad is not None
    assert float(error.grad[3]) == pytest.approx(8 / np.log(2))


def test_bits_of_all_values_are_those_of_one_pixel() -> None:
    values = torch.arange(256, dtype=torch.float64)
    for mean in (0.0, 3.3, 128.0, 254.9, 255.0):
        for spread in (-3.0, 1.0, 5.0):
            known = torch.full_like(values, mean)
            bits = pixel_lattice.logistic_bits(
                values - mean, torch.full_like(values, spread), known
            )
            assert float(torch.exp2(-bits).sum()) == pytest.approx(1)


def test_the_scales_are_powers_of_two_to_the_last_bit() -> None:
    expected = (2.0 ** -pixel_lattice.SPREAD.values().astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(pixel_network.inverse_scales().numpy(), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("heads", 0, "heads"),
        ("heads", 513, "heads"),
        ("steps", 12, "must have"),
        ("tuned", True, "tuned"),
    ],
)
def test_sizes_are_checked(tmp_path: Path, name: str, value: int, message: str) -> None:
    path = write_nested_model(tmp_path)
    config, tensors = zoo.read_model(path)
    config["pixel_network"][name] = value
    zoo.write_model(path, config, tensors, {})
    with pytest.raises(InvalidModelError, match=message):
        load_codec(path)


def test_biases_of_heads_leave_sums_exact(tmp_path: Path) -> None:
    path = write_nested_model(tmp_path)
    config, tensors = zoo.read_model(path)
    tensors["pixel_network.heads.4.expand.bias"][3] = -(1 << 31)
    zoo.write_model(path, config, tensors, {})
    with pytest.raises(InvalidModelError, match="heads"):
        load_codec(path)


def test_a_damaged_symbol_is_noticed(codec: UQDMCodec, pictures: list[np.ndarray]) -> None:
    (encoded,) = codec.encode(pictures[:1])
    last = bytearray(encoded.layers[-1])
    last[len(last) // 2] ^= 1
    damaged = EncodedImage(encoded.header, (*encoded.layers[:-1], bytes(last)))
    with pytest.raises(CorruptStreamError, match=f"layer {LAYERS}"):
        codec.decode([damaged])
    np.testing.assert_array_equal(
        *(codec.decode([x], layers=LAYERS - 1)[0] for x in (damaged, encoded))
    )


def test_no_bits_are_spent_on_values_that_no_pixel_has(
    codec: UQDMCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pictures that are nearly white or black, or change between the two."""
    sizes = {}
    rng = np.random.default_rng(0)
    near = rng.integers(0, 4, (3, 40, 40, 3), dtype=np.uint8)
    near[1] = 255 - near[1]
    near[2, :, 20:] += 252
    middle = np.where(near < 128, near + 100, near - 100)
    scheme = codec.scheme
    assert isinstance(scheme, NestedScheme)
    assert scheme._lossless is not None
    monkeypatch.setattr(tuning.Tuner, "_find", lambda *_: None)
    for ends in (True, False):
        if not ends:
            nowhere = torch.zeros_like(scheme._lossless._rooms)
            monkeypatch.setattr(scheme._lossless, "_rooms", nowhere)
        for name, pictures in (("near", near), ("middle", middle)):
            streams = scheme.encode(list(pictures), [0] * 3, LAYERS)
            sizes[ends, name] = [
                sum(cross_entropy(*part) for part in stream[-1].parts()) for stream in streams
            ]
    for far, close in zip(sizes[False, "near"], sizes[True, "near"], strict=True):
        assert close < 0.95 * far
    assert sizes[True, "middle"] == sizes[False, "middle"]


def test_the_tables_of_ends_begin_where_few_values_are_left() -> None:
    spread = torch.arange(pixel_lattice.SPREAD.size).float()
    scales, rooms = 2.0 ** pixel_lattice.SPREAD.values(), torch.tensor(pixel_lattice.ROOMS)
    found = []
    for value in range(256):
        expected = torch.full_like(spread, 16.0 * value)
        nearest, number = pixel_lattice.table_numbers(expected, spread, rooms)
        assert (nearest == value).all()
        room = min(value, 255 - value)
        ends = (room < 8) & (room < 4 * scales)
        np.testing.assert_array_equal(number.numpy() >= pixel_lattice.INNER, ends)
        found.append(number[number >= pixel_lattice.INNER])
    ends = torch.cat(found)
    assert len(ends.unique()) == len(ends) == 2 * sum(pixel_lattice.ROOMS)
    assert ends.max() < pixel_lattice.TABLES
