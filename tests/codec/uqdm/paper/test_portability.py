"""Streams of the universal quantiser decode if the network computes slightly different numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import load_codec
from codec.errors import CorruptStreamError, InvalidModelError
from codec.models import zoo
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.paper import calibration
from codec.uqdm.paper.parameter_grid import Guard
from codec.uqdm.paper.scheme import UniversalScheme
from codec.uqdm.paper.windows import Execution
from tests.codec.numerics.settings import careless
from tests.codec.uqdm.paper.test_scheme import small_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, tensors = small_model()
    measured = calibration.quick(UniversalScheme(config, tensors, "cpu"))
    assert (measured.differences > 0).all()
    file = tmp_path_factory.mktemp("model") / zoo.MODEL_FILE
    zoo.write_model(file, config, tensors | {"guards": measured.guards})
    return file


@pytest.fixture
def codec(path: Path) -> UQDMCodec:
    loaded = load_codec(path)
    assert isinstance(loaded, UQDMCodec)
    return loaded


@pytest.fixture(scope="module")
def pictures(photo: np.ndarray) -> list[np.ndarray]:
    sizes = [(64, 64), (1, 1), (40, 70)]
    return [np.ascontiguousarray(photo[90 : 90 + h, 200 : 200 + w]) for h, w in sizes]


@pytest.fixture(scope="module")
def streams(path: Path, pictures: list[np.ndarray]) -> list:
    return load_codec(path).encode(pictures)


Noise = Callable[[int, bool], float]  # by layer, and whether in float64: in guards


def disturb(codec: UQDMCodec, amount: Noise) -> None:
    """Let every parameter of the prior be off by up to so many guards."""
    scheme, rng = codec.scheme, np.random.default_rng(0)
    assert isinstance(scheme, UniversalScheme)
    prior = scheme.prior

    def noisy(picture, layer: int):  # type: ignore[no-untyped-def]
        assert scheme.guards is not None
        mean, scale = prior(picture, layer)
        guard, size = scheme.guards[layer], amount(layer, picture.precise)
        off = rng.uniform(-size, size, (2, len(mean)))
        return mean + guard.mean * off[0], scale * (1 + guard.scale * off[1])

    scheme.prior = noisy  # type: ignore[method-assign]


def same(pictures: list[np.ndarray], decoded: list[np.ndarray]) -> bool:
    return all((a == b).all() for a, b in zip(pictures, decoded, strict=True))


def test_streams_say_that_they_are_protected(streams: list, path: Path, tmp_path: Path) -> None:
    assert all(stream.info.protected for stream in streams)
    config, tensors = zoo.read_model(path)
    del tensors["guards"]
    zoo.write_model(tmp_path / zoo.MODEL_FILE, config, tensors)
    plain = load_codec(tmp_path)
    assert not plain.encode([np.zeros((8, 8, 3), np.uint8)], layers=1)[0].info.protected


def test_noise_up_to_the_guard_changes_nothing(
    codec: UQDMCodec, pictures: list[np.ndarray], streams: list
) -> None:
    disturb(codec, lambda layer, precise: 1.0)
    assert same(pictures, codec.decode(streams))


def test_noise_would_matter_without_protection(codec: UQDMCodec, pictures: list) -> None:
    def tables() -> list[bytes]:
        (coded,) = codec.scheme.encode(pictures[:1], [0], 4)
        return [layer.index_bytes() for layer in coded]

    before = tables()
    disturb(codec, lambda layer, precise: 1.0)
    assert any(a != b for a, b in zip(before, tables(), strict=True))


def test_a_layer_that_fails_is_computed_in_float64(
    codec: UQDMCodec, pictures: list[np.ndarray], streams: list
) -> None:
    asked: list[tuple[int, bool]] = []

    def amount(layer: int, precise: bool) -> float:
        asked.append((layer, precise))
        return 30.0 if layer == 1 and not precise else 0.0

    disturb(codec, amount)
    assert same(pictures, codec.decode(streams))
    assert (1, True) in asked
    assert not {(0, True), (2, True), (3, True)} & set(asked)


@pytest.mark.parametrize("bad", range(4))
def test_a_layer_that_cannot_be_read_is_named_and_those_before_it_decode(
    codec: UQDMCodec, path: Path, streams: list, bad: int
) -> None:
    disturb(codec, lambda layer, precise: 30.0 if layer == bad else 0.0)
    with pytest.raises(
        CorruptStreamError, match=f"layer {bad + 1}: this device computes"
    ) as caught:
        codec.decode(streams)
    assert caught.value.layer == bad
    before = [stream.truncate(bad) for stream in streams]
    assert same(load_codec(path).decode(before), codec.decode(before))


def test_only_the_picture_that_fails_is_computed_again(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    twice = [pictures[0], pictures[0][::-1].copy()]
    streams = codec.encode(twice)
    asked: list[bool] = []

    def amount(layer: int, precise: bool) -> float:
        asked.append(precise)
        return 30.0 if len(asked) == 2 else 0.0  # the second picture's first layer

    disturb(codec, amount)
    assert same(twice, codec.decode(streams))
    assert sum(asked) == 1


def test_attention_computed_otherwise_decodes(
    codec: UQDMCodec, pictures: list[np.ndarray], streams: list
) -> None:
    """Other ways to compute are in tests/codec/test_portability.py."""
    assert isinstance(codec.scheme, UniversalScheme)
    codec.scheme.execution = Execution(fused_attention=False)
    assert same(pictures, codec.decode(streams))


def test_a_careless_user_writes_and_reads_the_same_streams(
    codec: UQDMCodec, pictures: list[np.ndarray], streams: list
) -> None:
    with careless():
        assert codec.encode(pictures) == streams
        assert same(pictures, codec.decode(streams))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_cross_between_cpu_and_gpu(
    codec: UQDMCodec, path: Path, pictures: list[np.ndarray], streams: list
) -> None:
    other = load_codec(path, "cuda")
    with careless():
        assert same(pictures, other.decode(streams))
        theirs = other.encode(pictures)
    assert same(pictures, codec.decode(theirs))


def test_a_smaller_picture_owes_nothing_outside_it_to_the_network(
    codec: UQDMCodec, pictures: list[np.ndarray]
) -> None:
    scheme = codec.scheme
    assert isinstance(scheme, UniversalScheme)
    state = scheme.start([(1, 1)], [4])
    assert state[0].latent.shape == (3, 1, 1)
    scheme.predict(state, 0)
    assert state[0].prediction is not None
    assert state[0].prediction[0].shape == (3, 1, 1)


@pytest.mark.parametrize(
    "guards", [np.full((4, 2), 0.1), np.full((3, 2), 1e-5), np.full((4, 2), -1.0), np.ones((4, 3))]
)
def test_impossible_guards_are_refused(guards: np.ndarray) -> None:
    config, tensors = small_model()
    with pytest.raises(InvalidModelError):
        UniversalScheme(config, tensors | {"guards": torch.from_numpy(guards)}, "cpu")


def test_numbers_at_the_ends_of_the_grid_have_one_neighbour() -> None:
    config, tensors = small_model()
    grid = UniversalScheme(config, tensors, "cpu")._grid
    seen = []

    def settle(rounded):  # type: ignore[no-untyped-def]
        seen.append(rounded)
        return rounded.index

    last = len(grid.edges)
    scale = np.array([0.0, grid.edges[0], grid.edges[0] * 1.001, grid.edges[-1] * 9, np.inf])
    grid.choose(np.zeros(5), scale, Guard(1e-5, 1e-2), settle)
    rows = seen[0]
    assert rows.index.tolist() == [0, 0, 1, last, last]
    assert rows.other.tolist() == [1, 1, 0, last - 1, last - 1]
    assert (rows.distance <= 1).tolist() == [False, True, True, False, False]
