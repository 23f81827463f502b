"""Which residuals are sent: priced as they are coded, and only where it pays."""

import numpy as np
import pytest

from codec.cdc.latents import residual_choice
from codec.cdc.latents.residual_choice import TRADE, choose, prices
from codec.cdc.latents.trees import Trees, build_trees
from codec.cdc.latents.trit_planes import Progress


@pytest.fixture(scope="module")
def trees() -> Trees:
    return build_trees(np.geomspace(0.1, 20, 12))


def coded_bits(trees: Trees, scale: int, residual: int) -> float:
    """Of the trits that lead to a residual."""
    progress, bits = Progress.start(trees, np.array([scale])), 0.0
    while len(where := progress.pending(0)):
        symbols = progress.symbols_for(where, np.array([residual]))
        bits += float(trees.tables.bits(symbols, progress.node[where]).sum())
        progress.advance(where, symbols)
    assert progress.value[0] == residual
    return bits


def test_prices_are_those_of_the_trits(trees: Trees) -> None:
    price = prices(trees)
    middle = price.shape[1] // 2
    for scale, levels in enumerate(trees.levels):
        half = min(3 ** int(levels) // 2, middle)
        for residual in {0, 1, -1, half // 2, half, -half}:
            expected = coded_bits(trees, scale, residual)
            assert price[scale, middle + residual] == pytest.approx(expected, rel=1e-5)
        assert not price[scale, : middle - half].any()


def test_what_is_chosen_is_worth_its_bits(trees: Trees) -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(trees.scales), 50_000)
    wanted = (2 * trees.scales[index] * rng.standard_normal(len(index))).astype(np.float32)
    price = prices(trees)
    chosen, near = choose(wanted, index, price), np.rint(wanted).astype(np.int32)
    moved = chosen != near
    np.testing.assert_array_equal(chosen[moved], (near - np.sign(near))[moved])
    assert 0.02 < moved.mean() < 0.3

    def cost(residuals: np.ndarray) -> np.ndarray:
        middle = price.shape[1] // 2
        inside = residuals.clip(-middle, middle)
        return (wanted - residuals) ** 2 + TRADE * price[index, inside + middle]

    assert (cost(chosen) <= cost(near) + 1e-4).all()
    lower = near - np.sign(near)
    kept = ~moved & (near != 0)
    assert (cost(near) <= cost(lower) + 1e-4)[kept].all()


def test_far_residuals_and_free_bits_change_nothing(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = np.array([-1e6, 41.4, 1e3, 0.0], np.float32)
    chosen = choose(wanted, np.zeros(4, np.int64), prices(trees))
    np.testing.assert_array_equal(chosen, [-1_000_000, 41, 1000, 0])
    monkeypatch.setattr(residual_choice, "TRADE", 0.0)
    wanted = np.linspace(-3, 3, 61, dtype=np.float32)
    chosen = choose(wanted, np.zeros(61, np.int64), prices(trees))
    np.testing.assert_array_equal(chosen, np.rint(wanted))
