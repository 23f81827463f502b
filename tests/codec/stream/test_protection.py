"""Protection bytes: with noise below the guard a decoder still finds the encoder's numbers."""

import numpy as np
import pytest

from codec.errors import CorruptStreamError
from codec.stream.protection import Protector, Restorer, Rounded


def rounded(values: np.ndarray, guard: float) -> Rounded:
    """To the nearest integers."""
    index = np.floor(values + 0.5).astype(np.int64)
    above = values - index
    return Rounded(index, index + np.where(above < 0, -1, 1), (0.5 - np.abs(above)) / guard)


def protected(values: np.ndarray, guard: float) -> bytes:
    protector = Protector()
    np.testing.assert_array_equal(protector(rounded(values, guard)), rounded(values, guard).index)
    return protector.data


def noise(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Within -1 .. 1: spread evenly, always as large as can be, all to one side, or small."""
    if kind == "even":
        return rng.uniform(-1, 1, size)
    if kind == "extreme":
        return np.where(rng.random(size) < 0.5, -0.9999, 0.9999)
    return np.full(size, 0.9999) if kind == "shift" else rng.normal(0, 0.05, size).clip(-1, 1)


@pytest.mark.parametrize("kind", ["even", "extreme", "shift", "small"])
@pytest.mark.parametrize(
    ("size", "guard"),
    [(1, 0.1), (3, 1e-4), (700, 0.1), (12_288, 0.01), (100_000, 0.02), (600_000, 1e-5)],
)
def test_noise_up_to_the_guard_is_undone(kind: str, size: int, guard: float) -> None:
    rng = np.random.default_rng(size)
    values = rng.normal(0, 9, size)
    data = protected(values, guard)
    own = rounded(values + guard * noise(kind, size, rng), guard)
    restorer = Restorer(data)
    found = restorer(own)
    restorer.finish()
    assert not restorer.failed
    np.testing.assert_array_equal(found, rounded(values, guard).index)
    if size * guard > 100 and kind != "small":
        assert (own.index != found).sum() > size * guard / 10  # there was something to do


def test_the_bytes_are_few() -> None:
    values = np.random.default_rng(0).normal(0, 9, 500_000)
    for guard in (1e-4, 1e-3, 1e-2):
        doubtful = 2 * guard * len(values)
        assert len(protected(values, guard)) < (1.35 * doubtful + 300) / 8


@pytest.mark.parametrize("size", [300, 50_000])
def test_noise_beyond_the_guard_is_noticed(size: int) -> None:
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(50):
        values = rng.normal(0, 9, size)
        restorer = Restorer(protected(values, 0.001))
        found = restorer(rounded(values + rng.uniform(-0.01, 0.01, size), 0.001))
        failed += restorer.failed
        assert restorer.failed or (found == rounded(values, 0.001).index).all()
    assert failed > 40 or size == 300


def test_several_rows_follow_each_other() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(0, 9, size) for size in (100, 5000)]
    protector = Protector()
    for values in rows:
        protector(rounded(values, 0.01))
    restorer = Restorer(protector.data)
    for values in rows:
        own = rounded(values + rng.uniform(-0.01, 0.01, len(values)), 0.01)
        np.testing.assert_array_equal(restorer(own), rounded(values, 0.01).index)
        if len(values) == 100:
            with pytest.raises(CorruptStreamError, match="more protection"):
                restorer.finish()
    restorer.finish()


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"\x00",
        b"\x0b" + b"\x03abc" * 11,  # more blocks than numbers
        b"\x01\x00",
        b"\x01\x41" + bytes(65),
        b"\x01\x03ab",
        b"\x02\x03abc",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    ],
)
def test_forged_bytes_are_refused(forged: bytes) -> None:
    with pytest.raises(CorruptStreamError):
        Restorer(forged)(rounded(np.zeros(10), 0.01))


def test_a_block_is_never_longer_than_the_equations() -> None:
    with pytest.raises(CorruptStreamError, match="in 1 blocks"):
        Restorer(b"\x01\x03abc")(rounded(np.zeros(300_000), 0.01))
