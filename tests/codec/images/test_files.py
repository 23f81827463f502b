"""Pictures of every kind are read whole and upright, or refused with a reason."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from codec.errors import BrokenImageError, StrataError, UnsupportedImageError
from codec.images.files import read_image, write_image
from codec.images.metrics import psnr
from tests.codec.images import icc
from tests.codec.images.files import chunk, file, picture, png

# Pillow tells of every odd tag of a damaged TIFF; the fuzz tests make thousands of those.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def tiff(array: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, metadata=None, software=False, **options)
    return out.getvalue()


def rle_bmp() -> bytes:
    """An 8x8 run-length coded BMP: row r holds the grey r + 1."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    rows = b"".join(bytes([8, r + 1, 0, 0]) for r in range(8)) + b"\0\1"
    start = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return head + info + palette + rows


RGB = picture()
ALPHA = picture(seed=1)[..., 0]
FILES = {
    "png": file(RGB, "PNG"),
    "png rgba": file(np.dstack([RGB, ALPHA]), "PNG"),
    "png palette": file(Image.fromarray(RGB).convert("P"), "PNG"),
    "jpeg": file(RGB, "JPEG"),
    "jpeg progressive": file(RGB, "JPEG", progressive=True),
    "jpeg cmyk": file(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "webp": file(RGB, "WEBP"),
    "webp lossless": file(RGB, "WEBP", lossless=True),
    "webp rgba": file(np.dstack([RGB, ALPHA]), "WEBP"),
    "gif": file(RGB, "GIF"),
    "bmp": file(RGB, "BMP"),
    "bmp rle": rle_bmp(),
    "tiff": file(RGB, "TIFF"),
    "tiff header first": tiff(RGB, photometric="rgb"),
    "tiff deflate tiles": tiff(RGB, photometric="rgb", compression="zlib", tile=(16, 16)),
    "tiff lzw": file(RGB, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": file(RGB, "TIFF", compression="jpeg"),
    "tiff group4": file(Image.fromarray(RGB).convert("1"), "TIFF", compression="group4"),
    "ppm": file(RGB, "PPM"),
    "pbm": file(Image.fromarray(RGB).convert("1"), "PPM"),
    "jp2": file(RGB, "JPEG2000"),
    "j2k": file(RGB, "JPEG2000", no_jp2=True),
    "avif": file(RGB, "AVIF"),
}
LOSSLESS = ["png", "webp lossless", "bmp", "tiff", "tiff header first", "tiff deflate tiles"]
LOSSLESS += ["tiff lzw", "ppm", "jp2", "j2k"]


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read(name):
    result = read_image(FILES[name])
    assert result.rgb.dtype == np.uint8
    assert result.rgb.flags.c_contiguous
    assert result.format == {"jp2": "jpeg2000", "j2k": "jpeg2000", "pbm": "ppm"}.get(
        name, name.split()[0]
    )
    assert (result.alpha is not None) == ("rgba" in name)
    if name == "bmp rle":
        assert result.rgb[:, 3, 1].tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
    else:
        assert (result.width, result.height) == (24, 16)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_come_in_exactly(name):
    result = read_image(FILES[name])
    assert np.array_equal(result.rgb, RGB)
    assert result.notes == ()


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_never_gives_half_a_picture(name):
    data, whole = FILES[name], read_image(FILES[name])
    refused = 0
    for length in range(len(data)):
        try:
            result = read_image(data[:length])
        except (BrokenImageError, UnsupportedImageError):
            refused += 1
        else:  # only what follows the pixels was cut
            assert np.array_equal(result.rgb, whole.rgb)
            assert length > 0.95 * len(data)
    assert refused > 0.95 * len(data)


# --- colours, transparency ---


def test_grey_and_grey_with_alpha():
    grey = read_image(file(ALPHA, "PNG"))
    assert np.array_equal(grey.rgb, np.repeat(ALPHA[..., None], 3, 2))
    assert grey.alpha is None
    both = read_image(file(Image.merge("LA", [Image.fromarray(ALPHA)] * 2), "PNG"))
    assert np.array_equal(both.alpha, ALPHA)
    assert np.array_equal(both.rgb[..., 2], ALPHA)


def test_one_bit():
    bits = picture()[..., 0] > 100
    result = read_image(file(Image.fromarray(bits), "PNG"))
    assert np.array_equal(result.rgb[..., 0], 255 * bits.astype(np.uint8))
    assert "1 bit" in result.notes[0]


def palette_png(transparency: bytes) -> bytes:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    extra = palette + (chunk(b"tRNS", transparency) if transparency else b"")
    return png(3, 8, b"\0" + bytes([1, 0]), extra=extra)


def test_palette_with_and_without_transparency():
    plain = read_image(palette_png(b""))
    assert plain.rgb.tolist() == [[[40, 50, 60], [10, 20, 30]]]
    assert plain.alpha is None
    see_through = read_image(palette_png(bytes([7, 99])))
    assert see_through.rgb.tolist() == plain.rgb.tolist()
    assert see_through.alpha.tolist() == [[99, 7]]


def test_transparent_colour_of_grey_and_rgb():
    grey = png(0, 8, b"\0" + bytes([5, 6]), extra=chunk(b"tRNS", struct.pack(">H", 6)))
    assert read_image(grey).alpha.tolist() == [[255, 0]]
    assert read_image(grey).rgb.tolist() == [[[5, 5, 5], [6, 6, 6]]]
    key = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    rgb = read_image(png(2, 8, b"\0" + bytes([1, 2, 3, 1, 2, 4]), extra=key))
    assert rgb.alpha.tolist() == [[0, 255]]
    assert rgb.rgb.tolist() == [[[1, 2, 3], [1, 2, 4]]]


def test_alpha_and_the_colours_hidden_under_it_survive():
    alpha = ALPHA.copy()
    alpha[:8] = 0
    for data in (write_image(RGB, alpha, "png"), write_image(RGB, alpha, "webp")):
        result = read_image(data)
        assert np.array_equal(result.alpha, alpha)
        assert np.array_equal(result.rgb, RGB)


@pytest.mark.parametrize(("ink", "rgb"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)])
def test_cmyk_jpeg_in_adobe_polarity(ink, rgb):
    result = read_image(file(Image.new("CMYK", (16, 16), ink), "JPEG"))
    assert np.abs(result.rgb.astype(int) - rgb).max() <= 2
    assert any("without a usable profile" in note for note in result.notes)


def test_ycck_jpeg():
    """The same bytes with Adobe's transform flag set hold YCC instead of CMY."""
    luma, cb, cr = 128, 128, 255
    data = file(Image.new("CMYK", (16, 16), (255 - luma, 255 - cb, 255 - cr, 0)), "JPEG")
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    data = data[:at] + b"\2" + data[at + 1 :]
    red, green, blue = 255, luma - 0.714 * (cr - 128), luma
    expected = [255 - red, 255 - green, 255 - blue]
    assert np.allclose(read_image(data).rgb, expected, atol=3)


# --- ICC profiles ---


def test_profile_is_converted_to_srgb():
    linear = read_image(file(np.full((4, 4, 3), 128, np.uint8), "PNG", icc_profile=icc.rgb(1.0)))
    assert np.abs(linear.rgb.astype(int) - 188).max() <= 1  # the sRGB curve at 128 / 255
    assert "hand made" in linear.notes[0]
    swapped = icc.rgb(2.2, red=icc.BLUE, blue=icc.RED)
    red = np.tile(np.array([255, 0, 0], np.uint8), (4, 4, 1))
    assert np.allclose(read_image(file(red, "PNG", icc_profile=swapped)).rgb, [0, 0, 255], atol=3)


def test_grey_profile_keeps_grey_grey():
    ramp = np.arange(256, dtype=np.uint8)[None]
    result = read_image(file(ramp, "PNG", icc_profile=icc.grey(1.0)))
    assert np.ptp(result.rgb, axis=2).max() == 0
    assert abs(int(result.rgb[0, 128, 0]) - 188) <= 1


def test_profile_leaves_alpha_alone():
    rgba = np.dstack([RGB, ALPHA])
    result = read_image(file(rgba, "PNG", icc_profile=icc.rgb(1.0)))
    assert np.array_equal(result.alpha, ALPHA)
    assert result.rgb.mean() > RGB.mean() + 20


def test_cmyk_profile_is_used():
    neutral, bright = 128, 255
    corners = {
        (0, 0, 0, 0): (bright, neutral, neutral),
        (1, 0, 0, 0): (150, neutral + 80, neutral + 60),  # cyan ink that prints red
        (0, 0, 0, 1): (0, neutral, neutral),
    }
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    result = read_image(file(image, "JPEG", quality=100, icc_profile=icc.cmyk(corners)))
    red, green, blue = result.rgb[8, 8]
    assert red > 180 > 100 > max(green, blue)


def test_srgb_profile_changes_no_pixel(photo):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = read_image(file(photo, "PNG", icc_profile=profile))
    assert np.array_equal(result.rgb, photo)
    assert result.notes == ()


@pytest.mark.parametrize("profile", [b"nonsense", icc.rgb(1.0)[:200], icc.cmyk({}), icc.grey(1.0)])
def test_broken_or_foreign_profile_is_noted_and_ignored(profile):
    result = read_image(file(RGB, "PNG", icc_profile=profile))
    assert np.array_equal(result.rgb, RGB)
    assert any("ignored" in note for note in result.notes)


# --- orientation ---

UPRIGHT = {
    1: ["abc", "def"],
    2: ["cba", "fed"],
    3: ["fed", "cba"],
    4: ["def", "abc"],
    5: ["ad", "be", "cf"],
    6: ["da", "eb", "fc"],
    7: ["fc", "eb", "da"],
    8: ["cf", "be", "ad"],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"quality": 95}),
        ("AVIF", {"quality": 90}),
    ],
)
def test_orientation_is_applied(orientation, format, options):
    letters = np.array([list(row) for row in UPRIGHT[1]])
    stored = np.array([[40 * (ord(c) - ord("a")) for c in row] for row in letters], np.uint8)
    blocks = np.dstack([np.kron(stored, np.ones((16, 16), np.uint8)), np.full((32, 48), 9)])
    rgba = np.dstack([blocks, np.full((32, 48), 77), np.kron(stored, np.ones((16, 16)))])
    with_alpha = format not in ("JPEG", "AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = (rgba if with_alpha else rgba[..., :3]).astype(np.uint8)
    result = read_image(file(pixels, format, exif=exif, **options))
    seen = [
        "".join(chr(ord("a") + round(value / 40)) for value in row)
        for row in result.rgb[8::16, 8::16, 0]
    ]
    assert seen == UPRIGHT[orientation]
    assert result.rgb.shape == (16 * len(seen), 16 * len(seen[0]), 3)
    if with_alpha:
        assert np.array_equal(result.alpha, result.rgb[..., 0])
    assert any("orientation" in note for note in result.notes) == (orientation > 1)


def test_broken_exif_does_not_cost_the_picture():
    for exif in (
        b"Exif\0\0rubbish",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff",
    ):
        data = file(RGB, "PNG", exif=exif)
        assert np.array_equal(read_image(data).rgb, RGB)


# --- refusals ---

DEEP = {
    "png grey": png(0, 16, b"\0" + bytes(4)),
    "png rgb": png(2, 16, b"\0" + bytes(12)),
    "png grey alpha": png(4, 16, b"\0" + bytes(8)),
    "png rgba": png(6, 16, b"\0" + bytes(16)),
    "tiff grey": tiff(RGB[..., 0].astype(np.uint16)),
    "tiff rgb": tiff(RGB.astype(np.uint16), photometric="rgb"),
    "tiff rgb deflate": tiff(RGB.astype(np.uint16), photometric="rgb", compression="zlib"),
    "tiff int32": tiff(RGB[..., 0].astype(np.int32)),
    "tiff float": tiff(RGB[..., 0].astype(np.float32)),
    "tiff half": tiff(RGB[..., 0].astype(np.float16)),
    "ppm": b"P6 2 1 65535\n" + bytes(12),
    "ppm 10 bits": b"P6 2 1 1023\n" + bytes(12),
    "ppm plain": b"P3 1 1 300\n1 2 300\n",
    "pgm": b"P5 2 1 65535\n" + bytes(4),
    "pfm": b"Pf\n2 1\n-1.0\n" + bytes(8),
    "jp2 grey": file(Image.fromarray(RGB[..., 0].astype(np.uint16)), "JPEG2000"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_is_refused_in_words(name):
    with pytest.raises(UnsupportedImageError, match=r"only 8(-bit ones)? are|not supported"):
        read_image(DEEP[name])


def test_deep_rgb_of_jpeg2000_avif_and_jpeg_is_refused():
    """Pillow writes none of these, so the depth is changed in the header of an 8-bit file."""
    for name, mark, offset, value in [
        ("j2k", b"\xff\x4f\xff\x51", 42 + 3, b"\x0b"),  # the second component has 12 bits
        ("avif", b"av1C", 6, b"\x4c"),  # high_bitdepth, which must agree with the pixi box
        ("jpeg", b"\xff\xc0", 4, b"\x0c"),  # sample precision of the frame header
    ]:
        data = FILES[name].replace(b"pixi\0\0\0\0\3\x08\x08\x08", b"pixi\0\0\0\0\3\n\n\n")
        at = data.index(mark) + offset
        with pytest.raises(UnsupportedImageError, match=r"only 8|12-bit"):
            read_image(data[:at] + value + data[at + 1 :])


def test_ppm_with_fewer_levels_is_scaled():
    assert read_image(b"P6 1 1 15\n" + bytes([0, 15, 5])).rgb.tolist() == [[[0, 255, 85]]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_frames_are_refused_and_one_is_not(format):
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    data = file(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageError, match="3 frames or pages"):
        read_image(data)
    assert read_image(file(frames[0], format, save_all=True)).width == 24


def test_mpo_gives_its_main_picture_and_says_so():
    second = Image.fromarray(picture(8, 8))
    data = file(RGB, "MPO", save_all=True, append_images=[second], quality=95)
    result = read_image(data)
    assert result.format == "jpeg"
    assert result.rgb.shape == RGB.shape
    assert "main one" in result.notes[0]


def huge_files() -> dict[str, bytes]:
    side = 60_000
    jpeg = FILES["jpeg"]
    at = jpeg.index(b"\xff\xc0") + 5
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", 16_382)[:3] * 2
    webp += FILES["webp"][12:]
    return {
        "png": png(0, 8, b"", width=side, height=side),
        "jpeg": jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :],
        "gif": FILES["gif"][:6] + struct.pack("<HH", side, side) + FILES["gif"][10:],
        "bmp": FILES["bmp"][:18] + struct.pack("<ii", side, side) + FILES["bmp"][26:],
        "ppm": b"P6 60000 60000 255\n" + bytes(100),
        "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
    }


@pytest.mark.parametrize("name", huge_files())
def test_decompression_bombs_are_refused_from_the_header(name):
    with pytest.raises(UnsupportedImageError, match=r"limit of|too large|exceeds limit"):
        read_image(huge_files()[name])


def test_max_pixels_is_exact():
    assert read_image(FILES["png"], max_pixels=16 * 24).width == 24
    with pytest.raises(UnsupportedImageError, match="24x16 is 384 pixels, more than the limit"):
        read_image(FILES["png"], max_pixels=16 * 24 - 1)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", BrokenImageError, "empty"),
        (b"\0", UnsupportedImageError, "not an image"),
        (b"<!DOCTYPE html><html>", UnsupportedImageError, "DOCTYPE"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", UnsupportedImageError, "not an image"),
        (b"8BPS\0\1" + bytes(100), UnsupportedImageError, "not an image"),
        (bytes(1000), UnsupportedImageError, "not an image"),
        (b"\xff\xd8\xff", BrokenImageError, "jpeg"),
        (b"BM", BrokenImageError, "bmp"),
        (b"P6 0 5 255\n", BrokenImageError, "ppm"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data, error, message):
    with pytest.raises(error, match=message):
        read_image(data)


def test_damaged_png_pixels_are_noticed():
    data = FILES["png"]
    at = data.index(b"IDAT") + 40
    with pytest.raises(BrokenImageError, match="checksum"):
        read_image(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


edits = st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=1500)
@given(st.sampled_from(sorted(FILES)), edits, st.floats(0, 1), st.booleans())
def test_only_the_two_errors_ever_come_out(name, edits, keep, from_start):
    data = bytearray(FILES[name])
    for where, value in edits:
        # half of the time near the beginning, where the headers are
        data[int(where * (min(len(data), 100) if from_start else len(data)))] = value
    try:
        result = read_image(bytes(data[: max(1, round(len(data) * keep**0.1))]), max_pixels=1 << 20)
    except (BrokenImageError, UnsupportedImageError):
        pass
    else:
        assert result.rgb.shape == (result.height, result.width, 3)
        assert result.alpha is None or result.alpha.shape == (result.height, result.width)


@given(st.sampled_from([FILES[name][:12] for name in sorted(FILES)]), st.binary(max_size=200))
def test_rubbish_behind_a_good_beginning(beginning, rubbish):
    with pytest.raises((BrokenImageError, UnsupportedImageError)):
        read_image(beginning + rubbish)


def test_threads_do_not_disturb_one_another():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    jobs = [(data, limit) for data in FILES.values() for limit in (1 << 20, 1)] * 4

    def size(job: tuple[bytes, int]) -> int:
        try:
            return int(read_image(job[0], max_pixels=job[1]).rgb.sum())
        except StrataError:
            return -1

    expected = [size(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(size, jobs)) == expected
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before


# --- writing ---


def test_jpg_keeps_full_colour_resolution():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255  # gone in 4:2:0
    result = read_image(write_image(stripes, format="jpg"))
    assert psnr(result.rgb, stripes) > 35
    small, large = (write_image(picture(64, 64), format="jpg", quality=q) for q in (50, 95))
    assert len(small) < len(large)


def test_lossy_files_are_small_and_keep_transparency():
    image = picture(64, 64)
    alpha = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    exact = len(write_image(image, alpha, "webp"))
    for format in ("webp", "avif"):
        small, large = (write_image(image, alpha, format, quality=q) for q in (40, 85))
        assert len(small) < len(large) < exact
        shown = read_image(large)
        assert shown.format == format
        assert psnr(shown.rgb, image) > 22
        assert np.abs(shown.alpha.astype(int) - alpha).mean() < 3
    assert write_image(image, format="avif") == write_image(image, format="avif", quality=75)


def test_jpg_refuses_transparency_in_words():
    with pytest.raises(UnsupportedImageError, match="png or webp"):
        write_image(RGB, ALPHA, "jpg")
    opaque = np.full(ALPHA.shape, 255, np.uint8)
    assert write_image(RGB, opaque, "jpg") == write_image(RGB, None, "jpg")


def test_limits_and_wrong_arguments_of_writing():
    with pytest.raises(UnsupportedImageError, match="16384x1"):
        write_image(np.zeros((1, 16_384, 3), np.uint8), format="webp")
    with pytest.raises(UnsupportedImageError, match="1x65501"):
        write_image(np.zeros((65_501, 1, 3), np.uint8), format="jpg")
    assert read_image(write_image(np.zeros((1, 65_501, 3), np.uint8))).width == 65_501
    with pytest.raises(ValueError, match="choose one of"):
        write_image(RGB, format="bmp")
    with pytest.raises(ValueError, match="uint8"):
        write_image(RGB.astype(np.float32))
    with pytest.raises(ValueError, match="alpha"):
        write_image(RGB, ALPHA[:-1])
