"""Old files decode to the same as before: streams, pictures and a dataset."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from codec import EncodedImage
from codec.images.alpha import unpack_alpha
from codec.images.files import read_image
from codec.models import zoo
from pipeline import open_dataset
from pipeline.stores.store import Store
from pipeline.verify.checks import read_manifest, read_plan
from tests.format.golden_files import GOLDEN, STREAMS, models, read_golden, without_head
from tests.format.make_golden import SHOWN, SIZES, picture


@pytest.mark.parametrize("file", STREAMS, ids=lambda file: file.stem)
def test_golden_streams_decode(file: Path) -> None:
    encoded, codec = read_golden(file)
    for layers in SHOWN[file.stem]:
        expected = read_image(file.with_name(f"{file.stem}-{layers}.png").read_bytes()).rgb
        (shown,) = codec.decode([encoded], layers=layers, **without_head(codec))
        if codec.lossless and layers == codec.num_layers:
            np.testing.assert_array_equal(shown, expected)
            np.testing.assert_array_equal(shown, picture(*SIZES[file.stem]))
        else:  # float arithmetic behind exact layers
            difference = np.abs(shown.astype(int) - expected)
            assert difference.max() <= 2
            assert difference.mean() < 0.1


def test_every_shipped_model_has_golden_files() -> None:
    of = {EncodedImage.from_bytes(file.read_bytes()).info.model for file in STREAMS}
    for name in zoo.list_models():
        told = f"the model {name} is another one now: python tests/format/make_golden.py"
        assert zoo.model_id(zoo.model_file(name))[:8] in of, told


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The golden dataset with its model put back."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN / "dataset", folder)
    model_id = json.loads((folder / "dataset.json").read_text())["parameters"]["model_id"]
    (folder / "models" / model_id).mkdir(parents=True, exist_ok=True)
    shutil.copy(models()[model_id], folder / "models" / model_id / zoo.MODEL_FILE)
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
