"""A stream's tuning of the lossless layer's network: what it saves, and that it decodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch

from codec import CorruptStreamError
from codec.scheme import LayerSymbols
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import pixel_lattice, tuning
from codec.uqdm.nested.tuning import Tuning
from tests.codec.ideal import cross_entropy
from tests.codec.small_models import LAYERS, nested_codec
from tests.format.make_golden import picture

LAYER = LAYERS - 1


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"))


@contextmanager
def untuned() -> Iterator[None]:
    """An encoder that finds no tuning."""
    with mock.patch.object(tuning.Tuner, "_find"):
        yield


def last_layer(codec: UQDMCodec, *pictures: np.ndarray) -> list[LayerSymbols]:
    streams = codec.scheme.encode(pictures, [0] * len(pictures), LAYER + 1)
    return [list(stream)[LAYER] for stream in streams]


def bits(layer: LayerSymbols) -> list[float]:
    """Of each pass."""
    return [cross_entropy(*part) for part in layer.parts()]


def flat(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def lattice(height: int, width: int) -> np.ndarray:
    """A soft picture of which one colour is brighter at one place of each cell."""
    found = picture(height, width, scale=2) // 2 + 40
    found[1::2, ::2, 0] += 9
    return found


def test_what_no_network_can_know_is_told_once(codec: UQDMCodec) -> None:
    original = lattice(96, 96)
    (tuned,) = last_layer(codec, original)
    with untuned():
        (plain,) = last_layer(codec, original)
    last_red = tuning.PASSES + pixel_lattice.PASSES.index(((1, 0), 0))
    assert bits(tuned)[last_red] < 0.9 * bits(plain)[last_red]
    assert sum(bits(tuned)) < 0.97 * sum(bits(plain))
    np.testing.assert_array_equal(codec.decode(codec.encode([original]))[0], original)


def test_what_it_costs_is_never_far_more_than_it_saves(codec: UQDMCodec) -> None:
    """Nothing to save: twelve units and shifts of zero, of which each takes a bit or two."""
    for original in (flat(20, 20), flat(1, 1), picture(9, 7), picture(40, 40)):
        (tuned,) = last_layer(codec, original)
        with untuned():
            (plain,) = last_layer(codec, original)
        assert sum(bits(tuned)) < sum(bits(plain)[tuning.PASSES :]) + 38


def test_a_picture_has_its_own_whatever_is_encoded_beside_it(codec: UQDMCodec) -> None:
    pictures = [lattice(96, 96), flat(96, 96), picture(96, 96, scale=2)]
    together = codec.encode(pictures)
    assert together == [codec.encode([one])[0] for one in pictures]
    np.testing.assert_array_equal(codec.decode(together), pictures)


def test_small_pictures_have_few_coefficients(codec: UQDMCodec) -> None:
    small, large = (last_layer(codec, lattice(side, side))[0].symbols for side in (64, 96))
    units = [symbols[0][::2] for symbols in (small, large)]
    assert units[0].max() > tuning.UNITS
    assert not ((units[0] > 0) & (units[0] <= tuning.UNITS)).any()
    assert ((units[1] > 0) & (units[1] <= tuning.UNITS)).any()
    counts = [0 if not unit else 1 + (n % 3) * tuning.ERRORS for n, unit in enumerate(units[0])]
    assert len(small[1]) == sum(counts)


def test_a_sample_of_a_large_picture_tells_as_much(
    codec: UQDMCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = lattice(128, 144)
    (whole,) = last_layer(codec, original)
    monkeypatch.setattr(tuning, "_SAMPLES", 1024)
    (sampled,) = last_layer(codec, original)
    assert [len(x) for x in sampled.symbols[2:]] == [len(x) for x in whole.symbols[2:]]
    assert sum(bits(whole)) < sum(bits(sampled)) < 1.05 * sum(bits(whole))


def test_the_sums_of_normal_equations_are_exact(codec: UQDMCodec) -> None:
    """The largest numbers that there can be, against whole numbers of any size."""
    count, spreads = 2 * tuning._SAMPLES, torch.arange(pixel_lattice.SPREAD.size)
    seen = torch.full((1, count, 2), -127.0).double()
    seen[..., 1] = tuning.CONSTANT
    out = torch.zeros(1, count, 2).double()
    out[..., 1] = spreads.repeat(count)[:count]
    values = torch.full((1, count), 255.0 * 16).double()
    sample = tuning._Sample(seen, values, torch.zeros_like(values), out, 1.0)
    square, product = sample.normal_equations()
    backwards = tuning._Sample(*(x.flip(1) for x in (seen, values, 0 * values, out)), 1.0)
    for found, same in zip((square, product), backwards.normal_equations(), strict=True):
        np.testing.assert_array_equal(found, same)
    ratio = square[0, 0, 0] / square[0, 1, 1]
    assert ratio == (127 / tuning.CONSTANT) ** 2
    largest = 127**2 * tuning._WEIGHTS * count
    assert largest < 2**53
    error = (3 * 2.0 ** pixel_lattice.SPREAD.values()[-1] + 1) * 16
    assert 127 * tuning._WEIGHTS * count * error < 2**53


def sample_of(seen: torch.Tensor, wanted: torch.Tensor, noise: torch.Tensor) -> tuning._Sample:
    """One with pixels that are so far off, ``(B, N, n)``, ``(B, n)`` and ``(B, N)``."""
    base = torch.full_like(noise, 2000.0)
    values = (base + (seen @ wanted[..., None])[..., 0] + noise).round()
    out = torch.zeros(*noise.shape, 2).double()
    out[..., 1] = 16  # a scale of two pixel values
    return tuning._Sample(seen, values, base, out, 1.0)


def found_in(codec: UQDMCodec, sample: tuning._Sample) -> tuple[np.ndarray, np.ndarray]:
    tuner = tuning.Tuner.of(torch.zeros(2, 3, 1, 1), 4, codec.scheme.tables)
    kinds = np.full(sample.seen.shape[-1], tuning._SEEN)
    return tuner._coefficients(*sample.normal_equations(), kinds, False, 1.0)


@pytest.mark.parametrize("outliers", [0, 200])
def test_planted_coefficients_are_found(codec: UQDMCodec, outliers: int) -> None:
    rng = torch.Generator().manual_seed(0)
    count, n = 6000, 5
    seen = torch.randint(-60, 61, (2, count, n), generator=rng).double()
    seen[..., -1] = tuning.CONSTANT
    wanted = torch.tensor([[0.5, 0, 0, -0.25, 4.0], [0, 0, 0, 0, 0]]).double()
    noise = torch.randn(2, count, generator=rng).double() * 8
    noise[0, :outliers] += 1500 * seen[0, :outliers, 1].sign()
    units, chosen = found_in(codec, sample_of(seen, wanted, noise))
    assert units[1] == 0
    assert not chosen[1].any()
    found = chosen[0] * 0.5 ** tuning.exponents(units[0])
    np.testing.assert_allclose(found, wanted[0], atol=0.3 if outliers else 0.06)


def test_what_is_rounded_in_one_number_is_made_up_for_in_the_next(
    codec: UQDMCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "UNITS", 1)
    rng = torch.Generator().manual_seed(0)
    seen = torch.randint(-60, 61, (1, 4000, 3), generator=rng).double()
    seen[..., 1] = seen[..., 0] + torch.randint(-1, 2, (1, 4000), generator=rng)
    seen[..., 2] = tuning.CONSTANT
    noise = torch.randn(1, 4000, generator=rng).double() * 8
    wanted = torch.tensor([[0.4, 0.4, 0.0]]).double()
    units, chosen = found_in(codec, sample_of(seen, wanted, noise))
    assert units.tolist() == [1]
    assert chosen[0, :2].sum() == 1


@pytest.mark.parametrize(
    ("number", "at", "value"), [(0, 0, 15), (0, 0, -1), (0, 1, 13), (1, 0, 128), (1, 3, -128)]
)
def test_forged_tunings_are_refused(codec: UQDMCodec, number: int, at: int, value: int) -> None:
    state = codec.scheme.start([(16, 16)], [0])
    for layer in range(LAYER):
        for turn in range(codec.scheme.passes(layer)):
            (choice,) = codec.scheme.choices(state, layer, turn)
            codec.scheme.update(state, layer, turn, [np.zeros(len(choice.index), np.int32)])
    for turn in range(number + 1):
        (choice,) = codec.scheme.choices(state, LAYER, turn)
        symbols = np.zeros(len(choice.index), np.int32)
        if turn == 0 < number:
            symbols[0] = 1
        if turn == number:
            symbols[at] = value
            with pytest.raises(CorruptStreamError, match=f"layer {LAYER + 1} has a tuning"):
                codec.scheme.update(state, LAYER, turn, [symbols])
        else:
            codec.scheme.update(state, LAYER, turn, [symbols])


def test_symbols_come_back(codec: UQDMCodec) -> None:
    rng = np.random.default_rng(0)
    one = Tuning.none(3, 5, codec.scheme.tables["tuning"])
    one.units[:] = rng.integers(0, 15, one.units.shape)
    one.shifts[:] = rng.integers(-12, 13, one.shifts.shape)
    for i, units in enumerate(one.units):
        coded = one._coded(units)
        one.coefficients[i][coded] = rng.integers(-127, 128, coded.sum())
    other = Tuning.none(3, 5, codec.scheme.tables["tuning"])
    for number in range(tuning.PASSES):
        choices = other.choices(number)
        parts = [one.parts(i) for i in range(3)]
        for choice, (expected, symbols) in zip(choices, parts, strict=True):
            np.testing.assert_array_equal(choice.index, expected[number].index)
            assert len(choice.index) == len(symbols[number])
        other.take(number, [symbols[number] for _, symbols in parts], LAYER)
    for name in ("units", "shifts", "coefficients"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
