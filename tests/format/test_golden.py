"""Files of the first release that has a specification decode for ever."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from codec import EncodedImage, load_codec, zoo
from codec.images import read_image, unpack_alpha
from pipeline import open_dataset
from pipeline.storage import Store
from pipeline.verification.checks import read_manifest, read_plan
from tests.format.make_golden import SHOWN, picture

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_golden_streams_decode(name: str) -> None:
    codec = load_codec(name)
    encoded = EncodedImage.from_bytes((GOLDEN / f"{name}.strata").read_bytes())
    for layers in SHOWN[name]:
        expected = read_image((GOLDEN / f"{name}-{layers}.png").read_bytes()).rgb
        (shown,) = codec.decode([encoded], layers=layers)
        if codec.lossless and layers == codec.num_layers:
            np.testing.assert_array_equal(shown, expected)
            np.testing.assert_array_equal(shown, picture(45, 60))
        else:  # float arithmetic behind exact layers
            difference = np.abs(shown.astype(int) - expected)
            assert difference.max() <= 2
            assert difference.mean() < 0.1


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The golden dataset with its model, which is the shipped one, put back."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN / "dataset", folder)
    model_id = json.loads((folder / "dataset.json").read_text())["parameters"]["model_id"]
    shipped = {zoo.model_id(path): path for path in map(zoo.model_file, zoo.list_models())}
    (folder / "models" / model_id).mkdir(parents=True, exist_ok=True)
    shutil.copy(shipped[model_id], folder / "models" / model_id / zoo.MODEL_FILE)
    return folder


def test_the_golden_dataset_is_read(dataset: Path) -> None:
    opened = open_dataset(str(dataset))
    assert len(opened) == 2
    assert [(key, status) for _, key, status, _ in opened.problems()] == [("broken", "bad")]
    records = {one.key: one for one in opened.read(columns=["image_sha256", "fields", "alpha"])}
    assert list(records) == ["face", "veiled"]
    for key, record in records.items():
        image = opened.image(key)
        assert hashlib.sha256(image.tobytes()).digest() == record.extra["image_sha256"]
        (fetched,) = opened.fetch([key])
        assert fetched.encoded == record.encoded
    np.testing.assert_array_equal(opened.image("face"), picture(24, 32))
    assert {"name": "txt", "data": b"a face"} in records["face"].extra["fields"]
    alpha = unpack_alpha(records["veiled"].extra["alpha"])
    np.testing.assert_array_equal(alpha.ravel(), np.arange(480, dtype=np.uint32).astype(np.uint8))


def test_the_golden_dataset_is_sound(dataset: Path) -> None:
    store = Store(str(dataset))
    plan, wrong = read_plan(store)
    assert not wrong
    manifest, problems = read_manifest(store, plan, 1)
    assert manifest is not None
    assert not problems
