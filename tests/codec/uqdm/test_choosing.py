"""The encoder's choice of digits: never worse than the nearest ones, and what training assumes."""

import numpy as np
import pytest
import torch

from codec.entropy import Tables
from codec.scheme import Choice
from codec.uqdm import choosing
from codec.uqdm.choosing import choose
from codec.uqdm.nested_model import _chosen
from codec.uqdm.nested_scheme import NestedScheme
from tests.codec.models import nested_model, noise_pictures

REACH = 5 / 6


def choice(count: int) -> tuple[Choice, np.ndarray]:
    """Random tables of digits -2..2 for ``count`` numbers, and those tables' probabilities."""
    rng = np.random.default_rng(0)
    pmfs = rng.dirichlet([0.3, 1, 4, 1, 0.3], 50)
    tables = Tables.from_matrix(-2, pmfs * (1 - 1e-5))
    return Choice(rng.integers(0, 50, count).astype(np.int32), tables), pmfs


def cost(digits: np.ndarray, rest: np.ndarray, chosen: Choice) -> np.ndarray:
    return (rest - digits) ** 2 + choosing.TRADE * chosen.tables.bits(digits, chosen.index)


def test_no_digit_is_worse_than_the_nearest_or_the_next_towards_zero() -> None:
    rest = np.random.default_rng(1).laplace(0, 0.6, 5000)
    chosen, _ = choice(len(rest))
    digits = choose(rest, chosen, REACH)
    near = np.rint(rest).astype(np.int32)
    lower = near - np.sign(near)
    assert digits.dtype == np.int32
    assert ((digits == near) | (digits == lower)).all()
    assert 0.05 < (digits != near).mean() < 0.5
    far = np.abs(rest - lower) > REACH
    assert (digits[far] == near[far]).all()
    best = np.minimum(cost(near, rest, chosen), cost(lower, rest, chosen))
    np.testing.assert_allclose(cost(digits, rest, chosen)[~far], best[~far])
    # An escape costs what its exact value does: 2 needs none, 8 is no dearer than 7.
    assert choose(np.array([2.6, 7.6]), choice(2)[0], REACH).tolist() == [2, 8]


def test_training_assumes_the_same() -> None:
    rest = np.random.default_rng(2).laplace(0, 0.6, 5000).clip(-2.4, 2.4)
    chosen, pmfs = choice(len(rest))
    log_p = torch.from_numpy(np.log(pmfs[chosen.index]))
    entries = _chosen(torch.from_numpy(rest), log_p, REACH)
    digits = choose(rest, chosen, REACH)
    assert (entries.numpy() - 2 != digits).mean() < 1e-3  # tables are rounded


def test_a_stream_is_worth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """J = D + lambda R of all that is decoded after two levels, against the nearest digits."""
    model = nested_model()
    scheme = NestedScheme(model.model_config(), model.export(), "cpu")
    pictures = list(noise_pictures(3, 64, seed=7).permute(0, 2, 3, 1).numpy())
    delta = model.config.first_delta / 3 * 128  # of the second level, in pixel values
    trade = choosing.TRADE

    def total() -> float:
        streams = scheme.encode(pictures, [0] * len(pictures), 2)
        parts = [part for stream in streams for layer in stream for part in layer.parts()]
        bits = sum(tables.bits(symbols, index).sum() for symbols, index, tables in parts)
        state = scheme.start([(64, 64)] * len(pictures), [0] * len(pictures))
        for layer in range(2):
            for number in range(scheme.passes(layer)):
                symbols = [stream[layer].symbols[number] for stream in streams]
                scheme.update(state, layer, number, symbols)
        shown = scheme.reconstruct(state, 2)
        pairs = zip(pictures, shown, strict=True)
        error = sum(np.sum((a.astype(float) - b) ** 2) for a, b in pairs)
        return error / delta**2 + trade * bits

    chosen = total()
    monkeypatch.setattr(choosing, "TRADE", 0.0)
    assert chosen < 0.98 * total()
