"""A sample of tests/benchmarks/portability.py: other ways to compute, noise, too much noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec import load_codec
from codec.layered import LayeredCodec
from codec.models import zoo
from codec.uqdm.paper import calibration
from codec.uqdm.paper.scheme import UniversalScheme
from tests.benchmarks import portability
from tests.codec.cdc import models as cdc_models
from tests.codec.small_models import write_nested_model
from tests.codec.uqdm.paper.test_scheme import small_model


def write_universal_model(folder: Path) -> Path:
    config, tensors = small_model()
    measured = calibration.quick(UniversalScheme(config, tensors, "cpu"))
    path = folder / zoo.MODEL_FILE
    zoo.write_model(path, config, tensors | {"guards": measured.guards})
    return path


WRITERS = {
    "nested": write_nested_model,
    "universal": write_universal_model,
    "cdc": lambda folder: cdc_models.write_model(folder, cdc_models.light_config(unet=False)),
}


@pytest.fixture(scope="module", params=WRITERS)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayeredCodec:
    loaded = load_codec(WRITERS[request.param](tmp_path_factory.mktemp("model")))
    assert isinstance(loaded, LayeredCodec)
    return loaded


@pytest.fixture
def images(photo: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(photo[y : y + 64, 200:264]) for y in (0, 90)]


@pytest.fixture
def notes() -> list[dict[str, Any]]:
    return []


def test_every_way_to_compute_decodes(
    codec: LayeredCodec,
    images: list[np.ndarray],
    notes: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(set(portability.SETTINGS)) == 48
    monkeypatch.setattr(portability, "SETTINGS", portability.SETTINGS[5::9])
    portability.measure_settings(codec, images, notes.append)
    seen = notes[-1]
    assert (seen["exact"], seen["error"], seen["wrong"]) == (2 * seen["settings"], 0, 0)
    assert seen.get("levels_off", 0) <= 1
    assert seen["under_all"] == 2
    portability.measure_settings(codec, images, notes.append, known=seen)
    assert notes[-1] is seen, "what is known is measured again"


def test_noise_of_devices_changes_nothing(
    codec: LayeredCodec, images: list[np.ndarray], notes: list[dict[str, Any]]
) -> None:
    portability.measure_noise(codec, images, notes.append)
    seen = notes[-1]
    assert (seen["exact"], seen["error"], seen["wrong"]) == (2, 0, 0)
    assert seen.get("levels_off", 0) <= 1


def test_more_noise_is_an_error_and_never_another_picture(
    images: list[np.ndarray], notes: list[dict[str, Any]], tmp_path: Path
) -> None:
    codec = load_codec(write_universal_model(tmp_path))
    assert isinstance(codec, LayeredCodec)
    portability.measure_beyond(codec, images, 200, notes.append)
    assert notes[-1]["trials"] == 200
    for guards in portability.BEYOND:
        assert notes[-1][f"{guards:g} guards"]["wrong"] == 0
    assert notes[-1]["128 guards"]["error"] > 30
