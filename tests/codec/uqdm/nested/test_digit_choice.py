"""The encoder's choice of digits: never worse than the nearest ones, and what training assumes."""

import numpy as np
import pytest
import torch

from codec.stream.entropy import Tables
from codec.uqdm.nested import digit_choice
from codec.uqdm.nested.digit_choice import Prices, choose, likely_digits
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.small_models import nested_model, noise_pictures

REACH = 5 / 6


def some_tables(count: int) -> tuple[Tables, np.ndarray, np.ndarray]:
    """Random tables of digits -2..2, which of them codes each of ``count`` numbers, and pmfs."""
    rng = np.random.default_rng(0)
    pmfs = rng.dirichlet([0.3, 1, 4, 1, 0.3], 50)
    tables = Tables.from_matrix(-2, pmfs * (1 - 1e-5))
    return tables, rng.integers(0, 50, count).astype(np.int32), pmfs


def chosen(rest: np.ndarray, tables: Tables, index: np.ndarray) -> np.ndarray:
    tensors = torch.from_numpy(rest.astype(np.float32)), torch.from_numpy(index)
    return choose(*tensors, Prices(tables, "cpu"), REACH).numpy()


def test_prices_are_those_of_the_tables() -> None:
    symbols = np.arange(-60, 60, dtype=np.int32)
    tables, index, _ = some_tables(len(symbols))
    prices = Prices(tables, "cpu")
    found = prices.of(torch.from_numpy(symbols), torch.from_numpy(index))
    np.testing.assert_allclose(found.numpy(), tables.bits(symbols, index), rtol=1e-6)
    # Far beyond they no longer grow, and nothing fails.
    ends = torch.tensor([-(1 << 20), 1 << 20], dtype=torch.int32)
    far = prices.of(ends, torch.from_numpy(index[:2]))
    assert (far > found.max() - 8).all()


def test_no_digit_is_worse_than_the_nearest_or_the_next_towards_zero() -> None:
    rest = np.random.default_rng(1).laplace(0, 0.6, (5, 1000)).astype(np.float32)
    tables, index, _ = some_tables(rest.size)
    digits = chosen(rest, tables, index.reshape(rest.shape))
    assert digits.dtype == np.int32
    assert digits.shape == rest.shape
    rest, digits = rest.ravel(), digits.ravel()

    def cost(digits: np.ndarray) -> np.ndarray:
        return (rest - digits) ** 2 + digit_choice.TRADE * tables.bits(digits, index)

    near = np.rint(rest).astype(np.int32)
    lower = near - np.sign(near)
    assert ((digits == near) | (digits == lower)).all()
    assert 0.05 < (digits != near).mean() < 0.5
    far = np.abs(rest - lower) > REACH
    assert (digits[far] == near[far]).all()
    best = np.minimum(cost(near), cost(lower))
    np.testing.assert_allclose(cost(digits)[~far], best[~far], rtol=1e-5)
    # An escape costs what its exact value does: 2 needs none, 8 is no dearer than 7.
    assert chosen(np.array([2.6, 7.6]), tables, index[:2]).tolist() == [2, 8]


def test_training_assumes_the_same() -> None:
    rest = np.random.default_rng(2).laplace(0, 0.6, 5000).clip(-2.4, 2.4)
    tables, index, pmfs = some_tables(len(rest))
    log_p = torch.from_numpy(np.log(pmfs[index]))
    entries = likely_digits(torch.from_numpy(rest), log_p, REACH)
    digits = chosen(rest, tables, index)
    assert (entries.numpy() - 2 != digits).mean() < 1e-3  # tables are rounded


def test_a_stream_is_worth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """J = D + lambda R of all that is decoded after two levels, against the nearest digits."""
    model = nested_model()
    scheme = NestedScheme(model_config(model), export(model), "cpu")
    pictures = list(noise_pictures(3, 64, seed=7).permute(0, 2, 3, 1).numpy())
    delta = model.config.first_delta / 3 * 128  # of the second level, in pixel values
    trade = digit_choice.TRADE

    def total() -> float:
        streams = scheme.encode(pictures, [0] * len(pictures), 2)
        parts = [part for stream in streams for layer in stream for part in layer.parts()]
        bits = sum(tables.bits(symbols, index).sum() for symbols, index, tables in parts)
        state = scheme.start([(64, 64)] * len(pictures), [0] * len(pictures))
        for layer in range(2):
            for number in range(scheme.passes(layer)):
                scheme.choices(state, layer, number)
                symbols = [stream[layer].symbols[number] for stream in streams]
                scheme.update(state, layer, number, symbols)
        shown = scheme.reconstruct(state, 2)
        pairs = zip(pictures, shown, strict=True)
        error = sum(np.sum((a.astype(float) - b) ** 2) for a, b in pairs)
        return error / delta**2 + trade * bits

    worth = total()
    monkeypatch.setattr(digit_choice, "TRADE", 0.0)
    assert worth < 0.985 * total()
