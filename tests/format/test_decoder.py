"""docs/format.md is complete: a decoder written from it alone decodes what the codecs write."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codec import Codec, EncodedImage, load_codec
from codec.cdc.scheme import CDCScheme
from codec.numerics import lapped_transform
from codec.stream import bitstream, dither
from codec.uqdm.nested.schedule import NestedConfig
from tests.codec.small_models import CONFIG, write_nested_model
from tests.conftest import ROOT
from tests.format import decoder
from tests.format.golden_files import GOLDEN, read_golden
from tests.format.make_golden import SIZES, picture

PAGE = (ROOT / "docs" / "format.md").read_text()


@pytest.fixture(scope="module")
def uqdm() -> Codec:
    return load_codec("uqdm")


@pytest.fixture(scope="module")
def cdc() -> Codec:
    return load_codec("cdc-small")


def noise(height: int, width: int) -> np.ndarray:
    """What no table was counted on: escapes are certain."""
    return np.random.default_rng(height).integers(0, 2, (height, width, 3), dtype=np.uint8) * 255


def check_nested(codec: Codec, encoded: EncodedImage, original: np.ndarray) -> None:
    """Every preview to a level of a pixel, and the picture to the byte."""
    own = decoder.Nested(decoder.Model(codec.model_path))
    grids = own.decode(decoder.read_stream(encoded.to_bytes()))
    if codec.lossless:
        np.testing.assert_array_equal(grids.pop(), original)
    height, width = original.shape[:2]
    for layers, grid in enumerate([0 * grids[0], *grids]):
        shown = own.shown(grid, layers, height, width)
        (expected,) = codec.decode([encoded], layers=layers, decoder="mean")
        assert np.abs(shown.astype(int) - expected).max() <= 1


def test_the_golden_stream_of_uqdm_decodes_to_its_picture() -> None:
    encoded, codec = read_golden(GOLDEN / "uqdm.strata")
    check_nested(codec, encoded, picture(*SIZES["uqdm"]))


@pytest.mark.parametrize(
    "original", [picture(64, 64), noise(17, 30), noise(1, 1), picture(8, 40)[:, :33]]
)
def test_uqdm_streams_of_any_size_decode(uqdm: Codec, original: np.ndarray) -> None:
    (encoded,) = uqdm.encode([np.ascontiguousarray(original)])
    check_nested(uqdm, encoded, original)


CONFIGS = {
    "as shipped": CONFIG,
    "no leads": replace(CONFIG, lead_order=(-1, -1)),
    "many leads": replace(CONFIG, lead_order=(1, 2)),
    "leads by three levels": replace(CONFIG, lead_order=(0, 1), lead=3),
    "four levels": NestedConfig(
        levels=4,
        first_delta=1.0,
        orders=((3, 0), (9, 9), (14, 14), (14, 14)),
        low_order=(4, 0),
        passes=(
            (("low", (2, 3)), ("low", (0, 1, 4)), ("high", (0, 1, 2, 3, 4))),
            (("all", (4,)), ("all", (0, 2)), ("all", (1, 3))),
            (("all", (0, 1, 2, 3, 4)),),
            (("low", (0, 1, 2, 3, 4)), ("high", (0, 1, 2, 3, 4))),
        ),
        first_digits=2,
        digits=3,
        colours=(0.5, 0.7, 0.5, 0.9, -0.3, -0.3, -0.1, -0.1, 1.0),
        band_weights=tuple(np.geomspace(3, 0.1, 192)),
        band_rms=tuple(np.geomspace(6, 0.02, 192)),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_any_schedule_decodes(tmp_path: Path, name: str) -> None:
    codec = load_codec(write_nested_model(tmp_path, config=CONFIGS[name]))
    for original in (picture(24, 40), noise(17, 9), noise(1, 1), picture(34, 39)):
        check_nested(codec, codec.encode([original])[0], original)


def test_a_model_without_a_lossless_layer_decodes(tmp_path: Path) -> None:
    codec = load_codec(write_nested_model(tmp_path, pixels=False))
    original = picture(24, 40)
    (encoded,) = codec.encode([original])
    assert encoded.num_layers == CONFIG.levels
    check_nested(codec, encoded, original)


def test_a_tuning_with_all_coefficients_decodes(tmp_path: Path) -> None:
    codec = load_codec(write_nested_model(tmp_path))
    original = picture(91, 95, scale=2)
    (encoded,) = codec.encode([original])
    check_nested(codec, encoded, original)
    own = decoder.Nested(decoder.Model(codec.model_path))
    stream = decoder.read_stream(encoded.to_bytes())
    reader = decoder.LayerReader(stream, own.model.id, own.levels)
    units, _, coefficients = own._tuning(reader)
    assert ((units > 0) & (units < 8)).any()
    assert max(map(len, coefficients)) > 16


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


def test_the_golden_stream_of_cdc_decodes_to_its_integers() -> None:
    encoded, codec = read_golden(GOLDEN / "cdc-small.strata")
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
    for name, own in (("block", decoder.K), ("lap", decoder.Q)):
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
