"""CDC through whole jobs: a dataset that carries its model, decoded fast and by diffusion."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import pipeline
from codec.images.files import read_image
from pipeline.compress.job import CompressOptions, compress
from pipeline.decode.job import DecodeOptions, decode
from pipeline.running.options import OptionError
from tests.codec.cdc.models import light_config, write_model
from tests.pipeline.makers import png, samples, write_tar

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", light_config()).parent


def read(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.glob("*.tar")
    with tarfile.open(path) as opened:
        return {
            member.name: read_image(stream.read()).rgb
            for member in opened
            if member.name.endswith("png") and (stream := opened.extractfile(member))
        }


def test_a_dataset_of_cdc_streams(model: Path, tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "x.tar", [*samples(3), ("odd.png", png(9, 7, 50))]))
    archive = str(tmp_path / "set")
    given = {"quality": 0, "tile_pixels": 1 << 20}
    made = compress(CompressOptions((tar,), archive, str(model), codec_options=given))
    assert made.ok == 4
    shutil.rmtree(model)  # the dataset carries its own
    dataset = pipeline.open_dataset(archive)
    assert dataset.parameters["codec"] == "cdc"
    assert dataset.parameters["codec_options"] == {"quality": 0}
    assert not dataset.parameters["lossless"]
    decode(DecodeOptions(archive, str(tmp_path / "fast")))
    fast = read(tmp_path / "fast")
    assert fast["odd.png"].shape == (7, 50, 3)
    (record,) = (r for r in dataset.read() if r.key == "odd")
    np.testing.assert_array_equal(dataset.codec().decode([record.encoded])[0], fast["odd.png"])
    slow = {"decoder": "diffusion", "steps": 2, "noise_scale": 0.8, "seed": 5}
    for name in ("one", "two"):
        decode(DecodeOptions(archive, str(tmp_path / name), layers=4, codec_options=slow))
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    for key in fast:
        np.testing.assert_array_equal(one[key], two[key])
    assert any((one[key] != fast[key]).any() for key in fast)


def test_what_the_model_cannot_do_is_said_first(model: Path, tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "x.tar", samples(1)))
    for options, message in (
        ({"codec_options": {"quality": 7}}, "quality must be an integer from 0 to 1"),
        ({"lossless": True}, "no lossless layer"),
    ):
        with pytest.raises(OptionError, match=message):
            compress(CompressOptions((tar,), str(tmp_path / "set"), str(model), **options))  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()
    compress(CompressOptions((tar,), str(tmp_path / "set"), str(model)))
    for codec_options, message in (
        ({"decoder": "flow"}, "--decoder"),
        ({"decoder": "diffusion", "steps": 1000}, "steps must be an integer from 1 to 100"),
        ({"seed": 3}, "only for decoder diffusion"),
    ):
        with pytest.raises(OptionError, match=message):
            decode(
                DecodeOptions(
                    str(tmp_path / "set"), str(tmp_path / "out"), codec_options=codec_options
                )
            )
    assert not (tmp_path / "out").exists()
