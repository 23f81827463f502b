"""CDC streams: nothing but the bytes matters, every prefix decodes, damage is named."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import CorruptStreamError, EncodedImage, InvalidModelError, load_codec
from codec.cdc import scheme as scheme_module
from codec.cdc.codec import CDCCodec
from codec.cdc.latents import residual_choice
from codec.cdc.latents.trit_planes import Progress
from codec.cdc.networks import tiling
from codec.cdc.networks.light_transform import LightCompressor
from codec.cdc.networks.model import CDCModel, build_model
from codec.models import zoo
from codec.numerics.tiles import pieces, scaled
from tests.codec.cdc.models import light_config, paper_config, pictures, write_model
from tests.codec.ideal import ideal_bits

SIZES = [(1, 1), (7, 5), (64, 64), (65, 130), (3, 200), (1, 70)]
CONFIGS = {
    "light": light_config(),
    "paper": paper_config(),
    "no-fast-head": paper_config(False, "eps"),
}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CDCCodec]:
    out = {}
    for name, config in CONFIGS.items():
        loaded = load_codec(write_model(tmp_path_factory.mktemp(name), config))
        assert isinstance(loaded, CDCCodec)
        out[name] = loaded
    linear = load_codec(write_model(tmp_path_factory.mktemp("linear"), light_config(), linear=True))
    assert isinstance(linear, CDCCodec)
    out["linear"] = linear
    return out


@pytest.fixture
def codec(codecs: dict[str, CDCCodec]) -> CDCCodec:
    return codecs["light"]


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a.astype(float) - b) ** 2))


def largest(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("kind", ["light", "paper"])
def test_the_mean_alone_is_that_of_both(kind: str) -> None:
    model = build_model(CONFIGS[kind])
    z = torch.randn(3, model.hyper_channels, 2, 3, generator=torch.Generator().manual_seed(0))
    quality = torch.tensor([0, model.qualities - 1, 0])
    with torch.no_grad():
        if isinstance(model.compressor, LightCompressor):
            model.compressor.hyper_bias.normal_()  # zero before training
        mean, _ = model.hyper_synthesis(z, quality)
        torch.testing.assert_close(model.hyper_mean(z, quality), mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_any_size_and_every_prefix_decode(
    codecs: dict[str, CDCCodec], kind: str, size: tuple[int, int]
) -> None:
    codec = codecs[kind]
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = EncodedImage.from_bytes(codec.encode([picture])[0].to_bytes())
    assert len(stream.layers) == codec.num_layers >= 7
    for layers in range(codec.num_layers + 1):
        shown = codec.decode([stream.truncate(layers)])[0]
        assert shown.shape == picture.shape
        assert shown.dtype == np.uint8


def direct(model: CDCModel, picture: np.ndarray, quality: int) -> np.ndarray:
    """What the networks alone make of a picture, without a stream."""
    q = torch.tensor([quality])
    with torch.no_grad():
        x = torch.from_numpy(picture)[None].permute(0, 3, 1, 2).float() / 127.5 - 1
        y = model.analysis(x, q)
        medians = model.medians(q)
        z = (model.hyper_analysis(y) - medians).round() + medians
        mean, _ = model.hyper_synthesis(z, q)
        seen = model.synthesis((y - mean).round() + mean, q)
        fast = seen.picture
        if fast is None:
            assert model.diffusion is not None
            fast = model.diffusion.sample(
                lambda x, time: model.denoise(x, time, seen), torch.zeros_like(x), 3
            )
    out = ((fast + 1) * 127.5).round().clamp(0, 255)
    return out[0].permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_bytes_alone_give_what_the_networks_give(
    codecs: dict[str, CDCCodec], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual_choice, "TRADE", 0.0)
    codec = codecs[kind]
    picture = pictures(1, 128)[0]
    for quality in range(codec.scheme.model.qualities):
        stream = codec.encode([picture], quality=quality)[0]
        decoded = codec.decode([EncodedImage.from_bytes(stream.to_bytes())])[0]
        assert largest(decoded, direct(codec.scheme.model, picture, quality)) <= 1


def test_every_layer_is_better_than_the_one_before(codecs: dict[str, CDCCodec]) -> None:
    codec, shown = codecs["linear"], pictures()
    for quality in (0, 1):
        streams = codec.encode(shown, quality=quality)
        errors = [
            np.mean([error(a, b) for a, b in zip(shown, prefix, strict=True)])
            for prefix in codec.decode_progressively(streams)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 10


def test_a_higher_quality_costs_more_and_shows_more(codecs: dict[str, CDCCodec]) -> None:
    codec, picture = codecs["linear"], pictures(1)[0]
    low, high = (codec.encode([picture], quality=q)[0] for q in (0, 1))
    assert high.nbytes > 1.5 * low.nbytes
    assert error(picture, codec.decode([high])[0]) < 0.5 * error(picture, codec.decode([low])[0])
    assert codec.encode([picture])[0] == high  # the model's default


def test_a_prefix_decodes_to_conditional_means(
    codecs: dict[str, CDCCodec], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, picture = codecs["linear"], pictures(1)[0]
    stream = codec.encode([picture])[0]
    expected = [error(picture, codec.decode([stream], layers=n)[0]) for n in (2, 3, 4)]
    monkeypatch.setattr(Progress, "expectation", lambda self: self.value.astype(np.float32))
    known_only = [error(picture, codec.decode([stream], layers=n)[0]) for n in (2, 3, 4)]
    assert all(a < b for a, b in zip(expected, known_only, strict=True))


@pytest.mark.parametrize("kind", ["light", "paper"])
def test_tables_are_those_of_the_scales(codecs: dict[str, CDCCodec], kind: str) -> None:
    """The integer hyper-decoder chooses what the float one would, at every quality."""
    scheme = codecs[kind].scheme
    for quality in range(scheme.model.qualities):
        state = scheme.start([(96, 96)], [0])
        (index,), _ = scheme._quantise(state, pictures(1), quality, tiling.TILE_PIXELS)
        medians = scheme.model.medians(torch.tensor([quality]))
        with torch.no_grad():
            z = torch.from_numpy(state.pictures[0].hyper)[None] + medians
            _, scale = scheme.model.hyper_synthesis(z, torch.tensor([quality]))
        scales = scheme.trees[quality].scales
        ideal = np.interp(np.log(scale.flatten()), np.log(scales), np.arange(len(scales)))
        assert np.abs(index - ideal).max() < 0.6
        if kind == "light":
            assert len(np.unique(index)) > 20


def test_layers_cost_what_the_tables_say(codec: CDCCodec) -> None:
    picture = pictures(1)[0]
    stream = codec.encode([picture], quality=1)[0]
    ideal = ideal_bits(codec, picture, quality=1)
    for layer, bits in zip(stream.layers, ideal, strict=True):
        assert bits / 8 <= len(layer) <= 1.01 * bits / 8 + 16


def test_symbols_do_not_depend_on_the_circumstances(
    codec: CDCCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream decodes whatever the batch, threads or kernels; pixels are within one level."""
    shown = pictures(3)
    streams = codec.encode(shown)
    expected = codec.decode(streams)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        with torch.backends.mkldnn.flags(enabled=False):
            again = codec.decode(streams)
            alone = [codec.decode([stream])[0] for stream in reversed(streams)][::-1]
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(expected, again, alone, strict=True):
        assert largest(a, b) <= 1
        assert largest(a, c) <= 1
    # Another machine's floats, a thousand times further off than any: the stream still decodes.
    model = codec.scheme.model
    exact = model.hyper_mean

    def inexact(z: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return exact(z, q) + 1e-3

    monkeypatch.setattr(model, "hyper_mean", inexact)
    for a, b in zip(expected, codec.decode(streams), strict=True):
        assert largest(a, b) <= 1


def test_tiles_give_the_same_picture(codec: CDCCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.concatenate([pictures(1, 640)[0]] * 2, 1)  # 640x1280
    whole = codec.encode([picture])[0]
    shown = codec.decode([whole])[0]
    monkeypatch.setattr(tiling, "MIN_TILE_PIXELS", 1 << 18)
    limit = 9 << 16
    for halo in (codec.scheme.model.synthesis_halo, codec.scheme.model.analysis_halo):
        assert tiling.tile_size(640, 1280, limit, halo) != (640, 1280)
    state = codec.scheme.start([(640, 1280)], [0])
    for layer in range(codec.num_layers):
        codec._unpack(state, layer, [whole])
    in_tiles = codec.scheme.reconstruct(state, codec.num_layers, tile_pixels=limit)[0]
    assert largest(shown, in_tiles) <= 1
    layers = list(codec.scheme.encode([picture], [0], codec.num_layers, tile_pixels=limit)[0])
    expected = list(codec.scheme.encode([picture], [0], codec.num_layers)[0])
    different = sum(
        int((a != b).sum()) if a.shape == b.shape else 1000
        for x, y in zip(layers[:1], expected[:1], strict=True)
        for a, b in zip(x.symbols, y.symbols, strict=True)
    )
    assert different <= 2  # a value on the edge of a rounding


@pytest.mark.parametrize(("height", "width"), [(64, 8192), (8192, 64), (2048, 2048), (1088, 960)])
def test_tiles_cover_a_picture_once_and_keep_the_limit(height: int, width: int) -> None:
    limit, halo = 1 << 20, 256
    seen = np.zeros((height // 64, width // 64), int)
    size = tiling.tile_size(height, width, limit, halo)
    for piece in pieces(1, height, width, size, halo):
        seen[scaled(piece.tile, 1, 64)] += 1
        assert math.prod(side.stop - side.start for side in piece.seen) <= limit
        for tile, around, end in zip(piece.tile, piece.seen, (height, width), strict=True):
            assert around == slice(max(tile.start - halo, 0), min(tile.stop + halo, end))
    assert (seen == 1).all()


def test_diffusion_is_repeatable_and_knows_nothing_of_its_batch(codec: CDCCodec) -> None:
    streams = codec.encode(pictures(2))
    plain = codec.decode(streams, decoder="diffusion")
    assert all(
        np.array_equal(a, b)
        for a, b in zip(plain, codec.decode(streams, decoder="diffusion", seed=9), strict=True)
    )  # without noise there is nothing to seed
    noisy = {"decoder": "diffusion", "steps": 2, "noise_scale": 0.8}
    first = codec.decode(streams, **noisy, seed=1)
    assert largest(first[1], codec.decode(streams[1:], **noisy, seed=1)[0]) <= 1
    assert largest(first[1], codec.decode(streams[1:], **noisy, seed=2)[0]) > 1
    assert largest(first[1], plain[1]) > 1
    quieter = codec.decode(streams, **{**noisy, "noise_scale": 0.2}, seed=1)
    assert error(quieter[1], plain[1]) < error(first[1], plain[1])
    more = codec.decode(streams, **{**noisy, "steps": 5}, seed=1)
    assert largest(first[0], more[0]) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "best"}, "has no decoder best: it has fast, diffusion"),
        ({"decoder": "diffusion", "steps": 0}, "steps must be an integer from 1 to 100"),
        ({"decoder": "diffusion", "steps": 2.5}, "steps must be"),
        ({"decoder": "diffusion", "noise_scale": -1}, "noise_scale must be 0 to 10"),
        ({"decoder": "diffusion", "noise_scale": float("nan")}, "noise_scale must be 0 to 10"),
        ({"decoder": "diffusion", "seed": -1}, "seed must be"),
        ({"steps": 4}, "steps: only for decoder diffusion"),
        ({"tile_pixels": 100}, "tile_pixels must be"),
    ],
)
def test_impossible_options_are_named(
    codec: CDCCodec, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codec.decode(codec.encode(pictures(1)), **options)


def test_decoders_that_a_model_lacks_are_named(codecs: dict[str, CDCCodec], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no decoder fast: it has diffusion"):
        codecs["no-fast-head"].decode([], decoder="fast")
    fast_only = load_codec(write_model(tmp_path, light_config(unet=False)))
    with pytest.raises(ValueError, match="no decoder diffusion: it has fast"):
        fast_only.decode([], decoder="diffusion")
    with pytest.raises(ValueError, match="quality must be an integer from 0 to 1"):
        fast_only.encode(pictures(1), quality=2)


@pytest.mark.parametrize("kind", ["light", "no-fast-head"])
def test_every_flipped_byte_is_noticed(codecs: dict[str, CDCCodec], kind: str) -> None:
    codec = codecs[kind]
    picture = pictures(1, 48)[0]
    stream = codec.encode([picture], quality=0)[0]
    for number, layer in enumerate(stream.layers):
        step = max(1, len(layer) // 40)  # all of the short layers, a sample of the long ones
        for at in range(0, len(layer), step):
            damaged = layer[:at] + bytes([layer[at] ^ 1 << at % 8]) + layer[at + 1 :]
            layers = (*stream.layers[:number], damaged, *stream.layers[number + 1 :])
            broken = EncodedImage(stream.header, layers)
            with pytest.raises(CorruptStreamError) as caught:
                codec.decode([broken])
            assert caught.value.layer == number
        intact = codec.decode([stream.truncate(number)])[0]
        np.testing.assert_array_equal(codec.decode([broken], layers=number)[0], intact)


def test_a_file_cut_anywhere_shows_its_whole_layers_or_says_so(codec: CDCCodec) -> None:
    picture = pictures(1, 48)[0]
    stream = codec.encode([picture], quality=0)[0]
    data = stream.to_bytes()
    prefixes = [codec.decode([stream.truncate(n)])[0] for n in range(codec.num_layers + 1)]
    step = max(1, len(data) // 150)
    for end in range(0, len(data), step):
        try:
            cut = EncodedImage.from_bytes(data[:end], allow_truncated=True)
        except CorruptStreamError:
            assert end < 4 + 1 + len(stream.header)
            continue
        shown = codec.decode([cut])[0]
        np.testing.assert_array_equal(shown, prefixes[len(cut.layers)])


def test_forged_layers_never_crash(codec: CDCCodec) -> None:
    """Random bytes behind valid checksums: what a hostile writer would send."""
    from codec.stream import bitstream

    picture = pictures(1, 64)[0]
    stream = codec.encode([picture])[0]
    rng = np.random.default_rng(0)
    for trial in range(60):
        number = trial % codec.num_layers
        payload = rng.integers(1, 256, int(rng.integers(4, 200)), dtype=np.uint8).tobytes()
        layer = bitstream.Layer(payload)
        packed = bitstream.pack_layer(codec.model_id, stream.header, number, layer)
        layers = (*stream.layers[:number], packed)
        with pytest.raises(CorruptStreamError):
            codec.decode([EncodedImage(stream.header, layers)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("thresholds"), "thresholds"),
        (lambda t: t.pop("compressor.stem.weight"), "lacks its tensor compressor.stem.weight"),
        (lambda t: t.update({"compressor.stem.weight": torch.zeros(2, 2)}), r"is \(2, 2\)"),
        (lambda t: t.update({"medians": t["medians"][:, :3]}), "do not fit"),
        (lambda t: t.update({"layers": t["layers"][:1]}), "do not fit"),
        (lambda t: t.update({"trees.mean": t["trees.mean"] + 1e6}), "conditional mean"),
        (lambda t: t.pop("integers.0.weight"), "hyper-decoder"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, spoil, message: str) -> None:
    path = write_model(tmp_path, light_config())
    config, tensors = zoo.read_model(path)
    spoil(tensors)
    zoo.write_model(path, config, tensors)
    with pytest.raises(InvalidModelError, match=message):
        load_codec(path)


def test_the_noise_is_the_pictures_own() -> None:
    size = (64, 128)
    one = scheme_module.PictureState(0, np.zeros((4, 1, 2), np.int32))
    other = scheme_module.PictureState(0, np.ones((4, 1, 2), np.int32))
    noise = scheme_module._noise(one, 7, size)
    assert noise.shape == (3, 64, 128)
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(noise, scheme_module._noise(one, 7, size))
    assert not torch.equal(noise, scheme_module._noise(one, 8, size))
    assert not torch.equal(noise, scheme_module._noise(other, 7, size))
