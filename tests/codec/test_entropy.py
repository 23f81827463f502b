import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import entropy
from codec.entropy import Decoder, Tables
from codec.errors import CorruptStreamError


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
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_any_parts_come_back(shapes: list[tuple[list[int], int]], seed: int) -> None:
    """Tables of one size (coded by rows) and of many sizes (coded in groups), escapes included."""
    rng = np.random.default_rng(seed)
    parts = [random_part(rng, sizes, count) for sizes, count in shapes]
    decoder = Decoder(entropy.encode(parts))
    for symbols, index, tables in parts:
        np.testing.assert_array_equal(decoder.decode(index, tables), symbols)
    decoder.finish()


@pytest.mark.parametrize("sizes", [[5] * 200, list(range(2, 90))])
def test_length_is_the_cross_entropy(sizes: list[int]) -> None:
    rng = np.random.default_rng(1)
    tables = random_tables(rng, sizes)
    index = rng.integers(0, len(sizes), 20_000).astype(np.int32)
    size = np.array(sizes)[index]
    symbols = (tables.first[index] + rng.integers(0, size)).astype(np.int32)
    symbols[::400] += 1000
    coded = 8 * len(entropy.encode([(symbols, index, tables)]))
    ideal = entropy.cross_entropy(symbols, index, tables)
    assert ideal <= coded + 1e-6
    assert coded <= 1.0005 * ideal + 64


def test_tables_keep_rare_symbols_possible_and_survive_storage() -> None:
    tables = Tables.from_pmfs([(0, np.array([1.0, 0.0, 1e-12])), (3, np.array([0.5, 0.25, 0.2]))])
    assert tables.counts.min() >= 1
    assert tables.counts[tables.start[1] + 3] == pytest.approx(0.05 * 2**20, abs=2)  # the escape
    again = Tables.from_arrays(tables.to_arrays())
    symbols, index = np.array([1, 2, 9], np.int32), np.array([0, 0, 1], np.int32)
    decoder = Decoder(entropy.encode([(symbols, index, tables)]))
    np.testing.assert_array_equal(decoder.decode(index, again), symbols)


def test_misuse_is_refused_before_it_reaches_the_coder() -> None:
    tables = random_tables(np.random.default_rng(0), [4, 4])
    with pytest.raises(ValueError, match="out of range"):
        entropy.encode([(np.zeros(1, np.int32), np.array([2], np.int32), tables)])
    with pytest.raises(ValueError, match="table indices"):
        entropy.encode([(np.zeros(2, np.int32), np.zeros(3, np.int32), tables)])
    with pytest.raises(ValueError, match="finite"):
        entropy.quantize_pmf(np.array([0.5, np.nan]))
    arrays = tables.to_arrays()
    arrays["counts"] = arrays["counts"] + 1
    with pytest.raises(ValueError, match="not a set"):
        Tables.from_arrays(arrays)


def test_what_is_left_over_is_noticed() -> None:
    symbols, index, tables = random_part(np.random.default_rng(3), [4] * 3, 100)
    decoder = Decoder(entropy.encode([(symbols, index, tables)]))
    decoder.decode(index[:50], tables)
    with pytest.raises(CorruptStreamError, match="more than its symbols"):
        decoder.finish()


def test_draw_follows_the_table() -> None:
    tables = Tables.from_pmfs([(-1, np.array([0.1, 0.6, 0.3])), (-1, np.array([0.5, 0.0, 0.5]))])
    uniform = np.random.default_rng(0).integers(0, 1 << 20, 20_000)
    drawn = tables.draw(np.zeros(20_000, np.int32), uniform)
    shares = [(drawn == symbol).mean() for symbol in (-1, 0, 1)]
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], atol=0.01)
