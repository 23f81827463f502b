"""Cut and overwritten files: a partial picture is never accepted, a complete one never refused."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from codec.errors import BrokenImageError, StrataError
from codec.images.files import read_image
from tests.codec.images.files import file, picture

RNG = np.random.default_rng(0)
SMOOTH = picture(64, 80)
NOISE = RNG.integers(0, 256, (64, 80, 3), np.uint8)
EXIF = Image.Exif()
EXIF[0x010E] = "x" * 500


def mixed() -> np.ndarray:
    """Noise in the middle, a white surface below."""
    out = SMOOTH.copy()
    out[20:40, 20:60], out[50:] = NOISE[20:40, 20:60], 255
    return out


FILES = {
    "jpeg": file(mixed(), "JPEG"),
    "jpeg noise": file(NOISE, "JPEG"),
    "jpeg progressive": file(mixed(), "JPEG", progressive=True),
    "jpeg optimised": file(SMOOTH, "JPEG", optimize=True),
    "jpeg restarts": file(SMOOTH, "JPEG", restart_marker_rows=1),
    "jpeg full colour": file(NOISE, "JPEG", subsampling=0, quality=95),
    "jpeg grey": file(Image.fromarray(mixed()).convert("L"), "JPEG"),
    "jpeg cmyk": file(Image.fromarray(mixed()).convert("CMYK"), "JPEG"),
    "avif": file(mixed(), "AVIF", speed=9),
    "avif exif": file(mixed(), "AVIF", speed=9, exif=EXIF),
    "jp2": file(NOISE, "JPEG2000"),
    "j2k tiles": file(mixed(), "JPEG2000", no_jp2=True, tile_size=(32, 32)),
    "gif": file(Image.fromarray(mixed()).convert("P"), "GIF"),
    "png": file(mixed(), "PNG"),
    "tiff": file(mixed(), "TIFF", compression="tiff_lzw"),
    "webp": file(NOISE, "WEBP"),
    "webp lossless": file(NOISE, "WEBP", lossless=True),
    "webp exif": file(mixed(), "WEBP", exif=EXIF),
}
CUTS: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda data, at: data[:at],
    "zeros": lambda data, at: data[:at].ljust(len(data), b"\0"),
}


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_whole_or_refused(name: str, how: str) -> None:
    data, whole = FILES[name], read_image(FILES[name])
    refused = 0
    tail = len(data) - 24 if how == "cut" or "webp" not in name else len(data) * 9 // 10
    places = [*range(0, len(data), len(data) // 40), *range(tail, len(data))]
    if "webp" in name and how == "zeros":
        places = [at for at in places if at < tail]  # a few zeros may belong to the data
    for at in places:
        try:
            result = read_image(CUTS[how](data, at))
        except StrataError:
            refused += 1
        else:
            same = np.array_equal(result.rgb, whole.rgb)
            assert same or any("or lost" in note for note in result.notes), at
            assert any("picture is whole" in note for note in result.notes) or how == "zeros"
    assert refused > 0.4 * len(places)


NO_END = ("tiff", "avif", "avif exif", "webp", "webp lossless")  # pixels are the last in the file


@pytest.mark.parametrize("name", [name for name in FILES if name not in NO_END])
def test_a_lost_end_marker_costs_no_picture(name: str) -> None:
    """Or the metadata at the end of the file."""
    data = FILES[name]
    lost = {"png": 12, "gif": 1, "webp exif": 300}.get(name, 2)
    result = read_image(data[:-lost])
    assert np.array_equal(result.rgb, read_image(data).rgb)
    assert any("the picture is whole" in note for note in result.notes)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_an_end_marker_does_not_make_half_a_jpeg_whole(name: str) -> None:
    """But for a last block that was begun, and in the last scan of a progressive one."""
    data, whole = FILES[name], read_image(FILES[name])
    for at in range(3, len(data) * 3 // 5, len(data) // 40):
        try:
            result = read_image(data[:at] + b"\xff\xd9")
        except BrokenImageError:
            continue
        assert any("the last scans are missing" in note for note in result.notes)
        assert "progressive" in name
    assert read_image(data + bytes(5000)).notes == whole.notes  # what follows does not matter


def test_a_progressive_jpeg_without_its_last_scans_is_noted() -> None:
    data = FILES["jpeg progressive"]
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    tables = data.rindex(b"\xff\xc4", 0, scans[-1])  # each scan may have tables before it
    result = read_image(data[:tables] + b"\xff\xd9")
    assert "the last scans are missing" in result.notes[0]
    with pytest.raises(BrokenImageError):
        read_image(data[:tables])  # cut between scans


def test_surfaces_of_one_colour_are_no_damage() -> None:
    """A plain picture may end in zeros, and be as grey as what libjpeg fills in."""
    for level in (0, 128, 255):
        plain = np.full((640, 640, 3), level, np.uint8)
        for format, options in [
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"optimize": True}),
            ("WEBP", {"lossless": True}),
            ("PNG", {}),
            ("GIF", {}),
            ("AVIF", {"speed": 9}),
            ("JPEG2000", {}),
        ]:
            result = read_image(file(plain, format, **options))
            assert np.abs(result.rgb.astype(int) - level).max() <= 1
            assert result.notes == (("converted from a palette",) if format == "GIF" else ())
        lossy = read_image(file(plain, "WEBP"))
        assert np.abs(lossy.rgb.astype(int) - level).max() <= 2
        assert all("plain surface, or lost" in note for note in lossy.notes)


@pytest.mark.parametrize("format", ["BMP", "PPM", "TIFF"])
def test_zeros_at_the_end_of_uncompressed_pixels_are_noted(format: str) -> None:
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, format)
    data = out.getvalue()
    if format != "TIFF":  # whose directory is at the end
        result = read_image(data[:-5000] + bytes(5000))
        assert any("5000 bytes are zeros: black, or lost" in note for note in result.notes)
    assert read_image(data).notes == ()


@pytest.mark.parametrize(
    "segment",
    [
        b"\xe0JFIF\0",
        b"\xedPhotoshop 3.0\x008BIM\x04\x04\x05abc",
        b"\xedPhotoshop 3.0\x008BIM\x04",
        b"\xedPhotoshop 3.0\x008BIM\x04\x04",
        b"\xeeAdobe",
        b"\xe1Exif\0\0xx",
        b"\xe2ICC_PROFILE\0\1\2xx",
        b"\xe2ICC_PROFILE\0",
        b"\xe2MPF\0rubbish!!!",
        b"\xfe",
    ],
)
def test_damaged_metadata_of_a_jpeg_cost_no_pixel(segment: bytes) -> None:
    data = FILES["jpeg noise"]
    whole = b"\xff" + segment[:1] + (len(segment) + 1).to_bytes(2) + segment[1:]
    result = read_image(data[:2] + whole + data[2:])
    assert np.array_equal(result.rgb, read_image(data).rgb)
