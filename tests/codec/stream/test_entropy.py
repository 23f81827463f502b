import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.errors import CorruptStreamError
from codec.stream import entropy
from codec.stream.entropy import Decoder, Tables
from tests.codec.ideal import cross_entropy


def random_tables(rng: np.random.Generator, sizes: list[int]) -> Tables:
    return Tables.from_pmfs((int(rng.integers(-5, 5)), rng.dirichlet(np.ones(n))) for n in sizes)


def random_part(rng: np.random.Generator, sizes: list[int], count: int) -> entropy.Part:
    index = rng.integers(0, len(sizes), count).astype(np.int32)
    symbols = rng.integers(-9, 20, count).astype(np.int32)
    symbols[::37] = rng.integers(-(2**30), 2**30, len(symbols[::37]))
    return symbols, index, random_tables(rng, sizes)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 300)),
        max_size=4,
    ),
    st.integers(0, 2**24 - 1),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_any_parts_come_back(shapes: list[tuple[list[int], int]], start: int, seed: int) -> None:
    """Tables of one size (coded by rows) and of many sizes (coded in groups), escapes included."""
    rng = np.random.default_rng(seed)
    parts = [random_part(rng, sizes, count) for sizes, count in shapes]
    decoder = Decoder(entropy.encode(parts, start))
    for symbols, index, tables in parts:
        np.testing.assert_array_equal(decoder.decode(index, tables), symbols)
    assert decoder.ends_with(start)
    assert not decoder.ends_with(start ^ 1)


@pytest.mark.parametrize("sizes", [[5] * 200, list(range(2, 90))])
def test_length_is_the_cross_entropy(sizes: list[int]) -> None:
    rng = np.random.default_rng(1)
    tables = random_tables(rng, sizes)
    index = rng.integers(0, len(sizes), 20_000).astype(np.int32)
    size = np.array(sizes)[index]
    symbols = (tables.first[index] + rng.integers(0, size)).astype(np.int32)
    symbols[::400] += 1000
    coded = 8 * len(entropy.encode([(symbols, index, tables)]))
    ideal = cross_entropy(symbols, index, tables)
    assert ideal <= coded + 1e-6
    assert coded <= 1.0005 * ideal + 64


def test_what_the_coder_begins_with_takes_its_own_bits_alone() -> None:
    """From 0 the first symbol would take up to 24 bits, too, and nothing be in them."""
    rng = np.random.default_rng(2)
    longer = 0.0
    for _ in range(400):
        tables = random_tables(rng, [16] * 8)
        index = rng.integers(0, 8, 40).astype(np.int32)
        symbols = tables.first[index] + rng.integers(0, 16, 40).astype(np.int32)
        ideal = cross_entropy(symbols, index, tables)
        start = int(rng.integers(1 << 23, 1 << 24))
        longer += 8 * len(entropy.encode([(symbols, index, tables)], start)) - ideal
    assert 24 < longer / 400 < 29  # and half of a byte


def test_tables_keep_rare_symbols_possible_and_survive_storage() -> None:
    tables = Tables.from_pmfs([(0, np.array([1.0, 0.0, 1e-12])), (3, np.array([0.5, 0.25, 0.2]))])
    assert tables.counts.min() >= 1
    assert tables.counts[tables.start[1] + 3] == pytest.approx(0.05 * 2**20, abs=2)  # the escape
    again = Tables.from_arrays(tables.to_arrays())
    symbols, index = np.array([1, 2, 9], np.int32), np.array([0, 0, 1], np.int32)
    decoder = Decoder(entropy.encode([(symbols, index, tables)]))
    np.testing.assert_array_equal(decoder.decode(index, again), symbols)


def one_by_one(pmf: np.ndarray) -> np.ndarray:
    """How models were made whose tables are stored: a single pmf and its escape, as counts."""
    pmf = np.append(pmf, max(1.0 - float(pmf.sum()), 0.0))
    free = (1 << entropy.PRECISION) - len(pmf)
    ideal = pmf / pmf.sum() * free
    counts = np.floor(ideal).astype(np.int64)
    counts[np.argsort(counts - ideal, kind="stable")[: free - counts.sum()]] += 1
    return (counts + 1).astype(np.int32)


@given(
    st.lists(st.sampled_from([1, 2, 3, 7, 8, 9, 31, 129, 300]), min_size=1, max_size=20),
    st.sampled_from([1.0, 1 - 2.0**-18, 0.5, 1.25]),
    st.integers(0, 2**32),
)
def test_many_tables_at_once_are_those_made_one_by_one(
    sizes: list[int], mass: float, seed: int
) -> None:
    """To the last count, whatever a table's neighbours are: streams depend on it."""
    rng = np.random.default_rng(seed)
    pmfs = []
    for size in sizes:
        pmf = rng.dirichlet(np.full(size, rng.choice([0.02, 1.0, 50.0])))
        if rng.random() < 0.4:
            pmf = np.round(pmf * 64) + (size == 1)  # equal ones and zeros
        pmfs.append(pmf * (mass / max(pmf.sum(), 1e-3)))
    first = rng.integers(-9, 9, len(sizes)).tolist()
    expected = [one_by_one(pmf) for pmf in pmfs]
    tables = Tables.from_pmfs(zip(first, pmfs, strict=True))
    np.testing.assert_array_equal(tables.counts, np.concatenate(expected))
    np.testing.assert_array_equal(np.diff(tables.start), [len(counts) for counts in expected])
    assert tables.first.tolist() == first
    for size in set(sizes):
        members = [i for i, other in enumerate(sizes) if other == size]
        matrix = np.stack([pmfs[i] for i in members])
        numbers = np.array(first)[members]
        for stored in (matrix, np.asfortranarray(matrix), np.pad(matrix, ((0, 0), (0, 3)))[:, :-3]):
            same = Tables.from_matrix(numbers, stored)
            wanted = np.concatenate([expected[i] for i in members])
            np.testing.assert_array_equal(same.counts, wanted)
            np.testing.assert_array_equal(same.first, numbers)
            assert (same.counts.dtype, same.first.dtype) == (np.int32, np.int32)


def test_misuse_is_refused_before_it_reaches_the_coder() -> None:
    tables = random_tables(np.random.default_rng(0), [4, 4])
    with pytest.raises(ValueError, match="out of range"):
        entropy.encode([(np.zeros(1, np.int32), np.array([2], np.int32), tables)])
    with pytest.raises(ValueError, match="table indices"):
        entropy.encode([(np.zeros(2, np.int32), np.zeros(3, np.int32), tables)])
    for start in (-1, 1 << 24):
        with pytest.raises(ValueError, match="starts with at most 24 bits"):
            entropy.encode([], start)
    with pytest.raises(ValueError, match="finite"):
        entropy.quantize_pmfs(np.array([[0.5, 0.5], [0.5, np.nan]]))
    arrays = tables.to_arrays()
    arrays["counts"] = arrays["counts"] + 1
    with pytest.raises(ValueError, match="not a set"):
        Tables.from_arrays(arrays)


def test_what_is_left_over_is_noticed() -> None:
    symbols, index, tables = random_part(np.random.default_rng(3), [4] * 3, 100)
    decoder = Decoder(entropy.encode([(symbols, index, tables)]))
    decoder.decode(index[:50], tables)
    assert not decoder.ends_with(0)


def test_draw_follows_the_table() -> None:
    tables = Tables.from_pmfs([(-1, np.array([0.1, 0.6, 0.3])), (-1, np.array([0.5, 0.0, 0.5]))])
    uniform = np.random.default_rng(0).integers(0, 1 << 20, 20_000)
    drawn = tables.draw(np.zeros(20_000, np.int32), uniform)
    shares = [(drawn == symbol).mean() for symbol in (-1, 0, 1)]
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], atol=0.01)


def test_a_panic_of_the_coder_is_a_damaged_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rust code panics with what ``except Exception`` does not catch."""
    panic = type("PanicException", (BaseException,), {})
    tables = Tables.from_pmfs([(0, np.full(4, 0.25))])
    decoder = Decoder(entropy.encode([(np.ones(3, np.int32), np.zeros(3, np.int32), tables)]))
    raised: list[BaseException] = [panic("assertion failed"), KeyboardInterrupt()]

    class Coder:
        def decode(self, *_: object) -> None:
            raise raised.pop(0)

    monkeypatch.setattr(decoder, "_coder", Coder())
    with pytest.raises(CorruptStreamError, match="assertion failed"):
        decoder.decode(np.zeros(3, np.int32), tables)
    with pytest.raises(KeyboardInterrupt):
        decoder.decode(np.zeros(3, np.int32), tables)


@pytest.mark.parametrize("data", [b"\0", b"\1\0", bytes(8), b"\1\2\3\4\0\0\0\0"])
def test_coded_data_has_one_form(data: bytes) -> None:
    with pytest.raises(CorruptStreamError, match="zero byte"):
        Decoder(data)


def test_least_bits_are_those_of_the_likeliest_symbols() -> None:
    tables = Tables.from_pmfs([(0, np.array([0.5, 0.25, 0.2])), (0, np.array([0.125] * 7))])
    np.testing.assert_allclose(tables.least_bits(), [1, 3], atol=1e-4)
