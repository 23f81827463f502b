"""Packed files come back byte for byte, or are not packed, or the error says why not."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from codec.errors import CorruptStreamError, MissingPackageError
from codec.images.packing import can_pack, pack_file, unpack_file
from tests.codec.images.test_files import picture

PICTURE = Image.fromarray(picture(160, 200))


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    PICTURE.convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg(quality=97, subsampling=0),
        jpeg(progressive=True),
        jpeg("L"),
        jpeg() + b"what follows the end",
        jpeg()[:-300],
    ],
    ids=["4:2:0", "4:4:4", "progressive", "grey", "more behind it", "cut"],
)
def test_a_jpeg_file_becomes_smaller_and_comes_back(data: bytes) -> None:
    packed, packing = pack_file(data)
    assert packing == "lepton"
    assert len(packed) < len(data)
    assert unpack_file(packed, packing) == data


@pytest.mark.parametrize(
    "data",
    [jpeg("CMYK"), jpeg()[:-2], b"\xff\xd8\xff and no more", b"\x89PNG", b""],
    ids=["CMYK", "without end marker", "no jpeg at all", "another format", "empty"],
)
def test_what_lepton_cannot_give_back_stays_as_it_is(data: bytes) -> None:
    assert pack_file(data) == (data, None)
    assert unpack_file(data, None) == data


def test_what_is_damaged_is_an_error_of_ours() -> None:
    packed, packing = pack_file(jpeg())
    changes = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(packed)
        damaged[changes.integers(len(packed))] ^= int(changes.integers(1, 256))
        try:
            unpack_file(bytes(damaged), packing)  # Lepton has no checksum; rows have
        except CorruptStreamError:
            refused += 1
    assert refused > 20
    for data in (b"", packed[:10], packed[:40], packed[:20] + b"\xff" * 4 + packed[24:]):
        with pytest.raises(CorruptStreamError, match="the packed original is damaged"):
            unpack_file(data, packing)
    with pytest.raises(CorruptStreamError, match="packing 'zip', which this release"):
        unpack_file(packed, "zip")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, packing = pack_file(jpeg())
    assert can_pack()
    monkeypatch.setitem(sys.modules, "lepton_jpeg_python", None)
    assert not can_pack()
    assert pack_file(jpeg()) == (jpeg(), None)
    assert unpack_file(jpeg(), None) == jpeg()
    with pytest.raises(MissingPackageError, match="pip install lepton_jpeg_python"):
        unpack_file(packed, packing)
