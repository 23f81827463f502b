"""Chunks of a PNG: damage outside the pixels is ignored, any other damage is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from codec.errors import BrokenImageError
from codec.images.files import read_image
from codec.images.losses import METADATA
from tests.codec.images.files import chunk, file, picture, png

RGB = picture()
HUGE = zlib.compress(b"x" * (2 << 20))
EXIF = Image.Exif()
EXIF[0x0112] = 3
TURNED = EXIF.tobytes().removeprefix(b"Exif\0\0")


def with_chunk(extra: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with more chunks before its first one of a kind."""
    data = file(RGB, "PNG")
    at = data.index(before) - 4
    return data[:at] + extra + data[at:]


def damaged(one: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return one[:-1] + bytes([one[-1] ^ 1])


@pytest.mark.parametrize(
    ("extra", "note"),
    [
        (chunk(b"zTXt", b"workflow\0\0" + HUGE), "text of more than"),
        (chunk(b"iTXt", b"workflow\0\1\0\0\0" + HUGE), "text of more than"),
        (chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"x" * (2 << 20)), "text of more than"),
        (chunk(b"tEXt", b"workflow\0" + b"x" * (2 << 20)), "text of more than"),
        (chunk(b"zTXt", b"a\0\0" + b"no zlib"), "damaged text"),
        (chunk(b"zTXt", b"a\0\7" + b"no zlib"), "damaged text"),
        (chunk(b"iTXt", b"a"), ""),
        (chunk(b"tEXt", b""), ""),
        (chunk(b"tEXt", b"icc_profile\0nonsense"), ""),  # names that mean something to a library
        (chunk(b"tEXt", b"transparency\0nonsense"), ""),
        (chunk(b"tEXt", b"interlace\0x"), ""),
        (damaged(chunk(b"tEXt", b"a\0b")), "damaged tEXt chunk"),
        (damaged(chunk(b"zTXt", b"a\0\0" + HUGE)), "damaged zTXt chunk"),
        (damaged(chunk(b"eXIf", TURNED)), "damaged eXIf chunk"),
        (chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"), ""),
        (chunk(b"eXIf", b""), ""),
        (chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20))), "broken ICC profile"),
        (chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(20 << 20))), "broken ICC profile"),
        (chunk(b"iCCP", b"p\0\0no zlib"), "broken ICC profile"),
        (chunk(b"iCCP", b"p"), "broken ICC profile"),
        (damaged(chunk(b"iCCP", b"p\0\0x")), "damaged iCCP chunk"),
        (chunk(b"gAMA", b"\0"), "broken colour chunks"),
        (chunk(b"gAMA", bytes(4)), "broken colour chunks"),
        (chunk(b"cHRM", bytes(32)), "broken colour chunks"),
        (chunk(b"cHRM", bytes(3)), "broken colour chunks"),
        (chunk(b"cICP", b"\1"), "broken colour chunks"),
        (chunk(b"sRGB", b""), ""),
        (chunk(b"pHYs", b""), ""),
        (damaged(chunk(b"tIME", b"1234567")), "damaged tIME chunk"),
    ],
)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_what_is_no_pixels_costs_none(extra: bytes, note: str, before: bytes) -> None:
    result = read_image(with_chunk(extra, before))
    assert np.array_equal(result.rgb, RGB)
    assert result.alpha is None
    assert note in "; ".join(result.notes)
    others = [one for one in result.notes if not one.startswith(METADATA)]
    assert bool(others) == bool(note)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"ABCD"])
def test_what_pixels_depend_on_must_be_whole(kind: bytes) -> None:
    with pytest.raises(BrokenImageError, match=f"checksum of its {kind!r}"):
        read_image(with_chunk(damaged(chunk(kind, bytes(6)))))


def test_orientation_is_found_wherever_it_is_told() -> None:
    packed = b"Raw profile type exif\0\0"
    body = f"\nexif\n{len(TURNED) + 6:8d}\n{(b'Exif' + bytes(2) + TURNED).hex()}\n".encode()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="3"/></x:xmpmeta>'
    for extra in (
        chunk(b"eXIf", TURNED),
        chunk(b"zTXt", packed + zlib.compress(body)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        for before in (b"IDAT", b"IEND"):
            result = read_image(with_chunk(extra, before))
            assert np.array_equal(result.rgb, RGB[::-1, ::-1])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [0, 1])
def test_transparent_grey_of_every_depth(depth: int, interlaced: int) -> None:
    most = (1 << depth) - 1
    for clear in {0, 1, most // 2, most}:
        row = bytes([0, (clear << (8 - depth)) & 255, 0])[: 2 + (depth == 8)]
        extra = chunk(b"tRNS", struct.pack(">H", clear | 0x100))  # the upper bits mean nothing
        other = 0 if clear else most
        row = bytes([0, clear << (8 - depth) | (other << (8 - 2 * depth) if depth < 8 else 0)])
        row += bytes([other]) if depth == 8 else b""
        if interlaced:  # one column in the first pass, the other in the sixth
            row = bytes([0, clear << (8 - depth), 0, other << (8 - depth)])
        result = read_image(png(0, depth, row, extra=extra, interlaced=interlaced))
        assert result.alpha is not None
        assert result.alpha.tolist() == [[0, 255]]
        assert result.rgb[0, :, 0].tolist() == [clear * 255 // most, other * 255 // most]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_palettes_of_every_depth(depth: int) -> None:
    palette = chunk(b"PLTE", bytes([1, 2, 3, 4, 5, 6]))
    row = bytes([0, 1, 0]) if depth == 8 else bytes([0, 1 << (8 - depth)])
    for alphas, expected in [(b"\7", [255, 7]), (b"\0", [255, 0]), (b"\xff\0", [0, 255])]:
        result = read_image(png(3, depth, row, extra=palette + chunk(b"tRNS", alphas)))
        assert result.alpha is not None
        assert result.alpha.tolist() == [expected]
        assert result.rgb.tolist() == [[[4, 5, 6], [1, 2, 3]]]


@pytest.mark.parametrize(
    ("colour", "row"), [(0, b"\0\5\6"), (2, b"\0\5\5\5\6\6\6"), (6, b"\0" + bytes(8))]
)
def test_transparency_of_a_wrong_size_is_noted(colour: int, row: bytes) -> None:
    result = read_image(png(colour, 8, row, extra=chunk(b"tRNS", b"\0")))
    assert any("tRNS chunk of a wrong size" in note for note in result.notes)
    assert (result.alpha is None) == (colour != 6)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("white", [False, True])
def test_rows_that_end_early_are_missed(depth: int, interlaced: int, white: bool) -> None:
    """Also where the whole picture is black, as missing rows are."""
    line = 1 + -(-8 * depth // 8)
    rows = (b"\0" + (b"\xff" if white else b"\0") * (line - 1)) * 8
    if interlaced:
        sizes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]  # columns, rows
        lines = [1 + -(-columns * depth // 8) for columns, count in sizes for _ in range(count)]
        rows = b"".join(b"\0" + (b"\xff" if white else b"\0") * (n - 1) for n in lines)
    read_image(png(0, depth, rows, 8, 8, interlaced=interlaced))
    read_image(png(0, depth, rows + b"more", 8, 8, interlaced=interlaced))
    for cut in range(0, len(rows), 3):
        with pytest.raises(BrokenImageError, match=r"its rows|truncated"):
            read_image(png(0, depth, rows[:cut], 8, 8, interlaced=interlaced))


def test_a_lost_end_costs_no_picture_that_is_whole() -> None:
    data = file(RGB, "PNG")
    for cut in (1, 4, 8, 12, 14, 16, 20):
        zeros = [data[:-cut] + bytes(cut), data[:-cut] + bytes(cut + 5000)]
        for lost in [data[:-cut], *(zeros if cut <= 12 else [])]:
            result = read_image(lost)
            assert np.array_equal(result.rgb, RGB)
            assert len(lost) >= len(data) or "the picture is whole" in result.notes[0]
    with pytest.raises(BrokenImageError, match=r"it holds \d+ % of its rows"):
        read_image(data[: len(data) // 2])


def test_other_chunks_between_the_rows_do_not_end_them() -> None:
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in RGB))
    parts = chunk(b"IDAT", rows[:99]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", rows[99:])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + parts + chunk(b"IEND", b"")
    assert np.array_equal(read_image(data).rgb, RGB)


def test_pillow_itself_still_reads_what_is_given_to_it() -> None:
    """The files made by hand here are right but for what is tested."""
    with Image.open(io.BytesIO(png(2, 8, b"\0" + bytes(range(6))))) as image:
        assert np.asarray(image).tolist() == [[[0, 1, 2], [3, 4, 5]]]
