"""The codec around any scheme, with a toy one: options, layers without symbols, forged streams."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from codec import CorruptStreamError, EncodedImage, load_codec
from codec.scheme import Choice
from codec.stream import bitstream, entropy
from codec.stream.bitstream import Layer
from codec.stream.entropy import Tables
from tests.codec import toy
from tests.codec.ideal import ideal_bits


@pytest.fixture
def codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> toy.ToyCodec:
    toy.use(monkeypatch)
    loaded = load_codec(toy.write_model(tmp_path))
    assert isinstance(loaded, toy.ToyCodec)
    return loaded


@pytest.fixture
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(8, 9), (1, 1), (8, 9)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_options_reach_the_scheme(codec: toy.ToyCodec, pictures: list[np.ndarray]) -> None:
    poor, good = codec.encode(pictures, quality=0), codec.encode(pictures)
    for picture, a, b in zip(pictures, poor, good, strict=True):
        assert len(a.layers[1]) == 4 < len(b.layers[1])  # no symbols: the checksum alone
        assert len(a.layers[2]) == len(b.layers[2]) == 4
        assert a.layers[0] != b.layers[0]
        decoded_a, decoded_b = codec.decode([a, b])  # together: each is what it is
        assert np.abs(decoded_a.astype(int) - picture).max() <= 32
        assert np.abs(decoded_b.astype(int) - picture).max() <= 8
    drawn = codec.decode(good, decoder="diffusion", seed=4)
    np.testing.assert_array_equal(codec.decode(good, decoder="diffusion", seed=4)[0], drawn[0])
    assert (codec.decode(good, decoder="diffusion", seed=5)[0] != drawn[0]).any()
    *_, last = codec.decode_progressively(good, decoder="diffusion", seed=4)
    np.testing.assert_array_equal(last[0], drawn[0])
    assert ideal_bits(codec, pictures[0], quality=0)[1:] == [0, 0]
    assert ideal_bits(codec, pictures[0])[1] == pytest.approx(2 * 8 * 9 * 3, rel=1e-3)


def test_entropy_coding_may_wait_and_run_elsewhere(
    codec: toy.ToyCodec, pictures: list[np.ndarray]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = (codec.begin_encode(some) for some in (pictures, pictures[::-1]))
        later = [pool.submit(first), pool.submit(second)]
    assert later[0].result() == codec.encode(pictures) == later[1].result()[::-1]
    with pytest.raises(ValueError, match="picture 0 must be"):
        codec.begin_encode([pictures[0][..., 0]])


def test_options_that_do_not_exist_are_named(
    codec: toy.ToyCodec, pictures: list[np.ndarray]
) -> None:
    streams = codec.encode(pictures)
    with pytest.raises(TypeError, match=r"cdc .* steps .*decode .*\(it has decoder, seed\)"):
        codec.decode(streams, steps=3)
    with pytest.raises(TypeError, match="quality"):
        next(codec.decode_progressively(streams, quality=1))
    with pytest.raises(TypeError, match=r"cdc .* decoder .*encode .*\(it has quality\)"):
        codec.encode(pictures, decoder="flow")
    with pytest.raises(ValueError, match="0 to 1, got 7"):
        codec.encode(pictures, quality=7)
    uqdm = load_codec("uqdm")
    with pytest.raises(TypeError, match=r"uqdm .* quality .*encode .*\(it has none\)"):
        uqdm.encode(pictures, quality=1)
    with pytest.raises(ValueError, match=r"uqdm \(\w{8}\) has no decoder very: it has mean"):
        uqdm.decode([], decoder="very")


def test_every_prefix_decodes(codec: toy.ToyCodec, pictures: list[np.ndarray]) -> None:
    streams = [EncodedImage.from_bytes(s.to_bytes()) for s in codec.encode(pictures)]
    for layers, shown in enumerate(codec.decode_progressively(streams), start=1):
        for stream, picture in zip(streams, shown, strict=True):
            np.testing.assert_array_equal(codec.decode([stream.truncate(layers)])[0], picture)
    assert codec.decode([streams[0].truncate(0)])[0].shape == (8, 9, 3)


def test_the_scheme_says_how_much_it_takes_at_once(
    codec: toy.ToyCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = codec.encode(pictures)
    batches: list[int] = []
    encode = codec.scheme.encode

    def counting(images, *arguments, **options):  # type: ignore[no-untyped-def]
        batches.append(len(images))
        return encode(images, *arguments, **options)

    monkeypatch.setattr(codec.scheme, "encode", counting)
    monkeypatch.setattr(codec.scheme, "batch_pixels", 1)
    assert codec.encode(pictures) == expected
    assert batches == [1, 1, 1]


def forge(codec: toy.ToyCodec, stream: EncodedImage, number: int, layer: Layer) -> EncodedImage:
    """The stream with one layer replaced, under a checksum that fits."""
    packed = bitstream.pack_layer(codec.model_id, stream.header, number, layer)
    return EncodedImage(
        stream.header, (*stream.layers[:number], packed, *stream.layers[number + 1 :])
    )


def parsed(codec: toy.ToyCodec, stream: EncodedImage, number: int) -> Layer:
    return bitstream.unpack_layer(codec.model_id, stream.header, number, stream.layers[number])


def test_forged_symbols_are_a_damaged_layer(
    codec: toy.ToyCodec, pictures: list[np.ndarray]
) -> None:
    """A quality that the model does not have: an IndexError of the scheme."""
    stream = codec.encode(pictures[:1])[0]
    plane = np.zeros(pictures[0].size, np.int32)
    for quality in (2, 3, 1 << 20):
        choices = [codec.scheme._choice(1), codec.scheme._choice(len(plane))]
        symbols = [np.array([quality], np.int32), plane]
        parts = [(s, c.index, c.tables) for s, c in zip(symbols, choices, strict=True)]
        index, coded = (
            b"".join(part)
            for part in (
                (c.check_bytes() for c in choices),
                (s.astype("<i4").tobytes() for s in symbols),
            )
        )
        check = bitstream.check24(index, coded)
        forged = forge(codec, stream, 0, Layer(entropy.encode(parts, check)))
        with pytest.raises(CorruptStreamError, match="layer 1") as caught:
            codec.decode([forged])
        assert caught.value.layer == 0
        with pytest.raises(CorruptStreamError, match="layer 1"):
            list(codec.decode_progressively([forged]))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_forged_bytes_are_a_damaged_layer(
    codec: toy.ToyCodec, pictures: list[np.ndarray], number: int
) -> None:
    stream = codec.encode(pictures[:1])[0]
    whole = parsed(codec, stream, number)
    forgeries = [whole.payload + b"\x01\x02\x03\x04\x05", whole.payload + bytes(4)]
    if whole.payload:
        flipped = whole.payload[0] ^ 1
        forgeries += [b"", whole.payload[:-1], bytes(len(whole.payload))]
        forgeries.append(bytes([flipped]) + whole.payload[1:])
    rng = np.random.default_rng(number)
    forgeries += [rng.bytes(n) for n in range(1, 90)]
    for payload in forgeries:
        forged = forge(codec, stream, number, Layer(payload))
        with pytest.raises(CorruptStreamError, match=f"layer {number + 1}") as caught:
            codec.decode([forged])
        assert caught.value.layer == number
        assert codec.decode([forged], layers=number)[0].shape == pictures[0].shape


def test_other_tables_than_the_encoders_are_noticed(
    codec: toy.ToyCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a device does that computes differently, also where the symbols are the same ones."""
    streams = codec.encode(pictures[:1])
    monkeypatch.setattr(
        codec.scheme, "_choice", lambda count: Choice(np.ones(count, np.int32), two)
    )
    two = Tables.from_pmfs([(0, np.full(4, 0.25))] * 2)
    with pytest.raises(CorruptStreamError, match="computes other probabilities") as caught:
        codec.decode(streams)
    assert caught.value.layer == 0


def test_other_errors_stay_what_they_are(
    codec: toy.ToyCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is full is not a damaged stream."""
    streams = codec.encode(pictures)

    def full(*_: object) -> list[Choice]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(codec.scheme, "choices", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        codec.decode(streams)


def test_a_size_that_the_stream_cannot_hold_is_refused_before_memory_is_taken(
    codec: toy.ToyCodec, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim(width: int, height: int) -> EncodedImage:
        header = bitstream.pack_header(
            bitstream.StreamHeader(codec.codec, width, height, codec.model_id)
        )
        layer = bitstream.Layer(b"\1" * 10)
        return EncodedImage(header, (bitstream.pack_layer(codec.model_id, header, 0, layer),))

    def start(*_: object) -> None:
        raise AssertionError("memory would be allocated")

    monkeypatch.setattr(codec.scheme, "start", start)
    for side in (1 << 15, 30_000):
        with pytest.raises(CorruptStreamError, match="--max-pixels") as caught:
            codec.decode([claim(side, side)], layers=0)
        assert caught.value.layer is None
    monkeypatch.setattr(codec.scheme, "least_bits", lambda height, width: height * width / 64)
    for decode in (codec.decode, lambda streams: codec.decode_small(streams, max_side=9)):
        with pytest.raises(CorruptStreamError, match="only 14 bytes") as caught:
            decode([claim(16_000, 16_000)])
        assert caught.value.layer == 0
    alone = claim(16_000, 16_000).truncate(0)
    for stream, words in ((alone, "has no layers"), (claim(16_000, 16_000), "only 14 bytes")):
        with pytest.raises(CorruptStreamError, match=words) as caught:
            codec.decode([stream], layers=0)
        assert caught.value.layer == 0
    with pytest.raises(AssertionError):
        codec.decode([claim(256, 256).truncate(0)])
    codec.max_pixels = 1 << 30
    monkeypatch.setattr(codec.scheme, "least_bits", lambda height, width: 1.0)
    codec._least_bits = codec._compute_least_bits
    with pytest.raises(AssertionError):
        codec.decode([claim(30_000, 30_000)], layers=0)


@pytest.mark.parametrize("name", ["uqdm", "cdc-small"])
@pytest.mark.parametrize("size", [(512, 520), (8, 9000), (9000, 3)])
def test_flat_pictures_have_what_a_header_is_asked_for(name: str, size: tuple[int, int]) -> None:
    """No picture takes fewer bits than a flat one; twice as much is never asked for."""
    codec = load_codec(name)
    (stream,) = codec.encode([np.full((*size, 3), 128, np.uint8)], layers=1)
    least = codec.scheme.least_bits(*size)  # type: ignore[attr-defined]
    assert 8 * len(stream.layers[0]) >= 0.95 * least
    assert least > size[0] * size[1] / 1000  # else it would be no bar
    codec.decode([stream])
