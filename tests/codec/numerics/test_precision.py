"""Precision is full where it is asked for, and the user's settings are back afterwards."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from codec import Codec, load_codec
from codec.models import zoo
from codec.numerics import precision
from codec.numerics.precision import full_precision, without_mkldnn
from tests.codec.numerics.settings import careless, precisions

CPU = torch.device("cpu")
BACKENDS: Any = torch.backends
NEW = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="before torch 2.9")


@NEW
def test_settings_of_the_user_do_not_count_inside_and_are_kept() -> None:
    with careless():
        chosen = precisions()
        assert chosen["matmul"] == "tf32"
        assert chosen["mkldnn.matmul"] == "bf16"
        for _ in range(2):
            with full_precision(CPU), full_precision(CPU):
                inside = precisions()
                product = torch.ones(2, 2) @ torch.full((2, 2), 1 + 2.0**-20)
                assert product.dtype == torch.float32
                assert (product == 2 + 2.0**-19).all()
            assert inside.pop("older") == "highest"
            assert not inside.pop("benchmark")
            assert not inside.pop("autocast")
            assert set(inside.values()) == {"ieee"}
            assert precisions() == chosen


@NEW
@pytest.mark.parametrize(
    "choose",
    [
        lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
        lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
        lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
        lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
        lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
        lambda: torch.set_float32_matmul_precision("high"),
    ],
)
def test_the_newer_and_the_older_way_of_setting(choose: Callable[[], None]) -> None:
    """Torch refuses to read some of them where the user mixed them."""

    def state() -> list[Any]:
        owners = [BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn]
        owners += [BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS, BACKENDS.cudnn]
        found: list[Any] = [owner.fp32_precision for owner in owners]
        try:
            return [*found, torch.get_float32_matmul_precision()]
        except RuntimeError:
            return [*found, "mixed"]

    before = state()
    try:
        choose()
        chosen = state()
        with full_precision(CPU):
            assert state()[:2] == state()[3:5] == ["ieee", "ieee"]
            assert state()[-1] == "highest"
        assert state() == chosen
    finally:
        BACKENDS.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        owners = [BACKENDS.cuda.matmul, BACKENDS.cudnn.conv]
        owners += [BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv]
        for owner, value in zip(owners, before[:5], strict=True):
            owner.fp32_precision = value
    assert state() == before


@NEW
def test_threads_share_the_settings_and_the_last_one_gives_them_back() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[dict[str, Any]] = []

    def other() -> None:
        with full_precision(CPU):
            entered.set()
            leave.wait(60)
            seen.append(precisions())

    with careless():
        chosen = precisions()
        with full_precision(CPU):
            thread = threading.Thread(target=other)
            thread.start()
            assert entered.wait(60)
        assert precisions()["matmul"] == "ieee"  # the other one is still inside
        leave.set()
        thread.join()
        assert seen[0]["matmul"] == "ieee"
        assert precisions() == chosen


def test_an_error_inside_gives_the_settings_back() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), full_precision(CPU):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


@pytest.fixture(scope="module", params=sorted(zoo.DEFAULT_MODELS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return load_codec(zoo.DEFAULT_MODELS[request.param])


def test_a_careless_user_writes_and_reads_the_same_streams(codec: Codec, photo: np.ndarray) -> None:
    pictures = [np.ascontiguousarray(photo[:64, :72])]
    streams, decoded = codec.encode(pictures), codec.decode(codec.encode(pictures))
    with careless():
        assert codec.encode(pictures) == streams
        for ours, again in zip(decoded, codec.decode(streams), strict=True):
            np.testing.assert_array_equal(ours, again)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_cross_between_cpu_and_gpu(codec: Codec, photo: np.ndarray) -> None:
    """Symbols are the same; pixels of CDC, and of cut streams, may differ by a level."""
    other = load_codec(codec.name, "cuda")
    pictures = [np.ascontiguousarray(photo[:128, 100:300]), photo[:64, :64]]
    for writer, reader in ((codec, other), (other, codec)):
        streams = writer.encode(pictures)
        with careless():
            read = list(reader.decode_progressively(streams))
        for ours, theirs in zip(writer.decode_progressively(streams), read, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert np.abs(a.astype(int) - b).max() <= 1
        if codec.lossless:
            for picture, decoded in zip(pictures, read[-1], strict=True):
                np.testing.assert_array_equal(picture, decoded)


def test_many_pictures_without_mkldnn(photo: np.ndarray) -> None:
    """Torch then has convolutions by Fourier transforms, for 16 pictures and more."""
    codec = load_codec(zoo.DEFAULT_MODELS["uqdm"])
    pictures = [np.ascontiguousarray(photo[y : y + 64, 200:264]) for y in range(0, 256, 16)]
    streams = codec.encode(pictures, layers=2)
    with without_mkldnn():
        assert codec.encode(pictures, layers=2) == streams
        assert len(codec.decode(streams)) == 16
    assert torch.backends.nnpack.set_flags(True) == (True,)  # as it was


@pytest.mark.parametrize("quick", [True, False])
def test_training_uses_bfloat16_on_a_cpu_where_it_is_quick(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_bfloat16_is_faster", lambda: quick)
    expected = torch.bfloat16 if quick else torch.float32
    with precision.mixed_precision("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    with torch.autocast("cpu", torch.bfloat16), precision.mixed_precision("meta"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
