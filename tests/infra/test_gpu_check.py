"""The check of a GPU, on the substitute device and with very little work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.uqdm.codec import UQDMCodec
from infra import gpu_check
from tests.codec import elsewhere

pytestmark = pytest.mark.skipif(
    not elsewhere.AVAILABLE, reason="this torch takes no device that is written in Python"
)


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    load = gpu_check.Load(((2, 24, 32),), (24, 32), (1, 2), (1, 32), 1)
    monkeypatch.setattr(gpu_check, "STAND_IN", load)
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_check.zoo, "list_models", lambda: ["uqdm"])
    monkeypatch.setattr(gpu_check, "busy_in_job", lambda *_: None)


def test_everything_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu_check.main(["60", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["stand_in"]
    (row,) = found["same"]
    assert (row["model"], row["pictures"], row["bytes_differ"]) == ("uqdm", 2, 0)
    assert {(r["device"], r["batch"]) for r in found["speed"]} == {
        ("elsewhere", 1),
        ("elsewhere", 2),
        ("cpu", 1),
    }
    assert "everything is the same" in capsys.readouterr().out


def test_other_bytes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = UQDMCodec.encode

    def encode(codec: UQDMCodec, pictures: list[np.ndarray], **options: Any) -> Any:
        there = str(codec.device) != "cpu"
        return right(codec, [255 - x for x in pictures] if there else pictures, **options)

    monkeypatch.setattr(UQDMCodec, "encode", encode)
    row = compared()
    assert (row["bytes_differ"], row["right"]) == (2, False)


def test_other_pictures_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = UQDMCodec.decode_progressively

    def decode(codec: UQDMCodec, streams: Any) -> Any:
        for prefix in right(codec, streams):
            yield prefix if str(codec.device) == "cpu" else [x ^ 4 for x in prefix]

    monkeypatch.setattr(UQDMCodec, "decode_progressively", decode)
    row = compared()
    assert (row["largest_error"], row["inexact"], row["right"]) == (4, 1, False)


def compared() -> dict[str, Any]:
    with gpu_check.device_to_check(None) as figures:
        return gpu_check.compare("uqdm", figures, gpu_check.Clock(600))
