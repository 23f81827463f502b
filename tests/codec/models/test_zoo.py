import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from codec import InvalidModelError, UnknownModelError, list_models, load_codec
from codec.cdc.scheme import CDCScheme
from codec.models import zoo
from codec.training.recipe import TrainingFile
from tests.codec.small_models import write_nested_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nested_model(tmp_path_factory.mktemp("model"))


def test_shipped_models_have_cards_and_training_weights() -> None:
    assert set(zoo.DEFAULT_MODELS.values()) <= set(list_models())
    for name in list_models():
        card = zoo.read_card(zoo.model_file(name))
        assert card["steps"] > 0
        assert card["pictures"]
        assert card["calibration"]["difference"] == 0  # exact integers: there is nothing to guard
        assert card["calibration"]["sums"] > 1_000_000
        assert TrainingFile.find(Path(name)).config["codec"] in zoo.families()
    assert sum(f.stat().st_size for f in zoo.WEIGHTS.iterdir()) < 60e6


def test_a_model_is_found_by_name_folder_and_file(model: Path) -> None:
    by_file, by_folder = load_codec(model), load_codec(str(model.parent))
    assert by_file.model_id == by_folder.model_id == zoo.model_id(model)
    assert by_file.name == model.parent.name
    default = zoo.DEFAULT_MODELS["uqdm"]
    assert load_codec(default).name == default
    with pytest.raises(UnknownModelError, match=default):
        load_codec("no-such-model")


def test_the_same_content_has_the_same_id(model: Path, tmp_path: Path) -> None:
    config, tensors = zoo.read_model(model)
    again = tmp_path / "copy" / zoo.MODEL_FILE
    assert zoo.write_model(again, config, tensors, {"other": "card"}) == zoo.model_id(model)
    assert zoo.read_card(again) == {"other": "card"}


def test_damaged_and_foreign_files_are_refused(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    cases = {"cut": data[: len(data) // 2], "empty": b"", "pickle": pickle.dumps({"a": 1})}
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(InvalidModelError, match=name):
            load_codec(path)
    config, tensors = zoo.read_model(model)
    for change in ({"codec": "gif"}, {"quantizer": "none"}, {"nested": {"levels": 2}}):
        path = tmp_path / "changed" / zoo.MODEL_FILE
        zoo.write_model(path, {**config, **change}, tensors)
        with pytest.raises(InvalidModelError):
            load_codec(path)
    del tensors["bias"]
    zoo.write_model(path, config, tensors)
    with pytest.raises(InvalidModelError, match="bias"):
        load_codec(path)


@pytest.mark.parametrize("format", [0, 2, 7, True, 1.0, "1", None, [1]])
def test_models_of_another_format_are_refused_in_words(
    model: Path, tmp_path: Path, format: object
) -> None:
    config, tensors = zoo.read_model(model)
    path = tmp_path / zoo.MODEL_FILE
    save_file(tensors, path, {"strata": json.dumps({**config, "format": format})})
    with pytest.raises(InvalidModelError, match=r"of format .*, this release reads 1: update"):
        load_codec(path)


def test_a_model_file_names_its_format(model: Path, tmp_path: Path) -> None:
    config, tensors = zoo.read_model(model)
    assert "format" not in config  # the file's affair, and no scheme's
    with safe_open(model, framework="pt") as file:
        assert json.loads(file.metadata()["strata"])["format"] == 1
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, {**config, "format": 7}, tensors)
    assert zoo.model_id(path) == zoo.model_id(model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bias", lambda t: t.float()),
        ("bias", lambda t: t[:, :2]),
        ("bias", lambda t: t + (1 << 22)),
        ("network.stem.weight", lambda t: t[:-1]),
        ("network.stem.weight", lambda t: t.int()),
        ("network.stem.weight", lambda t: t.clamp(max=-1) * 0 - 128),
        ("network.stem.scale", lambda t: t * float("nan")),
        ("network.head.scale", lambda t: t[:, :5]),
        ("first_bias", lambda t: t[1:]),
        ("first_network.head.scale", lambda t: t[1:]),
        ("pass_network.head.scale", lambda t: t[1:]),
        ("pass_network.join.weight", lambda t: t[:, 1:]),
        ("pass_network.join.scale", lambda t: t[:-1]),
        ("pass_network.stem.bias", lambda t: t + (1 << 25)),
        ("pixel_network.bias", lambda t: t + (1 << 22)),
        ("pixel_network.heads.1.expand.weight", lambda t: t[:, 1:]),
        ("network.blocks.1.expand.bias", lambda t: t + (1 << 25)),
        ("tables.first.counts", lambda t: t * 0 + 1),
        ("tables.first.counts", lambda t: -t),
        ("tables.first.counts", lambda t: t.float()),
        ("tables.first.start", lambda t: t * 2),
        ("tables.first.start", lambda t: t.flip(0)),
        ("tables.first.first", lambda t: t + (1 << 30)),
        ("tables.first.first", lambda t: t[None]),
    ],
)
def test_tensors_that_no_model_has_are_refused(
    model: Path, tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    config, tensors = zoo.read_model(model)
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, config, {**tensors, name: change(tensors[name])})
    with pytest.raises(InvalidModelError):
        load_codec(path)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("nested", {"levels": 10**9}),
        ("nested", {"first_delta": 1e30}),
        ("nested", {"first_delta": float("nan")}),
        ("nested", {"passes": [[["low", 7]]] * 6}),
        ("nested", {"passes": [[["low", [5]]]] * 6}),
        ("nested", {"passes": [[["low", [[0]]]]] * 6}),
        ("nested", {"passes": [[["some", [0]]]] * 6}),
        ("nested", {"passes": []}),
        ("nested", {"orders": [[14, 14]] * 5}),
        ("nested", {"orders": [[14, 14]] * 5 + [[4, 2]]}),
        ("nested", {"orders": [[14]] * 6}),
        ("nested", {"lead_order": 1}),
        ("nested", {"low_order": []}),
        ("nested", {"colours": 5}),
        ("nested", {"colours": [1.0] * 9}),
        ("nested", {"colours": [1.0, 0, 0, 0, 1, 0, 0, 0]}),
        ("nested", {"colours": [9.0, 0, 0, 0, 1, 0, 0, 0, 1]}),
        ("nested", {"band_weights": [0.0] * 192}),
        ("nested", {"band_weights": [1.0] * 191}),
        ("nested", {"band_weights": [1e-7] * 192}),
        ("nested", {"band_rms": [0.0] * 192}),
        ("nested", {"band_rms": "no"}),
        ("nested", {"tilt": {"low": 0, "step": 1, "size": 1 << 60}}),
        ("network", {"blocks": 10**9}),
        ("network", {"channels": 10**9}),
        ("network", {"hidden": -1}),
        ("network", {"steps": 1.5}),
        ("network", {"unknown": 1}),
        ("network", {"colours": 4}),
        ("pass_network", {"steps": 3}),
        ("pass_network", {"levels": 4}),
        ("pass_network", {"trunk": 17}),
        ("pass_network", {"channels": 10**9}),
        ("first_network", {"outputs": 7}),
        ("pixel_network", {"heads": 0}),
    ],
)
def test_configurations_that_no_model_has_are_refused(
    model: Path, tmp_path: Path, part: str, change: dict[str, object]
) -> None:
    config, tensors = zoo.read_model(model)
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, {**config, part: {**config[part], **change}}, tensors)
    with pytest.raises(InvalidModelError):
        load_codec(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '{"a": ' * 9 + "1" + "}" * 9, "null"])
def test_configurations_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / zoo.MODEL_FILE
    save_file({"a": torch.zeros(1)}, path, {"strata": text})
    with pytest.raises(InvalidModelError, match="not a Strata model file"):
        load_codec(path)


def test_a_configuration_larger_than_its_tensors_allocates_nothing() -> None:
    config, tensors = zoo.read_model(zoo.model_file(zoo.DEFAULT_MODELS["cdc"]))
    huge = {**config, "unet": {**config["unet"], "dim": 9000}}
    with pytest.raises(InvalidModelError, match="larger model"):
        CDCScheme(huge, tensors, "cpu")
    for name in ("thresholds", "medians", "layers", "integers.0.weight", "trees.mean"):
        with pytest.raises(InvalidModelError):
            CDCScheme(config, {**tensors, name: tensors[name][:-1]}, "cpu")
        with pytest.raises(InvalidModelError):
            CDCScheme(config, {**tensors, name: tensors[name].half()}, "cpu")


def test_a_stream_decodes_with_a_copy_of_its_model(model: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    stream = load_codec(model).encode([picture])
    copy = shutil.copy(model, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_codec(copy).decode(stream)[0], picture)
