"""Pictures that cannot be read or decoded, and errors that are not theirs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import DamagedDataError, StrataImages
from pipeline.reader.dataset import Dataset
from pipeline.stores.filesystems import StorageError
from tests.pipeline.loading.pictures import flat, keys_of


def damage(dataset: Dataset, key: str, layer: int) -> None:
    """Change a byte of a layer; its page's checksum will not agree."""
    (record,) = dataset.read(4, [key])
    for file in dataset.files:
        path = Path(dataset.url) / file.path
        data = path.read_bytes()
        place = data.find(record.encoded.layers[layer])
        if place >= 0:
            path.write_bytes(data[: place + 9] + bytes([data[place + 9] ^ 1]) + data[place + 10 :])


def test_damage_is_an_error_or_counted(dataset: Dataset) -> None:
    damage(dataset, "b1007", 1)
    with pytest.raises(DamagedDataError, match=r"data/b.* row group 0 is damaged"):
        list(StrataImages(dataset.url, 2))
    images = StrataImages(dataset.url, 2, errors="skip")
    assert sorted(keys_of(images)) == [key for key in sorted(dataset.keys()) if key[0] == "a"]
    assert images.skipped == 60
    assert len(keys_of(StrataImages(dataset.url, 1))) == 400  # the damage is in another layer


def test_what_is_not_damage_is_never_skipped(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> bytes:
        raise ConnectionError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dataset.data_file.RangeFile.read", offline)
        with pytest.raises(StorageError, match="nobody answers"):
            list(StrataImages(dataset.url, 1, errors="skip"))
    (Path(dataset.url) / dataset.files[1].path).unlink()
    with pytest.raises(pipeline.DatasetError, match="gone"):
        list(StrataImages(dataset.url, 1, errors="skip"))


def test_a_picture_that_cannot_be_decoded(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = dataset.codec()
    whole = codec.decode

    def decode(encoded: Any, **options: Any) -> Any:
        for one in encoded:
            if one.layers[0] == bad.layers[0]:
                raise pipeline.loading.decoding.CorruptStreamError("bad symbols", 0)
        return whole(encoded, **options)

    bad = dataset.record("a0133").encoded
    monkeypatch.setattr(codec, "decode", decode)
    with pytest.raises(DamagedDataError, match=r"'a0133' cannot be decoded: .*bad symbols"):
        list(StrataImages(dataset.url, 2))
    met: Counter[str] = Counter()
    images = StrataImages(dataset.url, 2, errors=lambda key, error: met.update([key]), batch_size=8)
    assert sorted([*flat(images), "a0133"]) == list(dataset.keys())
    assert met == {"a0133": 1}
    assert images.skipped == 1

    def broken(encoded: Any, **options: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(codec, "decode", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(StrataImages(dataset.url, 2, errors="skip"))
