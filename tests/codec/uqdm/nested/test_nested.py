"""The nested model: exactness whatever the circumstances, and its likelihood against its bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from codec import CorruptStreamError, EncodedImage, UnknownModelError
from codec.numerics import int8_products, strips
from codec.numerics.precision import without_bytes
from codec.uqdm import recipes
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import first_network, level_network, tuning
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.integer_network import IntegerNetwork
from codec.uqdm.nested.objective import NestedObjective
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.ideal import cross_entropy, ideal_bits
from tests.codec.small_models import CONFIG, nested_codec, nested_model, noise_pictures

SIZES = [(1, 1), (7, 5), (8, 8), (65, 130), (3, 200)]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(noise_pictures(3, 72, seed=5).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_lossless_and_every_prefix_decodes(
    codec: UQDMCodec, size: tuple[int, int]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = EncodedImage.from_bytes(codec.encode([picture])[0].to_bytes())
    np.testing.assert_array_equal(codec.decode([stream])[0], picture)
    for layers in range(codec.num_layers):
        assert codec.decode([stream.truncate(layers)])[0].shape == picture.shape


def test_every_layer_is_better_than_the_one_before(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    streams = codec.encode(pictures)
    errors = []
    for layers in range(1, codec.num_layers + 1):
        decoded = codec.decode(streams, layers=layers)
        pairs = zip(pictures, decoded, strict=True)
        errors.append(np.mean([(a.astype(float) - b) ** 2 for a, b in pairs]))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    # Steps shrink by 3, so the error falls by up to 9 until the rest is below the steps.
    assert errors[1] > 3 * errors[2]


def test_streams_do_not_depend_on_batch_tiles_or_threads(
    codec: UQDMCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = codec.encode(pictures)
    assert [codec.encode([picture])[0] for picture in pictures] == expected
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        for module in (first_network, level_network):
            monkeypatch.setattr(module, "TILE", 5)  # blocks: many tiles, each with its halo
        monkeypatch.setattr(strips, "NUMBERS", 7 * 32)
        assert codec.encode(pictures) == expected
        for picture, decoded in zip(pictures, codec.decode(expected), strict=True):
            np.testing.assert_array_equal(decoded, picture)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bytes_", [True, False])
def test_the_network_is_exact_in_any_arithmetic(
    bytes_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float64 has 29 bits to spare: if the network agrees with it to the last bit, nothing rounded.

    Factors, products and roundings of the requantisation are in float32, as they are defined.
    """
    if bytes_ and not int8_products._bytes_are_right(torch.device("cpu")):
        pytest.skip("this processor's products of bytes saturate")
    monkeypatch.setattr(int8_products, "bytes_are_faster", lambda device: bytes_)
    model = nested_model()
    weights, device = model.network.export(), torch.device("cpu")
    weights["head.scale"] = weights["head.scale"].expand(CONFIG.levels, -1)
    network = IntegerNetwork(model.network.config, weights, device)
    generator = torch.Generator().manual_seed(1)
    features = torch.randint(-127, 128, (2, 9, 11, 384), generator=generator).to(torch.int8)
    board = (torch.arange(9)[:, None] + torch.arange(11)) % 5

    def outputs() -> torch.Tensor:
        return network.head(3)(network.trunk(features, board, 3))

    found = outputs()
    assert found.abs().max() > 1
    wide = _Wide()
    with without_bytes(), wide:
        expected = outputs()
    assert wide.seen == 2 + 3 * model.network.config.blocks
    assert wide.largest < 2**24
    assert torch.equal(found, expected)


class _Wide(TorchFunctionMode):
    """Sums of products in float64, in another order, one factor after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.largest = 0, 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.mm, torch.nn.functional.conv2d):
            return func(*args, **kwargs)
        self.seen += 1
        a, b = (x.double() for x in args)
        if func is torch.nn.functional.conv2d:
            out = func(a, b, **kwargs)
        else:
            out = sum(a[:, i : i + 1] * b[i] for i in reversed(range(len(b))))
        self.largest = max(self.largest, float(out.abs().max()))
        return out.float()


def test_training_sees_the_network_that_runs() -> None:
    """Fake quantisation and the exported integers agree but for rounding on a knife's edge."""
    model = nested_model().eval()
    features = torch.randint(-127, 128, (1, 12, 12, 384)).to(torch.int8)
    board = (torch.arange(12)[:, None] + torch.arange(12)) % 5
    with torch.no_grad():
        seen = model.network(features, board, torch.tensor([2]))
    exported = export(model)
    weights = {
        name.removeprefix("network."): tensor
        for name, tensor in exported.items()
        if name.startswith("network.")
    }
    network = IntegerNetwork(model.network.config, weights, torch.device("cpu"))
    runs = network.head(2)(network.trunk(features, board, 2))[..., 192:384]
    runs = runs * (model.config.width.step / level_network.FINE)
    difference = (seen[..., 192:384] - runs).abs()
    assert difference.mean() < 0.02 * seen[..., 192:384].abs().mean()


def test_bits_are_the_likelihood(codec: UQDMCodec, pictures: list[np.ndarray]) -> None:
    streams = codec.encode(pictures)
    for picture, stream in zip(pictures, streams, strict=True):
        for ideal, layer in zip(ideal_bits(codec, picture), stream.layers, strict=True):
            assert 8 * len(layer) <= 1.01 * ideal + 8 * 16


def test_the_training_loss_is_the_coded_rate(codec: UQDMCodec, pictures: list[np.ndarray]) -> None:
    model = nested_model()
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    states = model.encoded_states(images)
    with torch.no_grad():
        bits = [float(model(images, [n], states=states)[0]["bits"]) for n in range(CONFIG.levels)]
    coded = np.mean([ideal_bits(codec, picture) for picture in pictures], axis=0) / 72**2
    for loss, bpp in zip(bits, coded, strict=False):
        assert loss == pytest.approx(bpp, rel=0.07)  # outputs and biases are rounded apart
    assert sum(bits) == pytest.approx(coded[:-1].sum(), rel=0.01)


def test_damage_is_named_and_earlier_layers_stand(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    stream = codec.encode(pictures[:1])[0]
    for number, layer in enumerate(stream.layers):
        for at in (0, 5, len(layer) // 2, len(layer) - 1):
            broken = bytearray(layer)
            broken[at] ^= 0x10
            layers = (*stream.layers[:number], bytes(broken), *stream.layers[number + 1 :])
            with pytest.raises(CorruptStreamError, match=f"layer {number + 1}") as caught:
                codec.decode([EncodedImage(stream.header, layers)])
            assert caught.value.layer == number
            codec.decode([EncodedImage(stream.header, layers)], layers=number)
    swapped = EncodedImage(stream.header, (stream.layers[1], stream.layers[0]))
    with pytest.raises(CorruptStreamError, match="layer 1"):
        codec.decode([swapped])


def test_another_models_stream_is_refused(
    codec: UQDMCodec, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    other = nested_codec(tmp_path, seed=1)
    assert other.model_id != codec.model_id
    with pytest.raises(UnknownModelError, match=other.model_id[:8]):
        codec.decode(other.encode(pictures[:1]))


def test_samples_are_pictures_and_repeatable(codec: UQDMCodec) -> None:
    samples = codec.sample(24, 40, 2, seed=3)
    assert [s.shape for s in samples] == [(24, 40, 3)] * 2
    assert not np.array_equal(samples[0], samples[1])
    np.testing.assert_array_equal(codec.sample(24, 40, 2, seed=3)[1], samples[1])


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_not_a_picture_is_refused(codec: UQDMCodec, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="picture 1 must be"):
        codec.encode([np.zeros((4, 4, 3), np.uint8), bad])


def test_progressive_decoding_is_decoding_every_prefix(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    small = np.ascontiguousarray(pictures[0][:20, :30])
    streams = [*codec.encode([*pictures, small]), codec.encode([small])[0].truncate(2)]
    steps = list(codec.decode_progressively(streams))
    assert len(steps) == codec.num_layers
    for layers, shown in enumerate(steps, start=1):
        for a, b in zip(shown, codec.decode(streams, layers=layers), strict=True):
            np.testing.assert_array_equal(a, b)
    assert list(codec.decode_progressively([])) == []
    first = next(codec.decode_progressively([streams[0].truncate(0), streams[1]]))
    np.testing.assert_array_equal(first[0], codec.decode(streams[:1], layers=0)[0])


def test_counted_tables_shorten_what_they_were_counted_on() -> None:
    model = nested_model(pixels=False)
    trainable = recipes.UQDMTrainable(model, NestedObjective(), model_config(model))
    pictures = list(noise_pictures(6, 64, seed=9).permute(0, 2, 3, 1).numpy())
    plain, counted = trainable.tensors(), trainable.tensors(pictures)
    assert plain.keys() == counted.keys()
    other = list(noise_pictures(2, 64, seed=10).permute(0, 2, 3, 1).numpy())

    def bits(tensors: dict[str, torch.Tensor]) -> float:
        scheme = NestedScheme(trainable.config, tensors, "cpu")
        streams = scheme.encode(other, [0, 0], scheme.num_layers)
        parts = [part for stream in streams for layer in stream for part in layer.parts()]
        return sum(cross_entropy(*part) for part in parts)

    assert bits(counted) < 0.97 * bits(plain)


@pytest.mark.parametrize(
    ("bad", "by", "range_of"),
    [(0, 1 << 24, "coefficient"), (2, -(1 << 24), "coefficient"), (-1, 300, "pixel")],
)
def test_symbols_that_no_encoder_writes_are_refused(
    codec: UQDMCodec, bad: int, by: int, range_of: str
) -> None:
    """In the first pass of coefficients or pixels, or the last: the error names the layer."""
    scheme, pictures = codec.scheme, list(noise_pictures(2, 24).permute(0, 2, 3, 1).numpy())
    bad %= codec.num_layers
    streams = scheme.encode(pictures, [0, 0], codec.num_layers)

    def decode(wrong: int) -> None:
        state = scheme.start([(24, 24)] * 2, [0, 0])
        for layer in range(codec.num_layers):
            for number in range(scheme.passes(layer)):
                scheme.choices(state, layer, number)
                passed = [list(stream)[layer].symbols[number] for stream in streams]
                symbols = [one.astype(np.int32) for one in passed]
                if (layer, number) == (bad, wrong):
                    symbols[1][-1] += by
                scheme.update(state, layer, number, symbols)

    first = tuning.PASSES if bad == codec.num_layers - 1 else 0
    for wrong in (first, scheme.passes(bad) - 1):
        with pytest.raises(
            CorruptStreamError, match=f"layer {bad + 1} .* {range_of} range"
        ) as caught:
            decode(wrong)
        assert caught.value.layer == bad


def test_a_model_without_a_lossless_layer(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    codec = nested_codec(tmp_path, pixels=False)
    assert codec.num_layers == CONFIG.levels
    assert not codec.lossless
    (tmp_path / "whole").mkdir()
    exact = nested_codec(tmp_path / "whole")
    whole = exact.decode(exact.encode(pictures), layers=CONFIG.levels)
    for ours, theirs in zip(codec.decode(codec.encode(pictures)), whole, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1
