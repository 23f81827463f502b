"""Alpha channels come back unchanged, take few bytes, and damage is found."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import CorruptStreamError
from codec.images.alpha import pack_alpha, unpack_alpha
from tests.codec.images.files import picture

ALPHA = picture(seed=1)[..., 0]
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(shapes, st.sampled_from([1, 2, 3, 255]), st.integers(0, 1000))
def test_alpha_round_trip(shape, levels, seed):
    values = np.random.default_rng(seed).integers(0, levels, shape)
    alpha = (values * (255 // levels)).astype(np.uint8)
    back = unpack_alpha(pack_alpha(alpha))
    assert back.dtype == np.uint8
    assert np.array_equal(back, alpha)


def test_alpha_is_small():
    opaque = np.full((3000, 4000), 255, np.uint8)
    assert len(pack_alpha(opaque)) == 14
    assert np.array_equal(unpack_alpha(pack_alpha(opaque)), opaque)
    y, x = np.mgrid[:512, :512]
    disc = (255 * ((x - 256) ** 2 + (y - 256) ** 2 < 200**2)).astype(np.uint8)
    assert len(pack_alpha(disc)) < 2000
    long = np.zeros((2, 20_000), np.uint8)  # longer than a WebP
    long[1, 7] = 1
    assert np.array_equal(unpack_alpha(pack_alpha(long)), long)


def test_damaged_alpha_is_noticed():
    for alpha in (ALPHA, np.full((4, 4), 255, np.uint8)):
        data = pack_alpha(alpha)
        for at in range(len(data)):
            damaged = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            with pytest.raises(CorruptStreamError, match="alpha"):
                unpack_alpha(damaged)
            with pytest.raises(CorruptStreamError, match="alpha"):
                unpack_alpha(data[:at])


def test_forged_alpha_allocates_nothing():
    body = struct.pack("<cBII", b"C", 0, 1 << 31, 1 << 31)
    with pytest.raises(CorruptStreamError, match="pixels"):
        unpack_alpha(struct.pack("<I", zlib.crc32(body)) + body)
