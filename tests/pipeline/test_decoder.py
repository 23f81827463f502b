"""Decoding a data file: the original's keys and side fields, and names that cannot escape."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from codec.images import read_image, write_image
from pipeline import decoder
from pipeline.dataset import Dataset
from pipeline.decoder import (
    DecodeSettings,
    ShardDecoder,
    UnwritableNameError,
    image_field_name,
    safe_path,
)
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar


def decode(dataset: Dataset, output: Path, **changes: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = {
        "layers": 4,
        "format": "webdataset",
        "image_format": "png",
        "quality": 95,
        **changes,
    }
    worker = ShardDecoder(DecodeSettings(dataset.url, str(output), "f", **options))
    return [worker.run(file) for file in dataset.files]


def tar_files(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_keys_and_side_fields_come_back(make_dataset: Make, tmp_path: Path) -> None:
    alpha = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    files = [
        *samples(3),
        ("dir.x/ü 1.json", b"[]"),
        ("dir.x/ü 1.image.webp", write_image(picture(5), alpha, "webp")),
        ("dir.x/ü 1.TXT", b"\x00\xff"),
        ("caf\udce9.png", png(6)),
        ("caf\udce9.cls", b"1"),
    ]
    source = write_tar(tmp_path / "x.tar", files)
    dataset = make_dataset([str(source)])
    (record,) = decode(dataset, tmp_path / "out")
    assert (record["ok"], record["bad"]) == (5, 0)
    (path,) = (tmp_path / "out").glob("*.tar")
    found = tar_files(path)
    assert list(found) == [name.replace("image.webp", "image.png") for name, _ in files]
    for name, data in files:
        if name.endswith(("png", "webp")):
            back = read_image(found[name.replace("webp", "png")])
            assert (back.rgb == read_image(data).rgb).all()
        else:
            assert found[name] == data
    back_alpha = read_image(found["dir.x/ü 1.image.png"]).alpha
    assert back_alpha is not None
    assert (back_alpha == alpha).all()

    def keys(tar: Path) -> list[str]:
        return [s["__key__"] for s in webdataset.WebDataset(str(tar), shardshuffle=False)]

    assert keys(path) == keys(source)


def test_bad_samples_are_named(make_dataset: Make, tmp_path: Path, toy: ToyCodec) -> None:
    files = [*samples(2), ("bad.png", b"x"), ("z.png", png(3))]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    (record,) = decode(dataset, tmp_path / "out")
    assert (record["rows"], record["ok"], record["bad"]) == (4, 3, 1)
    assert record["problems"][0][:2] == ("bad", "bad")

    # another model's streams cannot be read: all of them are bad, and none is guessed
    toy.model_id = "1" * 64
    monkey = decoder.Dataset.codec
    try:
        decoder.Dataset.codec = lambda *_: toy  # type: ignore[method-assign, assignment]
        (record,) = decode(dataset, tmp_path / "out2")
    finally:
        decoder.Dataset.codec = monkey  # type: ignore[method-assign]
    assert (record["ok"], record["bad"]) == (0, 4)
    assert "layer 0" in record["problems"][0][2]


def test_jpg_cannot_hold_transparency(make_dataset: Make, tmp_path: Path) -> None:
    alpha = np.zeros((24, 32), np.uint8)
    files = [("a.png", write_image(picture(), alpha, "png")), ("b.png", png())]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    (record,) = decode(dataset, tmp_path / "out", image_format="jpg", layers=2)
    assert record["problems"] == [("a", "bad", "jpg cannot hold transparency: choose png or webp")]
    (path,) = (tmp_path / "out").glob("*.tar")
    assert list(tar_files(path)) == ["b.jpg"]


def test_a_side_field_of_the_new_name_is_kept(make_dataset: Make, tmp_path: Path) -> None:
    files = [("a.jpg", write_image(picture(), None, "jpg")), ("a.png", b"not encoded")]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    decode(dataset, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.tar")
    assert tar_files(path)["a.png"] == b"not encoded"
    assert list(tar_files(path)) == ["a.decoded.png", "a.png"]
    assert image_field_name("JPG", "webp", set()) == "webp"


HOSTILE = ["../../x.png", "/etc/passwd.png", "a/../../../y.png", "..", "./.././z.png", "C:\\w.png"]


def test_hostile_keys_stay_inside(make_dataset: Make, tmp_path: Path) -> None:
    files = [(name, png(n)) for n, name in enumerate(HOSTILE) if name != ".."]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    out = tmp_path / "deep" / "er" / "out"
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    (record,) = decode(dataset, out, format="files")
    assert record["ok"] == 5
    written = [path for path in (out / dataset.files[0].name).rglob("*") if path.is_file()]
    assert len(written) == 5
    after = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert after - before == {tmp_path / "deep", tmp_path / "deep" / "er", out}
    assert not Path("/etc/passwd.png").exists()


def test_names_that_clash_or_are_too_long(make_dataset: Make, tmp_path: Path) -> None:
    files = [("a.png", png(0)), ("a.png/b.png", png(1)), ("l" * 250 + ".png", png(2))]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    (record,) = decode(dataset, tmp_path / "out", format="files")
    assert record["ok"] == 1
    assert [key[:10] for key, _, _ in record["problems"]] == ["a.png/b", "l" * 10]


@given(st.lists(st.text(alphabet="./%\\a\0ü\udce9", max_size=6), min_size=2, max_size=2))
def test_safe_paths_stay_different_and_inside(names: list[str]) -> None:
    safe = [safe_path(name) for name in names]
    for path in safe:
        parts = path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\\" not in path
        path.encode()
    assert (safe[0] == safe[1]) == (names[0] == names[1])


def test_safe_paths_leave_ordinary_names_alone() -> None:
    assert safe_path("d/ü 1.a-b_c(2).png") == "d/ü 1.a-b_c(2).png"
    with pytest.raises(UnwritableNameError):
        safe_path("d/" + "x" * 250)


def test_a_second_run_leaves_the_first_ones_tar(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    first = decode(dataset, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.tar")
    before = path.read_bytes()
    assert decode(dataset, tmp_path / "out") == first
    assert path.read_bytes() == before
    assert io.BytesIO(before).getbuffer().nbytes == first[0]["bytes"]
