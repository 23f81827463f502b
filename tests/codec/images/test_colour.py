"""Colours described otherwise than by an ICC profile: converted to sRGB, noted, or refused."""

import struct

import numpy as np
import pytest
from PIL import Image

from codec.errors import UnsupportedImageError
from codec.images.colour import made_profile
from codec.images.files import read_image
from tests.codec.images import icc
from tests.codec.images.files import chunk, file, png

COLOURS = np.array([[[200, 100, 50], [40, 90, 160], [128, 128, 128], [255, 255, 255]]], np.uint8)
# Published matrices (D65), row by row.
TO_XYZ = {
    "p3": "0.4865709 0.2656677 0.1982173 0.2289746 0.6917385 0.0792869 0 0.0451134 1.0439444",
    "2020": "0.6369580 0.1446169 0.1688810 0.2627002 0.6779981 0.0593017 0 0.0280727 1.0609851",
    "adobe": "0.5766690 0.1855582 0.1882286 0.2973450 0.6273636 0.0752915 0.0270314 0.0706889 "
    "0.9913375",
    "srgb": "0.4124564 0.3575761 0.1804375 0.2126729 0.7151522 0.0721750 0.0193339 0.1191920 "
    "0.9503041",
}
CHRM = {"p3": (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)}


def expected(space: str, gamma: float = 0.0, colours: np.ndarray = COLOURS) -> np.ndarray:
    """By the published matrices: values to light, to XYZ, to the light of sRGB, to values."""
    values = colours / 255
    curve = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = values**gamma if gamma else curve
    theirs, ours = (np.array(TO_XYZ[one].split(), float).reshape(3, 3) for one in (space, "srgb"))
    light = light @ theirs.T @ np.linalg.inv(ours).T
    light = light.clip(0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return 255 * srgb


def row(extra: bytes, colours: np.ndarray = COLOURS) -> bytes:
    return png(2, 8, b"\0" + colours.tobytes(), width=4, extra=extra)


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chrm(numbers: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(n * 100_000) for n in numbers)))


SRGB_CHRM = chrm((0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06))


@pytest.mark.parametrize(
    ("chunks", "space", "gamma"),
    [
        (gama(1.0), "srgb", 1.0),
        (gama(1 / 1.8) + SRGB_CHRM, "srgb", 1.8),
        (chrm(CHRM["p3"]), "p3", 0),
        (gama(1 / 2.6) + chrm(CHRM["p3"]), "p3", 2.6),
        (chunk(b"cICP", bytes([12, 13, 0, 1])), "p3", 0),
        (chunk(b"cICP", bytes([9, 8, 0, 1])), "2020", 1.0),
        (chunk(b"cICP", bytes([12, 13, 0, 1])) + gama(1.0) + chunk(b"sRGB", b"\0"), "p3", 0),
    ],
)
def test_colours_of_png_chunks(chunks: bytes, space: str, gamma: float) -> None:
    result = read_image(row(chunks))
    assert np.abs(result.rgb - expected(space, gamma)).max() <= 2
    assert result.notes[-1].startswith("converted to sRGB from colours told by ")


@pytest.mark.parametrize(
    "chunks",
    [
        chunk(b"sRGB", b"\0") + gama(0.45455) + SRGB_CHRM,
        gama(0.45455),
        gama(0.45455) + SRGB_CHRM,
        chunk(b"sRGB", b"\0") + gama(1.0),  # sRGB outranks gAMA
        chunk(b"cICP", bytes([1, 13, 0, 1])),
    ],
)
def test_what_says_srgb_changes_no_pixel(chunks: bytes) -> None:
    result = read_image(row(chunks))
    assert np.array_equal(result.rgb, COLOURS)
    assert result.notes == ()


def test_grey_stays_grey() -> None:
    ramp = bytes(range(0, 256, 51))
    data = png(0, 8, b"\0" + ramp, width=6, extra=gama(1.0) + chrm(CHRM["p3"]))
    result = read_image(data)
    assert np.ptp(result.rgb, axis=2).max() == 0
    grey = np.repeat(np.frombuffer(ramp, np.uint8)[None, :, None], 3, 2)
    assert np.abs(result.rgb - expected("srgb", 1.0, grey)).max() <= 1


@pytest.mark.parametrize(("curve", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused_in_words(curve: int, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=f"{name} colours .cICP"):
        read_image(row(chunk(b"cICP", bytes([9, curve, 0, 1]))))
    with pytest.raises(UnsupportedImageError, match=f"{name} colours .nclx"):
        read_image(avif(9, curve))


def test_codes_that_are_not_known_are_noted() -> None:
    result = read_image(row(chunk(b"cICP", bytes([99, 13, 0, 0]))))
    assert np.array_equal(result.rgb, COLOURS)
    assert any("code 99" in note for note in result.notes)
    assert any("narrow range" in note for note in result.notes)


def avif(primaries: int, curve: int) -> bytes:
    """An AVIF of one colour with other codes in its nclx box."""
    data = file(np.tile(COLOURS[:, :1], (16, 16, 1)), "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">2H", primaries, curve) + data[at + 4 :]


def test_colours_of_avif() -> None:
    plain = read_image(avif(1, 13))
    assert np.abs(plain.rgb[8, 8].astype(int) - COLOURS[0, 0]).max() <= 3
    assert plain.notes == read_image(avif(2, 2)).notes == ()
    wide = read_image(avif(12, 13))
    assert np.abs(wide.rgb[8, 8] - expected("p3", 0, plain.rgb)[8, 8]).max() <= 2
    assert "nclx 12/13" in wide.notes[0]


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_adobe_rgb_of_cameras(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    stored = np.tile(COLOURS[:, :1], (16, 16, 1))
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(format, {})
    result = read_image(file(stored, format, exif=exif, **options))
    assert np.abs(result.rgb[8, 8] - expected("adobe", 563 / 256)[0, 0]).max() <= 3
    assert "colours told by EXIF (Adobe RGB)" in result.notes[0]


def test_colours_that_cameras_only_deny_are_noted() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    result = read_image(file(COLOURS, "PNG", exif=exif))
    assert np.array_equal(result.rgb, COLOURS)
    assert "not sRGB's" in result.notes[0]
    with_profile = read_image(file(COLOURS, "PNG", exif=exif, icc_profile=icc.rgb(1.0)))
    assert with_profile.notes == ("converted to sRGB from ICC profile 'hand made'",)


LINEAR = read_image(row(gama(1.0))).rgb


def test_profiles_in_jpeg2000() -> None:
    data = file(COLOURS, "JPEG2000")
    at = data.index(b"colr") - 4
    (size,) = struct.unpack_from(">I", data, at)
    profile = icc.rgb(1.0)
    box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    jp2h = data.index(b"jp2h") - 4
    (whole,) = struct.unpack_from(">I", data, jp2h)
    grown = struct.pack(">I", whole - size + len(box))
    told = data[:jp2h] + grown + data[jp2h + 4 : at] + box + data[at + size :]
    assert np.abs(read_image(told).rgb.astype(int) - LINEAR).max() <= 1
    other = (
        data[:at] + data[at : at + size].replace(b"\0\0\0\x10", b"\0\0\0\x14") + data[at + size :]
    )
    assert "colour space 20" in read_image(other).notes[0]
    assert read_image(data).notes == ()


def test_profiles_in_gif() -> None:
    image = Image.fromarray(COLOURS).quantize(4)
    data = file(image, "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)  # behind the palette
    profile = icc.rgb(1.0)
    parts = [profile[n : n + 255] for n in range(0, len(profile), 255)]
    blocks = b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    told = data[:at] + b"!\xff\x0bICCRGBG1012" + blocks + data[at:]
    plain = read_image(data)
    assert np.abs(read_image(told).rgb - expected("srgb", 1.0, plain.rgb)).max() <= 2


def bmp(kind: bytes, endpoints: bytes = bytes(36), profile: bytes = b"") -> bytes:
    """A BMP with a BITMAPV5HEADER."""
    rows = COLOURS[..., ::-1].tobytes()
    start = 14 + 124
    head = b"BM" + struct.pack("<IHHI", start + len(rows) + len(profile), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 124, 4, 1, 1, 24, 0, len(rows), 0, 0, 0, 0)
    info += bytes(16) + kind + endpoints + bytes(12)
    info += struct.pack("<4I", 4, 124 + len(rows), len(profile), 0)
    return head + info + rows + profile


def test_colours_of_bmp() -> None:
    for plain in (b"BGRs", b" niW", bytes(4)):
        result = read_image(bmp(plain))
        assert np.array_equal(result.rgb, COLOURS)
        assert result.notes == ()
    embedded = read_image(bmp(b"DEBM", profile=icc.rgb(1.0)))
    assert np.abs(embedded.rgb.astype(int) - LINEAR).max() <= 1
    assert "(calibrated)" in read_image(bmp(bytes(4), b"\1" * 36)).notes[0]


def test_colours_of_tiff() -> None:
    tags = {318: (0.3127, 0.3290), 319: CHRM["p3"][2:]}
    result = read_image(file(COLOURS, "TIFF", tiffinfo=tags))
    assert np.abs(result.rgb - expected("p3")).max() <= 2
    usual = {318: (0.3127, 0.3290), 319: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)}
    assert read_image(file(COLOURS, "TIFF", tiffinfo=usual)).notes == ()


def test_impossible_colours_are_noted() -> None:
    for numbers in [(0.0,) * 8, (0.3, 0.3, *(0.64, 0.33) * 3), (1.0, 0.0) * 4]:
        result = read_image(row(chrm(numbers)))
        assert np.array_equal(result.rgb, COLOURS)
        assert "broken colour chunks ignored" in result.notes[0]
    with pytest.raises(ValueError, match="impossible"):
        made_profile("x", (0.0,) * 8, 1.0)
