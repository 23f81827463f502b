"""decode_dataset.py's command line: which options it accepts together, and which it refuses."""

import pytest

from tests.jobs.scripts import load_job

DECODE = ["--input", "set", "--output", "out"]


def test_what_was_given_is_what_is_done() -> None:
    parse = load_job("decode_dataset").parse
    plain = parse(DECODE)
    assert (plain.layers, plain.format) == (None, "webdataset")
    assert (plain.image_format, plain.image_quality) == ("png", None)
    assert (plain.keys, plain.filter, plain.max_side, plain.keep_original) == (
        (),
        None,
        None,
        False,
    )
    part = parse([*DECODE, "--keys-file", "-", "--ignore-missing", "--filter", "width > 1"])
    assert (part.keys_file, part.ignore_missing, part.filter) == ("-", True, "width > 1")
    assert parse([*DECODE, "--target-bpp", "0.5"]).target_bpp == 0.5
    assert parse([*DECODE, "--max-bytes", "900", "--max-side", "64"]).max_bytes == 900
    assert parse([*DECODE, "--min-psnr", "33"]).min_psnr == 33
    assert (plain.max_pixels, parse([*DECODE, "--max-pixels", "9"]).max_pixels) == (None, 9)
    cut = parse([*DECODE, "--format", "strata", "--keep-original", "--max-bad-fraction", "1"])
    assert (cut.format, cut.keep_original, cut.max_bad_fraction) == ("strata", True, 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers", "2", "--target-bpp", "1"], "not allowed with"),
        (["--min-psnr", "30", "--max-bytes", "1"], "not allowed with"),
        (["--target-bpp", "0"], "--target-bpp: must be above 0"),
        (["--min-psnr", "nan"], "--min-psnr"),
        (["--max-side", "0"], "--max-side"),
        (["--max-pixels", "0"], "--max-pixels"),
        (["--max-bad-fraction", "2"], "--max-bad-fraction"),
        (["--ignore-missing"], "needs --keys or --keys-file"),
        (["--image-quality", "101"], "--image-quality: must be 1 to 100 or lossless, not 101"),
        (["--image-quality", "good"], "must be 1 to 100 or lossless, not good"),
        (["--format", "strata", "--max-side", "9"], "--max-side: --format strata decodes nothing"),
        (["--format", "originals", "--max-side", "9"], "--format originals decodes nothing"),
        (["--format", "strata", "--image-format", "jpg", "--image-quality", "9"], "quality: "),
    ],
)
def test_what_cannot_be(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_job("decode_dataset").parse([*DECODE, *flags])
    assert words in capsys.readouterr().err
