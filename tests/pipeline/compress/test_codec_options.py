"""Whole jobs with a codec that has options and is not lossless, in the place of CDC."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from codec.images.files import read_image
from codec.models.zoo import DEFAULT_MODELS
from pipeline.compress.job import CompressOptions, compress
from pipeline.dataset.plan import PlanMismatchError
from pipeline.decode.job import DecodeOptions, decode
from pipeline.running.options import OptionError
from tests.codec import toy
from tests.pipeline.makers import picture, png, samples, write_tar

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.use(monkeypatch)
    return toy.write_model(tmp_path / "rates").parent


@pytest.fixture
def tar(tmp_path: Path) -> str:
    return str(write_tar(tmp_path / "x.tar", [*samples(5), ("odd.png", png(9, 7, 50))]))


def options(tar: str, output: Path, model: object, **changes: Any) -> CompressOptions:
    return CompressOptions((tar,), str(output), str(model), **changes)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.glob("*.tar")
    with tarfile.open(path) as opened:
        return {
            member.name: read_image(opened.extractfile(member).read()).rgb  # type: ignore[union-attr]
            for member in opened
            if member.name.endswith("png")
        }


def test_quality_is_part_of_the_plan(tar: str, model: Path, tmp_path: Path) -> None:
    poor = options(tar, tmp_path / "poor", model, codec_options={"quality": 0})
    assert compress(poor).ok == 6
    assert compress(options(tar, tmp_path / "good", model, codec="cdc")).ok == 6
    sets = [pipeline.open_dataset(str(tmp_path / name)) for name in ("poor", "good")]
    assert sets[0].parameters["codec_options"] == {"quality": 0}
    assert "codec_options" not in sets[1].parameters  # as in archives from before there were any
    sizes = [sum(r.encoded.nbytes for r in each.read()) for each in sets]
    assert sizes[0] < sizes[1]
    errors = [np.abs(each.image("s0001").astype(int) - picture(1)).max() for each in sets]
    assert errors[1] <= 8 < errors[0] <= 32
    assert compress(poor).resumed == 1
    with pytest.raises(PlanMismatchError, match="--quality is 0 there and 1 here"):
        compress(options(tar, tmp_path / "poor", model, codec_options={"quality": 1}))


def test_a_lossy_codec_never_claims_losslessness(tar: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--lossless: the cdc model rates has no lossless layer"):
        compress(options(tar, tmp_path / "set", model, lossless=True))
    assert not (tmp_path / "set").exists()
    fit: dict[str, Any] = {"store_layers": "fit", "keep_original": "bad"}
    for name, changes in {"auto": {}, "fit": fit, "all": {"store_layers": 3}}.items():
        compress(options(tar, tmp_path / name, model, **changes))
        plan = json.loads((tmp_path / name / "dataset.json").read_text())["parameters"]
        assert plan["lossless"] is False
        assert plan["layers"] == 3  # all of them are worth archiving
        assert plan["store_layers"] == ("fit" if name == "fit" else 3)
    kept = [r.encoded.num_layers for r in pipeline.open_dataset(str(tmp_path / "fit")).read()]
    whole = [r.encoded.num_layers for r in pipeline.open_dataset(str(tmp_path / "all")).read()]
    assert set(whole) == {3}
    assert 1 <= min(kept) <= max(kept) <= 3


def test_options_that_the_model_lacks_are_refused_first(
    tar: str, model: Path, tmp_path: Path
) -> None:
    uqdm = DEFAULT_MODELS["uqdm"]
    cases = [
        (uqdm, {"quality": 1}, rf"--quality: the uqdm model {uqdm}: uqdm has no option quality"),
        (model, {"quality": 9}, r"--quality: the cdc model rates: quality must be 0 to 1"),
    ]
    for name, chosen, message in cases:
        with pytest.raises(OptionError, match=message):
            compress(options(tar, tmp_path / "set", name, codec_options=chosen))
    with pytest.raises(OptionError, match=r"--codec uqdm: the model .*rates is a cdc model"):
        compress(options(tar, tmp_path / "set", model, codec="uqdm"))
    assert not (tmp_path / "set").exists()


def test_decoding_with_options(tar: str, model: Path, tmp_path: Path) -> None:
    compress(options(tar, tmp_path / "set", model))

    def run(name: str, batch_size: int = 32, **chosen: Any) -> dict[str, np.ndarray]:
        out = tmp_path / name
        summary = decode(
            DecodeOptions(
                str(tmp_path / "set"), str(out), codec_options=chosen, batch_size=batch_size
            )
        )
        assert (summary.exit_code, summary.ok) == (0, 6)
        return pictures(out)

    plain = run("plain")
    drawn = run("drawn", decoder="diffusion", seed=3)
    alone = run("alone", batch_size=1, decoder="diffusion", seed=3)
    other = run("other", decoder="diffusion", seed=4)
    assert all((drawn[name] == alone[name]).all() for name in plain)  # whatever is beside it
    assert all((drawn[name] != other[name]).any() for name in plain)
    assert all((drawn[name] != plain[name]).any() for name in plain)
    dataset = pipeline.open_dataset(str(tmp_path / "set"))
    image = dataset.image("odd", decoder="diffusion", seed=3)
    assert (image == drawn["odd.png"]).all()
    with pytest.raises(PlanMismatchError, match="--seed is 3 there and 4 here"):
        run("drawn", decoder="diffusion", seed=4)


def test_options_that_the_dataset_lacks_are_refused_first(
    tar: str, model: Path, tmp_path: Path
) -> None:
    compress(options(tar, tmp_path / "set", model))
    dataset = pipeline.open_dataset(str(tmp_path / "set"))
    out = tmp_path / "out"
    wrong = DecodeOptions(dataset.url, str(out), codec_options={"no_such": 1})
    with pytest.raises(OptionError, match=r"--no-such: .*set: cdc has no option no_such"):
        decode(wrong)
    assert not out.exists()
    with pytest.raises(TypeError, match="cdc has no option steps"):
        dataset.image("no-such-key", steps=4)


def test_what_only_bounds_memory_may_change_between_runs(
    tar: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.ToyCodec, "resource_options", frozenset({"quality"}), raising=False)
    output = tmp_path / "set"
    assert compress(options(tar, output, model, codec_options={"quality": 0})).ok == 6
    assert compress(options(tar, output, model)).resumed == 1
    assert "codec_options" not in pipeline.open_dataset(str(output)).parameters
