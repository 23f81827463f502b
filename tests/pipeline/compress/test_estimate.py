"""The estimate of a dry run, compared with the job itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.images.files import write_image
from codec.models.zoo import DEFAULT_MODELS
from pipeline.compress import estimate as estimate_module
from pipeline.compress import trial
from pipeline.compress.estimate import Choice, Estimate, estimate
from pipeline.compress.job import CompressOptions, compress
from pipeline.running.options import OptionError
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture(autouse=True)
def models(toy: ToyCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ToyCodec(toy.model_path)
    other.name = "other"
    models = {"toy": toy, DEFAULT_MODELS["cdc"]: other}
    monkeypatch.setattr(estimate_module, "load_codec", lambda name, device: models[name])


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Pictures that the toy codec makes smaller, and some that it does not."""
    tars = []
    for shard in range(3):
        files: list[tuple[str, bytes]] = []
        for n in range(shard * 6, shard * 6 + 6):
            if n % 3:
                flat = np.full((96, 96, 3), n, np.uint8)
                flat[:48] = picture(n, 48, 96)
                files.append((f"{n}.png", write_image(flat, None, "png")))
            else:
                files.append((f"{n}.jpg", write_image(picture(n, 96, 96), None, "jpg", quality=50)))
            files.append((f"{n}.npy", np.random.default_rng(n).bytes(1500) + bytes(1500)))
        tars.append(str(write_tar(tmp_path / f"{shard}.tar", files)))
    return tars


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lossless": True},
        {"keep_original": "always"},
        {"target_quality": "30dB"},
        {"store_layers": 1, "keep_original": "never"},
    ],
)
def test_it_is_what_comes_then(corpus: list[str], tmp_path: Path, options: dict[str, Any]) -> None:
    given = CompressOptions(tuple(corpus), str(tmp_path / "set"), "toy", **options)
    found = estimate(given)
    assert not (tmp_path / "set").exists()
    assert (found.shards, found.pictures, found.sampled) == (3, 18, 18)
    then = compress(given)
    assert found.input_bytes == then.totals["input_bytes"]
    (choice, *others) = found.choices
    assert choice.archive_bytes == pytest.approx(then.totals["archive_bytes"], rel=0.1)
    kept = sum(n for why, n in then.totals["by_reason"].items() if "kept" in why)
    if "lossless" not in options:
        assert choice.exact == pytest.approx(kept / 18)
    else:
        assert (choice.exact, choice.worst) == (1, None)
    assert found.exit_code == 0
    names = [other.name for other in others]
    assert "--target-quality 70" in names
    assert ("no options: visually lossless" in names) == bool(options)


def test_some_shards_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PICTURES", 8)
    for shard in range(9):
        write_tar(tmp_path / f"{shard}.tar", samples(6, 10 * shard))
    (tmp_path / "4.tar").write_bytes((tmp_path / "4.tar").read_bytes()[:3000])
    found = estimate(CompressOptions((str(tmp_path / "*.tar"),), str(tmp_path / "set"), "toy"))
    assert (found.shards, found.sampled_shards, found.sampled) == (9, 3, 6)
    assert found.pictures == pytest.approx(6 * 9, rel=0.15)
    assert any("4.tar" in note and "cut short" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_json()))["choices"]


def test_time_is_limited(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "TOGETHER", 1)
    found = estimate(CompressOptions(tuple(corpus), str(tmp_path / "set"), "toy"))
    assert (found.sampled, found.sampled_shards) == (1, 1)


def test_nothing_to_look_at(tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "x.tar", [("a.txt", b"x"), ("b.png", png(1)[:40])]))
    found = estimate(CompressOptions((tar,), str(tmp_path / "set"), "toy"))
    assert found.choices == []
    assert found.bad == 1
    assert "have no picture" in "\n".join(found.lines())
    with pytest.raises(OptionError, match="--target-quality"):
        estimate(CompressOptions((tar,), "set", "toy", target_quality="very good"))


def test_it_fits_a_terminal() -> None:
    found = Estimate(
        "estimated",
        shards=100_000,
        input_bytes=10**13,
        pictures=123_456_789,
        sampled=32,
        sampled_shards=4,
        workers=1000,
        worker_seconds=1e9,
        choices=[Choice("files byte for byte, and previews", 999 * 10**12, 1.0, None, 90.31)],
    )
    lines = found.lines()
    assert max(map(len, lines)) <= 80, lines
    assert lines[-1].split()[-4:] == ["100", "%", "exact", "90.3"]
    assert any("277,777.8 worker hours" in line for line in lines)
