"""Another process codes the same bytes as this one, and its death loses nothing."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codec import Codec, coder_process, load_codec
from codec.coder_process import AVAILABLE, Coding, Helper
from codec.models import zoo
from tests.codec.small_models import write_nested_model
from tests.codec.uqdm.paper.test_scheme import small_codec

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this system has no memory without a file")


@pytest.fixture
def helper() -> Iterator[Helper]:
    one = Helper()
    yield one
    one.close()


@pytest.fixture(scope="module")
def some(photo: np.ndarray) -> list[np.ndarray]:
    sizes = [(40, 40), (150, 160), (1, 1), (40, 40), (9, 70)]
    return [np.ascontiguousarray(photo[90 : 90 + h, 150 : 150 + w]) for h, w in sizes]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return load_codec(write_nested_model(tmp_path_factory.mktemp("model")))


def begin(codec: Codec, pictures: list[np.ndarray]) -> Coding:
    coding = codec.begin_encode(pictures)
    assert isinstance(coding, Coding)
    return coding


@pytest.mark.parametrize("name", [*zoo.list_models(), "universal"])
def test_the_same_streams(
    name: str, helper: Helper, some: list[np.ndarray], tmp_path: Path
) -> None:
    codec = small_codec(tmp_path) if name == "universal" else load_codec(name)
    for pictures in (some, []):
        assert begin(codec, pictures).by(helper) == codec.encode(pictures)
    assert helper.pid not in (None, os.getpid())


@pytest.mark.parametrize("name", ["nested", "cdc-small"])
def test_large_pictures_between_small_ones(
    name: str, helper: Helper, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared memory that grows, is used in part, and again."""
    monkeypatch.setattr(coder_process, "_REQUEST_PIXELS", 1 << 16)
    codec = load_codec(name) if name != "nested" else codec
    rng = np.random.default_rng(0)
    sides = [16, 260, 24, 16, 265, 150]
    pictures = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for side in sides]
    assert begin(codec, pictures).by(helper) == codec.encode(pictures)


def test_a_helper_may_die(helper: Helper, codec: Codec, some: list[np.ndarray]) -> None:
    expected = codec.encode(some)
    assert begin(codec, some).by(helper) == expected
    first = helper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert begin(codec, some).by(helper) == expected
    assert begin(codec, some).by(helper) == expected
    assert helper.pid not in (None, first)


def test_helpers_that_cannot_live_are_given_up(
    helper: Helper, codec: Codec, some: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    started: list[int | None] = []
    start = Helper._start

    def counted(self: Helper) -> None:
        start(self)
        started.append(self.pid)

    monkeypatch.setattr(Helper, "_start", counted)
    expected = codec.encode(some)
    for _ in range(5):
        assert begin(codec, some).by(helper) == expected
    assert len(started) == 3


def test_an_interrupt_is_for_others(helper: Helper, codec: Codec, some: list[np.ndarray]) -> None:
    """Ctrl-C reaches all processes of a terminal, and what runs is to be finished."""
    begin(codec, some).by(helper)
    pid = helper.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    begin(codec, some).by(helper)
    assert helper.pid == pid


def test_its_errors_are_raised_here(helper: Helper, codec: Codec, some: list[np.ndarray]) -> None:
    coding = begin(codec, some[:1])
    (picture,) = coding.pictures
    (layer, *_) = picture.layers
    wrong = replace(layer, symbols=tuple(symbols[:-1] for symbols in layer.symbols))
    coding.pictures[:] = [replace(picture, layers=[wrong])]
    with pytest.raises(ValueError, match="table indices"):
        coding.by(helper)
    pid = helper.pid
    assert begin(codec, some).by(helper) == codec.encode(some)
    assert helper.pid == pid


def test_it_ends_with_its_object(codec: Codec, some: list[np.ndarray]) -> None:
    helper = Helper()
    begin(codec, some).by(helper)
    pid = helper.pid
    assert pid is not None
    del helper
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Even where that has no time for farewells."""
    script = """
import os, signal, sys
import numpy as np
from codec import load_codec
from codec.coder_process import Helper
helper = Helper()
load_codec(sys.argv[1]).begin_encode([np.zeros((8, 8, 3), np.uint8)]).by(helper)
print(helper.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    model = write_nested_model(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pid = int(done.stdout)
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still there")


def test_it_needs_no_torch() -> None:
    modules = "codec.coder_process, codec.cdc.latents.symbols"
    check = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", check],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
