"""docs/format.md says enough: a decoder written from it alone decodes what the codecs write."""

import re
from pathlib import Path

import numpy as np
import pytest

from codec import Codec, EncodedImage, load_codec
from codec.cdc.scheme import CDCScheme
from codec.numerics import lapped_transform
from codec.stream import bitstream, dither
from tests.codec.small_models import write_nested_model
from tests.conftest import ROOT
from tests.format import decoder
from tests.format.golden_files import STREAMS, read_golden, title
from tests.format.make_golden import picture

PAGE = (ROOT / "docs" / "format.md").read_text()


@pytest.fixture(scope="module")
def uqdm() -> Codec:
    return load_codec("uqdm-small")


@pytest.fixture(scope="module")
def cdc() -> Codec:
    return load_codec("cdc-small")


def noise(height: int, width: int) -> np.ndarray:
    """What no table was counted on: escapes are certain."""
    return np.random.default_rng(height).integers(0, 2, (height, width, 3), dtype=np.uint8) * 255


def check_nested(codec: Codec, encoded: EncodedImage, original: np.ndarray) -> None:
    own = decoder.Nested(decoder.Model(codec.model_path))
    stream = decoder.read_stream(encoded.to_bytes())
    *grids, pixels = own.decode(stream)
    np.testing.assert_array_equal(pixels, original)
    height, width = original.shape[:2]
    for layers, grid in enumerate([0 * grids[0], *grids]):
        shown = own.shown(grid, layers, height, width)
        (expected,) = codec.decode([encoded], layers=layers)
        assert np.abs(shown.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "file", [file for file in STREAMS if file.stem.startswith("uqdm")], ids=title
)
def test_the_golden_streams_of_uqdm_decode_to_their_picture(file: Path) -> None:
    encoded, codec = read_golden(file)
    check_nested(codec, encoded, picture(45, 60))


@pytest.mark.parametrize(
    "original", [picture(64, 64), noise(17, 30), noise(1, 1), picture(8, 40)[:, :33]]
)
def test_uqdm_streams_of_any_size_decode(uqdm: Codec, original: np.ndarray) -> None:
    (encoded,) = uqdm.encode([np.ascontiguousarray(original)])
    check_nested(uqdm, encoded, original)


def test_a_model_without_a_light_first_layer_decodes(tmp_path: Path) -> None:
    codec = load_codec(write_nested_model(tmp_path))
    original = picture(24, 40)
    check_nested(codec, codec.encode([original])[0], original)


@pytest.mark.parametrize("original", [picture(24, 40), noise(90, 17), noise(1, 1)])
def test_blocks_of_five_colours_decode(tmp_path: Path, original: np.ndarray) -> None:
    codec = load_codec(write_nested_model(tmp_path, new_passes=True))
    check_nested(codec, codec.encode([original])[0], original)


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("original", [picture(24, 40), noise(17, 9), noise(1, 1), noise(2, 35)])
def test_a_lossless_layer_of_a_pixel_network_decodes(
    tmp_path: Path, original: np.ndarray, tuned: bool
) -> None:
    options = {"new_passes": tuned, "tuned": tuned, "bounded": tuned}
    codec = load_codec(write_nested_model(tmp_path, pixels=True, **options))
    assert codec.num_layers == 5
    check_nested(codec, codec.encode([original])[0], original)


def test_a_tuning_with_all_coefficients_decodes(tmp_path: Path) -> None:
    codec = load_codec(write_nested_model(tmp_path, pixels=True))
    original = picture(91, 95, scale=2)
    (encoded,) = codec.encode([original])
    check_nested(codec, encoded, original)
    own = decoder.Nested(decoder.Model(codec.model_path))
    stream = decoder.read_stream(encoded.to_bytes())
    units, _, coefficients = own._tuning(decoder.LayerReader(stream, own.model.id, 4))
    assert ((units > 0) & (units < 8)).any()
    assert max(map(len, coefficients)) > 64


def test_a_prefix_of_a_uqdm_stream_decodes(uqdm: Codec) -> None:
    (encoded,) = uqdm.encode([picture(24, 40)])
    whole, cut = (decoder.read_stream(x.to_bytes()) for x in (encoded, encoded.truncate(3)))
    own = decoder.Nested(decoder.Model(uqdm.model_path))
    for a, b in zip(own.decode(cut), own.decode(whole), strict=False):
        np.testing.assert_array_equal(a, b)


def check_cdc(codec: Codec, encoded: EncodedImage, quality: int) -> None:
    own = decoder.CDC(decoder.Model(codec.model_path))
    found, (z, *rest) = own.decode(decoder.read_stream(encoded.to_bytes()))
    assert found == quality
    scheme = codec.scheme  # type: ignore[attr-defined]
    assert isinstance(scheme, CDCScheme)
    state = scheme.start([(encoded.height, encoded.width)], [0])
    for layer, expected in enumerate([z, *rest]):
        codec._unpack(state, layer, [encoded])  # type: ignore[attr-defined]
        (known,) = state.pictures
        if layer:
            assert known.progress is not None
            values = known.progress.expectation().reshape(expected.shape)
            np.testing.assert_array_equal(values, expected.astype(np.float32))
        else:
            np.testing.assert_array_equal(known.hyper, expected)
    assert len(rest) == codec.num_layers - 1


@pytest.mark.parametrize(
    "file", [file for file in STREAMS if file.stem.startswith("cdc")], ids=title
)
def test_the_golden_streams_of_cdc_decode_to_their_integers(file: Path) -> None:
    encoded, codec = read_golden(file)
    check_cdc(codec, encoded, 2)


@pytest.mark.parametrize("quality", [0, 4])
def test_cdc_streams_of_any_size_and_quality_decode(cdc: Codec, quality: int) -> None:
    for original in (picture(65, 40), noise(90, 130)):
        (encoded,) = cdc.encode([original], quality=quality)
        check_cdc(cdc, encoded, quality)


def test_the_dither_is_what_the_page_says() -> None:
    quantiles = dither.normal_quantiles()
    for stream_id, draw in ((0, 0), (0xFFFFFFFF, 3), (12345, 60)):
        shape = (3, 5, 7)
        expected = dither.uniform(stream_id, draw, shape).ravel()
        np.testing.assert_array_equal(decoder.uniform(stream_id, draw, 105), expected)
        expected = dither.normal(stream_id, draw, shape, quantiles).ravel()
        found = decoder.normal(stream_id, draw, 105, quantiles)
        np.testing.assert_array_equal(found, expected)


def test_the_page_has_the_numbers_of_the_code() -> None:
    assert decoder.MATRICES.strip() in PAGE
    for name, own in (("colour", decoder.M), ("block", decoder.K), ("lap", decoder.Q)):
        np.testing.assert_array_equal(np.rint(lapped_transform._MATRICES[name] * 2**14), own)
    limits = dict(re.findall(r"^\| (\w+) \| ([^|]+) \|", PAGE, re.MULTILINE))
    assert bitstream.MAX_SIDE == 2**20
    assert limits["side"] == "2^20"
    assert bitstream.MAX_PIXELS == 2**30
    assert limits["pixels"] == "2^30"
    assert limits["layers"] == str(bitstream.MAX_LAYERS)
    assert limits["header"] == str(bitstream.MAX_HEADER_BYTES)
    assert bitstream.MAX_LAYER_BYTES == 2**31 - 1
    assert limits["layer"] == "2^31 - 1"
    assert bitstream.DECODED_PIXELS == 2**28
    assert "decoders stop at 2^28" in PAGE


def test_the_decoder_shares_nothing_with_the_package() -> None:
    source = Path(decoder.__file__).read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert not imported & {"codec", "pipeline", "jobs", "tests", "constriction", "torch"}
