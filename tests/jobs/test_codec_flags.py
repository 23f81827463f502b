"""Codecs' options on the command lines: only those that were given are passed on."""

import pytest

from codec.models import zoo
from pipeline import CompressOptions
from tests.jobs.scripts import load_job

COMPRESS = ["--input", "a.tar", "--output", "out"]
DECODE = ["--input", "set", "--output", "out"]


def test_compressing() -> None:
    parse = load_job("compress_dataset").parse
    plain = parse(COMPRESS)
    assert (plain.codec, plain.codec_options) == (None, {})
    assert plain.model == zoo.DEFAULT_MODELS["uqdm"]
    assert parse([*COMPRESS, "--quality", "0"]).codec_options == {"quality": 0}
    assert (plain.store_layers, plain.keep_original, plain.target_quality) == (None, "larger", None)
    assert parse([*COMPRESS, "--store-layers", "fit"]).store_layers == "fit"
    assert parse([*COMPRESS, "--store-layers", "3"]).store_layers == 3
    assert parse([*COMPRESS, "--target-quality", "38dB"]).target_quality == "38dB"
    defaults = CompressOptions(plain.inputs, plain.output, plain.model)
    assert plain == defaults  # the library does what the command does
    for name, model in zoo.DEFAULT_MODELS.items():
        assert (parse([*COMPRESS, "--codec", name]).model) == model


def test_decoding() -> None:
    parse = load_job("decode_dataset").parse
    assert parse(DECODE).codec_options == {}
    assert parse([*DECODE, "--decoder", "flow"]).codec_options == {"decoder": "flow"}
    flags = ["--decoder", "diffusion", "--steps", "17", "--noise-scale", "0", "--seed", "0"]
    assert parse([*DECODE, *flags]).codec_options == {
        "decoder": "diffusion",
        "steps": 17,
        "noise_scale": 0.0,
        "seed": 0,
    }
    jpg = parse([*DECODE, "--image-format", "jpeg", "--image-quality", "80"])
    assert (jpg.image_format, jpg.image_quality, jpg.codec_options) == ("jpg", 80, {})
    assert parse([*DECODE, "--image-quality", "lossless"]).image_quality == "lossless"


@pytest.mark.parametrize(
    "flags",
    [
        ["--decoder", "slow"],
        ["--steps", "0"],
        ["--noise-scale", "-1"],
        ["--noise-scale", "nan"],
        ["--seed", "x"],
    ],
)
def test_impossible_values_are_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_job("decode_dataset").parse([*DECODE, *flags])
    assert flags[0] in capsys.readouterr().err
