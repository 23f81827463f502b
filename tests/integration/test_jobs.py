"""The main line with the shipped model: tars in, Parquet out, and back at any layer.

On Ray where shards fail; else with one worker in this process, which is seconds less for a job.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

import pipeline
from codec.errors import StrataError
from codec.images.files import read_image, write_image
from codec.images.metrics import psnr
from codec.models.zoo import DEFAULT_MODELS
from pipeline.compress.job import CompressOptions, compress
from pipeline.decode.job import DecodeOptions, decode
from pipeline.running.progress.summary import Summary
from tests.pipeline.conftest import without_ray
from tests.pipeline.makers import samples, tar_bytes, write_tar

__all__ = ["without_ray"]

pytestmark = pytest.mark.integration


def run(inputs: list[str], output: str, **options: Any) -> Summary:
    return compress(
        CompressOptions(tuple(inputs), output, DEFAULT_MODELS["uqdm"], workers=1, **options)
    )


def photo_files(photo: np.ndarray) -> list[tuple[str, bytes]]:
    """Crops of a photograph of many sizes, in several formats, with side fields."""
    sizes = [(64, 64), (64, 64), (48, 80), (1, 1), (7, 129), (96, 40)]
    files = []
    for number, (height, width) in enumerate(sizes):
        crop = photo[40 * number :, 40 * number :][:height, :width]
        kind = ("png", "webp", "jpg")[number % 3]
        alpha = np.full((height, width), 9, np.uint8) if number == 1 else None
        files.append((f"p/{number}.{kind}", write_image(crop, alpha, kind)))
        files.append((f"p/{number}.json", json.dumps({"size": [height, width]}).encode()))
        files.append((f"p/{number}.cls", b"%d" % number))
    return files


def read_tars(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.mark.usefixtures("without_ray")
def test_there_and_back_without_loss(tmp_path: Path, photo: np.ndarray) -> None:
    files = photo_files(photo)
    inputs = tmp_path / "in"
    write_tar(inputs / "a.tar", files)
    write_tar(inputs / "b.tar", samples(2))
    summary = run([str(inputs)], str(tmp_path / "set"), lossless=True, keep_original="bad")
    assert (summary.exit_code, summary.ok, summary.shards) == (0, 8, 2)
    (inputs / "a.tar").unlink()

    back = decode(DecodeOptions(str(tmp_path / "set"), str(tmp_path / "out"), workers=1))
    assert (back.exit_code, back.ok) == (0, 8)
    found = read_tars(tmp_path / "out")
    for name, data in files:
        if name.endswith(("json", "cls")):
            assert found[name] == data
            continue
        original, copy = read_image(data), read_image(found[name.rsplit(".", 1)[0] + ".png"])
        assert (original.rgb == copy.rgb).all()
        assert (original.alpha is None) == (copy.alpha is None)
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    keys = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    assert keys == [f"p/{n}" for n in range(6)] + ["s0000", "s0001"]

    dataset = pipeline.open_dataset(str(tmp_path / "set"))
    assert dataset.codec().lossless
    errors = []
    for layers in range(1, dataset.num_layers + 1):
        image = dataset.image("p/0", layers)
        errors.append(np.square(image.astype(float) - read_image(files[0][1]).rgb).mean())
    assert errors[-1] == 0
    assert errors[0] > errors[-2] > 0


@pytest.mark.usefixtures("without_ray")
def test_the_default_is_not_larger_than_the_originals(tmp_path: Path, photo: np.ndarray) -> None:
    crops = [photo[n * 9 :][:128, :160] for n in range(4)]
    kinds = [("jpg", 10), ("jpg", 85), ("png", None), ("jpg", 100)]
    files = [
        (f"{n}.{kind}", write_image(crop, None, kind, quality=quality))
        for n, (crop, (kind, quality)) in enumerate(zip(crops, kinds, strict=True))
    ]
    write_tar(tmp_path / "a.tar", files)
    run([str(tmp_path / "a.tar")], str(tmp_path / "set"))
    (path,) = (tmp_path / "set" / "data").iterdir()
    table = pq.read_table(path)
    sizes = {key: len(data) for key, data in ((name[:-4], data) for name, data in files)}
    dataset = pipeline.open_dataset(str(tmp_path / "set"))
    rows = {row["key"]: row for row in table.to_pylist()}
    for row in rows.values():
        assert row["source_bytes"] == sizes[row["key"]]
        if row["original"] is None:
            assert row["layers"] == dataset.codec().archive_layers
            assert row["cumulative_bytes"][-1] < row["source_bytes"]
        else:
            assert row["layers"] == 2
            assert len(row["original"]) <= row["source_bytes"]
    assert [rows[key]["original"] is not None for key in "023"] == [True, False, False]
    for name, data in files:
        quality = psnr(read_image(data).rgb, dataset.image(name[0]))
        assert quality > (38 if rows[name[0]]["original"] is None else 1000)


@pytest.mark.usefixtures("ray_session")
def test_what_is_bad_is_named_and_the_rest_goes_through(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    write_tar(inputs / "good.tar", samples(3))
    write_tar(inputs / "some.tar", [*samples(2, 10), ("broken.png", b"\x89PNG\r\n\x1a\n")])
    (inputs / "cut.tar").write_bytes(tar_bytes(samples(3, 20))[: 512 * 10])
    (inputs / "foreign.tar").write_bytes(b"not a tar at all" * 100)
    summary = run([str(inputs)], str(tmp_path / "set"))
    assert summary.exit_code == 1
    assert (summary.ok, summary.bad, summary.shards) == (5, 1, 4)
    text = "\n".join(summary.lines())
    assert "cut.tar : ShardError" in text
    assert "cut short at offset 5120" in text
    assert "foreign.tar: not a tar file" in text
    assert "some.tar : 'broken'" in text
    assert len(pipeline.open_dataset(str(tmp_path / "set"))) == 5
    back = decode(DecodeOptions(str(tmp_path / "set"), str(tmp_path / "out"), layers=1, workers=1))
    assert (back.exit_code, back.ok, back.bad) == (1, 5, 1)
    assert "'broken'" in "\n".join(back.lines())


@pytest.mark.usefixtures("without_ray")
def test_running_again_does_only_what_is_missing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", samples(2))
    output = tmp_path / "set"
    run([str(tmp_path / "a.tar")], str(output))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}

    again = run([str(tmp_path / "a.tar")], str(output))
    assert (again.resumed, again.new_samples, again.exit_code) == (1, 0, 0)
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()} == before

    more = run([str(tmp_path / "*.tar")], str(output))
    assert (more.resumed, more.new_samples, more.ok) == (1, 2, 4)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (output / "manifest-000002.json").exists()

    next((output / "data").glob("a-*")).unlink()
    repaired = run([str(tmp_path / "*.tar")], str(output))
    assert (repaired.resumed, repaired.new_samples, repaired.exit_code) == (1, 2, 0)
    assert len(list(pipeline.open_dataset(str(output)).read(1))) == 4

    with pytest.raises(StrataError, match=r"--lossless is not given there"):
        run([str(tmp_path / "*.tar")], str(output), lossless=True)
    write_tar(tmp_path / "a.tar", samples(3))
    with pytest.raises(StrataError, match=r"changed since.*a\.tar"):
        run([str(tmp_path / "*.tar")], str(output))


@pytest.mark.usefixtures("without_ray")
def test_decoding_to_files_and_resuming(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*samples(2), ("../../up.png", samples(1)[0][1])])
    run([str(tmp_path / "a.tar")], str(tmp_path / "set"))
    options = DecodeOptions(
        str(tmp_path / "set"),
        str(tmp_path / "deep" / "out"),
        layers=1,
        format="files",
        image_format="webp",
        codec_options={"decoder": "mean"},
        workers=1,
    )
    assert decode(options).ok == 3
    (folder,) = (path for path in (tmp_path / "deep" / "out").iterdir() if path.name != ".strata")
    assert sorted(path.name for path in folder.iterdir()) == [
        "%2E%2E",
        *(f"s{n:04d}.{field}" for n in range(2) for field in ("cls", "json", "webp")),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "deep", "set"]
    again = decode(options)
    assert (again.resumed, again.new_samples, again.ok) == (1, 0, 3)
    with pytest.raises(StrataError, match="--image-format is webp there and png here"):
        decode(DecodeOptions(options.dataset, options.output, layers=1, format="files"))
    with pytest.raises(StrataError, match="--layers 99"):
        decode(DecodeOptions(options.dataset, str(tmp_path / "x"), layers=99))
