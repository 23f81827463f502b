"""What a picture's file tells beside its pixels is noted; what pixels hold is no loss."""

import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from codec.images.files import read_image
from codec.images.losses import CMYK, COLOURS, MAIN_ONLY, METADATA, loss_of
from tests.codec.images.files import file, picture

RGB = picture()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def exif(**tags) -> bytes:
    block = Image.Exif()
    for name, value in tags.items():
        block[getattr(ExifTags.Base, name)] = value
    return block.tobytes()


def dated() -> bytes:
    block = Image.Exif()
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:01:01 12:00:00"
    return block.tobytes()


def texts(*names: str) -> PngInfo:
    chunks = PngInfo()
    for name in names:
        chunks.add_itxt(name, "words")
    return chunks


def with_segment(jpeg: bytes, number: int, content: bytes) -> bytes:
    marker = struct.pack(">BBH", 0xFF, 0xE0 + number, len(content) + 2)
    return jpeg[:2] + marker + content + jpeg[2:]


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    size, checksum = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + size + kind + content + checksum + png[33:]


def losses(data: bytes) -> list[str]:
    return [loss for note in read_image(data).notes if (loss := loss_of(note))]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("block", [exif(Artist="Ann"), exif(Make="Acme"), dated()])
def test_exif_that_tells_something(format, block):
    assert losses(file(RGB, format, exif=block)) == [f"{METADATA}: EXIF"]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_what_pixels_have_is_no_loss(format):
    block = exif(Orientation=6, XResolution=72.0, YResolution=72.0, ResolutionUnit=2)
    assert losses(file(RGB, format, exif=block)) == []
    assert losses(file(RGB, format)) == []


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (file(RGB, "JPEG", xmp=XMP), "XMP"),
        (file(RGB, "WEBP", xmp=XMP, exif=exif(Model="A1")), "EXIF, XMP"),
        (file(RGB, "AVIF", xmp=XMP), "XMP"),
        (file(RGB, "TIFF", tiffinfo={700: XMP}), "XMP"),
        (file(RGB, "JPEG", comment=b"words"), "text"),
        (file(RGB, "GIF", comment=b"words"), "text"),
        (file(RGB, "PNG", pnginfo=texts("Author")), "text"),
        (file(RGB, "PNG", pnginfo=texts("XML:com.adobe.xmp", "Author")), "XMP, text"),
        (file(RGB, "PNG", pnginfo=texts("Raw profile type iptc")), "IPTC"),
        (file(RGB, "JPEG", exif=b"Exif\0\0??*\0 not to be read"), "EXIF"),
        (with_segment(file(RGB, "JPEG"), 11, b"JP\0\1\0\0\0\1\0\0\0\x08jumb"), "C2PA"),
        (with_chunk(file(RGB, "PNG"), b"caBX", b"\0\0\0\x08jumb"), "C2PA"),
    ],
)
def test_other_metadata(data, kinds):
    assert losses(data) == [f"{METADATA}: {kinds}"]


def test_colours_that_nobody_can_tell():
    assert losses(file(Image.fromarray(RGB).convert("CMYK"), "JPEG")) == [CMYK]
    assert losses(file(RGB, "PNG", icc_profile=b"nonsense")) == [COLOURS]
    assert loss_of(MAIN_ONLY)
    for harmless in ("converted from a palette", "damaged eXIf chunk ignored"):
        assert not loss_of(harmless)
    assert losses(file(np.dstack([RGB, RGB[..., 0]]), "PNG")) == []
