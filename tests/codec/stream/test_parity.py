"""Parity equations: they find exactly the wrong places, or say that they cannot."""

import hashlib

import numpy as np
import pytest

from codec.stream import parity


def difference_of(places: list[int], equations: int) -> int:
    """Sums over a block of 1000 bits whose ``places`` are 1."""
    bits = np.zeros((1000, 1), bool)
    bits[places] = True
    words = parity.sums(bits, equations)[0].astype("<u8")
    return int.from_bytes(words.tobytes(), "little") & ((1 << equations) - 1)


def test_the_equations_are_fixed_for_ever() -> None:
    words = parity.sums(np.eye(3000, dtype=bool), parity.MAX_EQUATIONS).astype("<u8")
    digest = hashlib.sha256(words.tobytes()).hexdigest()
    assert digest.startswith("5778ea8f0b1c3c41")


@pytest.mark.parametrize("wrong", [0, 1, 2, 7, 40, 80])
def test_wrong_places_are_found_among_the_listed(wrong: int) -> None:
    rng = np.random.default_rng(wrong)
    for _ in range(20):
        listed = rng.permutation(1000)[:80]
        expected = sorted(listed[rng.permutation(80)[:wrong]].tolist())
        difference = difference_of(expected, 100)
        found = parity.wrong_places(listed, difference, 100)
        assert found is not None
        assert sorted(found) == expected


def test_what_is_not_listed_is_not_found() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        places = rng.permutation(1000)[:61]
        difference = difference_of(places[:3].tolist(), 80)
        assert parity.wrong_places(places[1:], difference, 80) is None


def test_no_more_places_than_equations_can_tell_apart() -> None:
    listed = np.arange(100)
    assert parity.wrong_places(listed, difference_of([99], 110), 110) is None
    assert parity.wrong_places(listed, difference_of([89], 110), 110) == [89]
    assert parity.wrong_places(listed, difference_of([3], 16), 16) is None


def test_each_column_of_bits_is_a_block_of_its_own() -> None:
    rng = np.random.default_rng(1)
    bits = rng.random((500, 9)) < 0.5
    together = parity.sums(bits, 130)
    assert together.shape == (9, 3)
    for block in range(9):
        np.testing.assert_array_equal(parity.sums(bits[:, [block]], 130)[0], together[block])
    np.testing.assert_array_equal(parity.sums(bits, 64), together[:, :1])
