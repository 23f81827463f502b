"""Pictures with their columns, singly and in batches, decoded in the data set or afterwards."""

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import pipeline
from codec import EncodedImage
from codec.images.files import write_image
from pipeline import KeptOriginal, StrataImages, decode_batches
from pipeline.reader.dataset import Dataset
from tests.pipeline.conftest import Make
from tests.pipeline.loading.pictures import SIZES, expected, flat, keys_of
from tests.pipeline.makers import ToyCodec, picture, png, write_tar


def test_pictures_with_their_columns_in_order(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 2, columns=["fields", "source_format"])
    samples = list(images)
    assert keys_of(samples) == list(dataset.keys())
    for sample in samples[::37]:
        assert sample["image"].dtype == torch.uint8
        assert np.array_equal(sample["image"].numpy(), expected(sample["key"], 2))
        assert sample["source_format"] == "png"
    assert samples[17]["fields"] == {"cls": b"7"}


def test_captions_and_labels_wherever_they_are(make_dataset: Make, tmp_path: Path) -> None:
    long = "a cat \u00e9\n" + "on a mat " * 100
    side = {
        "a": [("txt", long.encode()), ("cls", b" 7 "), ("x", b"\xff")],
        "b": [("json", b'{"caption": "a dog", "label": "-3"}')],
        "c": [("json", b'{"text": "a cow"}'), ("label", b"animals/cow")],
        "d": [],
    }
    files = []
    for number, (key, fields) in enumerate(side.items()):
        files += [(f"{key}.png", png(number)), *((f"{key}.{name}", data) for name, data in fields)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    names = ("caption", "label", "x", "json")
    samples = {one["key"]: one for one in StrataImages(dataset.url, 1, fields=names)}
    assert [[samples[key][name] for name in names] for key in side] == [
        [long.strip(), 7, b"\xff", None],
        ["a dog", -3, None, side["b"][0][1]],
        ["a cow", "animals/cow", None, side["c"][0][1]],
        [None, None, None, None],
    ]
    assert "fields" not in samples["a"]
    (batch,) = StrataImages(dataset.url, 1, fields=["label"], columns=["fields"], batch_size=4)
    assert batch["label"] == [7, -3, "animals/cow", None]
    assert batch["fields"][1] == dict(side["b"])


@pytest.mark.parametrize("fields", ["caption", ("image",), ("width",)])
def test_fields_that_cannot_be(dataset: Dataset, fields: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="fields must be a tuple of names"):
        StrataImages(dataset.url, fields=fields, columns=["width"])


def test_a_filter_of_pictures(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 0, filter=pc.field("width") == 10, shuffle_buffer=50)
    wanted = [key for key in sorted(dataset.keys()) if int(key[1:]) % 4 == 2]
    assert sorted(keys_of(images)) == wanted


def test_batches_hold_pictures_of_one_size(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, columns=["fields"], batch_size=16, shuffle_buffer=100)
    batches = list(images)
    assert sorted(flat(batches)) == list(dataset.keys())
    for batch in batches:
        shape = batch["image"].shape
        assert shape[0] == len(batch["key"]) == len(batch["fields"]) <= 16
        for key, image in zip(batch["key"], batch["image"], strict=True):
            assert np.array_equal(image.numpy(), expected(key))
    assert sum(len(batch["key"]) < 16 for batch in batches) == 3  # the last of each size


def test_many_sizes_make_small_batches_and_no_crowd(make_dataset: Make, tmp_path: Path) -> None:
    files = [(f"{n:03d}.png", png(n, 8 + n % 50, 9)) for n in range(150)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    images = StrataImages(dataset.url, 1, batch_size=4)
    assert sorted(flat(images)) == list(dataset.keys())
    waiting = 0
    for _ in images:
        waiting = max(waiting, len(images.state_dict()["waiting"]))
    assert 16 < waiting < 32


def test_transforms_make_batches_of_neighbours(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 4, batch_size=50, transform=lambda x: x[:8, :8].float())
    batches = list(images)
    assert [len(batch["key"]) for batch in batches] == [50] * 8
    assert flat(batches) == list(dataset.keys())
    assert batches[0]["image"].shape == (50, 8, 8, 3)
    assert np.array_equal(batches[0]["image"][2].numpy(), expected("a0002")[:8, :8])
    uneven = next(iter(StrataImages(dataset.url, 4, batch_size=50, transform=lambda x: x)))
    assert [tuple(image.shape[:2]) for image in uneven["image"][:4]] == SIZES


def test_small_pictures(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 4, max_side=6, batch_size=100)
    shapes = {tuple(batch["image"].shape[1:3]) for batch in images}
    assert shapes == {(5, 6), (6, 5), (6, 6)}


def test_encoded_in_workers_and_decoded_here(dataset: Dataset) -> None:
    images = StrataImages(
        dataset.url, 3, columns=["fields"], encoded=True, batch_size=16, shuffle_buffer=50
    )
    loader = DataLoader(images, batch_size=None, num_workers=2)
    codec = dataset.codec()
    assert isinstance(codec, ToyCodec)
    keys = []
    for batch in decode_batches(loader, codec):
        keys += batch["key"]
        assert batch["image"].shape[0] == len(batch["fields"])
        assert np.array_equal(batch["image"][0].numpy(), expected(batch["key"][0], 3))
    assert sorted(keys) == list(dataset.keys())
    (sample,) = islice(StrataImages(dataset.url, 3, encoded=True), 1)
    assert isinstance(sample["encoded"], EncodedImage)
    assert sample["encoded"].num_layers == 3
    with pytest.raises(ValueError, match="decode_batches"):
        StrataImages(dataset.url, encoded=True, max_side=5)


def test_workers_refuse_a_device_they_cannot_share(dataset: Dataset) -> None:
    loader = DataLoader(StrataImages(dataset.url, 1, device="cuda"), batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match="decode_batches"):
        next(iter(loader))


def test_files_that_all_pictures_keep(make_dataset: Make, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{n}.png", png(n, 20, 30)) for n in range(3)])
    always = {"keep_original": "always", "store_layers": 2}
    dataset = make_dataset([str(tmp_path / "x.tar")], **always)
    for sample in StrataImages(dataset.url):
        assert np.array_equal(sample["image"].numpy(), picture(int(sample["key"]), 20, 30))
    for sample in StrataImages(dataset.url, 2):
        assert np.array_equal(sample["image"].numpy(), dataset.image(sample["key"], 2))


def test_files_that_were_kept_instead_of_layers(make_dataset: Make, tmp_path: Path) -> None:
    """Their streams would be larger than they are; the others' are not."""
    bitmap = io.BytesIO()
    Image.fromarray(picture(3, 20, 30)).save(bitmap, "bmp")
    jpeg = write_image(picture(1, 20, 30), None, "jpg")
    files = [("a.jpg", jpeg), ("b.png", png(2, 20, 30)), ("c.bmp", bitmap.getvalue())]
    write_tar(tmp_path / "x.tar", files)
    dataset = make_dataset([str(tmp_path / "x.tar")], keep_original="larger")
    stored = {record.key: record.encoded.num_layers for record in dataset.read()}
    assert min(stored["a"], stored["b"]) < stored["c"] == 4
    for layers in (1, 4):
        for sample in StrataImages(dataset.url, layers):
            image = dataset.image(sample["key"], layers)
            assert np.array_equal(sample["image"].numpy(), image)
    kinds = {s["key"]: type(s["encoded"]) for s in StrataImages(dataset.url, 4, encoded=True)}
    assert kinds == {
        key: EncodedImage if count == 4 else KeptOriginal for key, count in stored.items()
    }
    shapes = {tuple(s["image"].shape) for s in StrataImages(dataset.url, 4, max_side=15)}
    assert shapes == {(10, 15, 3)}


def test_arguments_that_make_no_sense(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="belong together"):
        StrataImages(dataset.url, rank=1)
    with pytest.raises(ValueError, match="0 to 1"):
        StrataImages(dataset.url, rank=2, world_size=2)
    with pytest.raises(ValueError, match="errors must be"):
        StrataImages(dataset.url, errors="ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option colour"):
        iter(StrataImages(dataset.url, decode_options={"colour": True}))
    with pytest.raises(pipeline.DatasetError, match="stores 4 layers"):
        iter(StrataImages(dataset.url, 9))
