"""Damaged and forged streams end in one of two errors, or in the right picture; a sample."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import CorruptStreamError, EncodedImage, UnknownModelError, load_codec
from codec.models.zoo import DEFAULT_MODELS
from codec.stream import bitstream
from tests.fuzz import streams, targets
from tests.fuzz.mutations import Mutant, mutate, repair
from tests.fuzz.targets import Target

SEEDS = Path(__file__).parent / "seeds"


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("nested")
    codec = targets.nested(folder, targets.few_levels(), blocks=1)
    return Target.of("nested", codec, (24,))


@pytest.fixture(scope="module")
def cdc() -> Target:
    return Target.of("cdc", load_codec("cdc-small"), (24,))


def test_a_sample_of_the_mutations(nested: Target, cdc: Target) -> None:
    report = streams.run([nested, cdc], 200, seed=8)
    # Time and memory are the script's to judge: here others use the machine, too.
    wrong = [one for one in report.failures if " took " not in one]
    assert not wrong
    assert report.outcomes["CorruptStreamError"] > 60
    assert {"right picture", "forgery"} <= report.outcomes.keys()


@given(st.integers(0, 1 << 32), st.integers(0, 19))
@settings(max_examples=60)
def test_mutations_of_any_seed(nested: Target, seed: int, way: int) -> None:
    mutant = mutate(random.Random(seed), nested.sound)
    assert streams.attempt(nested, mutant, way)


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=8))
@settings(max_examples=60)
def test_any_changed_bytes_are_marked(nested: Target, changes: list[tuple[int, int]]) -> None:
    data = bytearray(nested.sound[0].to_bytes())
    for at, change in changes:
        data[at % len(data)] ^= change
    same = bytes(data) == nested.sound[0].to_bytes()
    outcome = streams.attempt(nested, Mutant(bytes(data), repaired=False), way=0)
    assert same == (outcome == "right picture")


@given(st.binary(max_size=400), st.integers(0, 6))
@settings(max_examples=60)
def test_any_payload_behind_right_checksums(nested: Target, payload: bytes, number: int) -> None:
    sound = nested.sound[0]
    layers = [*sound.layers]
    number %= len(layers)
    layers[number] = layers[number][:4] + payload
    forged = repair(EncodedImage(sound.header, tuple(layers)), sound.info.model)
    for check in (False, True):
        mutant = Mutant(forged.to_bytes(), repaired=True)
        if check:
            assert streams.attempt(nested, mutant, way=0) != "right picture"
        else:
            with streams.unchecked():
                streams.attempt(nested, mutant, way=0)


@pytest.mark.parametrize("path", sorted(SEEDS.iterdir()), ids=lambda path: path.name)
def test_kept_seeds_decode_or_are_marked(path: Path) -> None:
    """What a fuzzer starts from, and what one has found."""
    codec = load_codec(DEFAULT_MODELS[path.name.split("-")[0]])
    try:
        stream = EncodedImage.from_bytes(path.read_bytes(), allow_truncated=True)
        (picture,) = codec.decode([stream])
    except (CorruptStreamError, UnknownModelError):
        assert "found" in path.name
    else:
        assert picture.shape == (stream.height, stream.width, 3)
        assert picture.dtype == np.uint8


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Target:
    codec = targets.protected(tmp_path_factory.mktemp("guarded"))
    return Target.of("universal with protection", codec, (20,))


@given(data=st.data())
@settings(max_examples=15)
def test_any_protection(guarded: Target, data: st.DataObject) -> None:
    """Whatever the equations say: the picture, or an error."""
    sound = guarded.sound[0]
    number = data.draw(st.integers(0, 1))
    body = sound.layers[number][4:]
    length, start = bitstream.read_varint(body, 0, "the protection")
    changed = bytearray(body[start : start + length])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        changed = changed[: data.draw(st.integers(0, len(changed)))]
    rest = bitstream.varint(len(changed)) + bytes(changed) + body[start + length :]
    layers = (*sound.layers[:number], bytes(4) + rest)
    forged = repair(EncodedImage(sound.header, layers), sound.info.model)
    outcome = streams.attempt(guarded, Mutant(forged.to_bytes(), repaired=False), way=0)
    assert outcome in ("right picture", "CorruptStreamError")


def test_the_script_notices_what_it_should(nested: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that crashes, one that says nothing, and one that does neither."""
    sound = Mutant(nested.sound[0].to_bytes(), repaired=False)
    assert streams.attempt(nested, sound, way=0) == "right picture"
    other = Mutant(nested.sound[-1].to_bytes(), repaired=False)
    wrong = Target("wrong", nested.codec, nested.sound, {})
    with pytest.raises(streams.Failure, match="unmarked wrong picture"):
        streams.attempt(wrong, other, way=0)
    usual = streams.Cost(seconds=1.2, grown=100.0)
    for seconds, grown, fair in ((2.3, 390.0, True), (2.5, 0.0, False), (0.1, 410.0, False)):
        assert streams._as_sound(streams.Cost(seconds, grown=grown), usual) == fair
    assert streams.sound_cost(nested, b"STRA", 0) is None
    assert streams.sound_cost(nested, nested.sound[0].to_bytes(), 0) is not None

    def crash(*_: object, **__: object) -> None:
        raise BaseException("a panic")

    monkeypatch.setattr(nested.codec, "decode", crash)
    with pytest.raises(streams.Failure, match="a panic"):
        streams.attempt(nested, sound, way=0)
