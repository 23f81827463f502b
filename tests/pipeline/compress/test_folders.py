"""Folders of pictures, whole jobs: every file once, whatever is added, changed or removed."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.images.files import read_image
from pipeline import (
    CompressOptions,
    DecodeOptions,
    Summary,
    VerifyOptions,
    compress_dataset,
    decode_dataset,
    open_dataset,
    verify_dataset,
)
from pipeline.dataset import part_lists
from pipeline.dataset.plan import PlanMismatchError
from pipeline.sources import folder as folder_module
from pipeline.stores.filesystems import StorageError
from pipeline.verify.job import Subset
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar


@pytest.fixture(autouse=True)
def here(toy: ToyCodec, without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with the toy codec, in parts of four samples."""
    monkeypatch.setattr(folder_module, "PART_SAMPLES", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten samples in two folders, with fields, and files that are no sample's."""
    root = tmp_path / "photos"
    (root / "trip/day 1").mkdir(parents=True)
    for number in range(6):
        (root / f"a{number}.png").write_bytes(png(number))
        (root / f"a{number}.json").write_text(json.dumps({"n": number}))
    for number in range(6, 10):
        name = f"2024.01.{number:02d}-b"  # dots that are no extension
        (root / f"trip/day 1/{name}.PNG").write_bytes(png(number))
    (root / "trip/notes.csv").write_text("1,2\n")
    (root / "README").write_text("my photos")
    (root / ".cache").mkdir()
    (root / ".cache/thumb.png").write_bytes(png(99))
    return root


def compress(tmp_path: Path, *inputs: Any, **options: Any) -> Summary:
    output = str(tmp_path / "archive")
    chosen = {"lossless": True, **options}
    return compress_dataset(CompressOptions(tuple(map(str, inputs)), output, "toy", **chosen))


def keys_of(tmp_path: Path) -> list[str]:
    return [record.key for record in open_dataset(str(tmp_path / "archive")).read()]


def test_each_picture_with_its_files_comes_back(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = compress(tmp_path, photos)
    begun = capsys.readouterr().err
    assert f"10 pictures in the folder {photos}; the summary says what is left out" in begun
    assert "README" not in begun  # once is enough
    assert (summary.ok, summary.bad, summary.filtered, summary.shards) == (10, 0, 0, 3)
    notes = [note for note in summary.notes if "left out" in note]
    (note,) = (note for note in notes if "hidden" not in note)
    assert len(notes) == 2
    assert "README" in note
    assert "trip/notes.csv" in note
    archive = open_dataset(str(tmp_path / "archive"))
    for number in range(6):
        np.testing.assert_array_equal(archive.image(f"a{number}"), picture(number))
    for number in range(6, 10):
        key = f"trip/day 1/2024.01.{number:02d}-b"
        np.testing.assert_array_equal(archive.image(key), picture(number))
    decode_dataset(DecodeOptions(str(tmp_path / "archive"), str(tmp_path / "out"), format="files"))
    found = {path.name: path for path in (tmp_path / "out").rglob("*.*")}
    assert json.loads(found["a3.json"].read_text()) == {"n": 3}
    np.testing.assert_array_equal(read_image(found["a3.png"].read_bytes()).rgb, picture(3))


def test_files_that_are_added_come_into_new_parts(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos)
    before = {path.name for path in (tmp_path / "archive/data").iterdir()}
    for name in ("a00.png", "a3-b.png", "z.png"):  # before, between and after the others
        (photos / name).write_bytes(png(50))
    summary = compress(tmp_path, photos)
    assert (summary.shards, summary.resumed, summary.ok) == (4, 3, 13)
    after = {path.name for path in (tmp_path / "archive/data").iterdir()}
    assert before < after
    assert sorted(keys_of(tmp_path)) == sorted({*keys_of(tmp_path)})
    assert compress(tmp_path, photos).resumed == 4
    assert compress(tmp_path, f"{photos}/./trip/..").resumed == 4  # another spelling
    (tmp_path / "link").symlink_to(photos)
    assert compress(tmp_path, tmp_path / "link").resumed == 4
    assert compress(tmp_path, photos / "trip", photos).ok == 13  # a folder in it


def test_a_field_that_comes_late_is_told(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos)
    (photos / "a2.txt").write_text("too late")
    (photos / "a3.jpg").write_bytes(png(30))  # would come in under the same key once more
    summary = compress(tmp_path, photos)
    assert (summary.ok, summary.resumed) == (10, 3)
    (note,) = [note for note in summary.notes if "came after" in note]
    assert f"{photos}/a2.txt, {photos}/a3.jpg" in note
    assert len(keys_of(tmp_path)) == 10


def test_changed_files_are_refused_and_lost_ones_told(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos)
    (photos / "a1.json").unlink()
    summary = compress(tmp_path, photos)
    assert summary.ok == 10
    assert any("gone since" in note and "a1.json" in note for note in summary.notes)
    (photos / "a2.png").write_bytes(png(77, 30, 30))
    with pytest.raises(PlanMismatchError, match=r"a2\.png"):
        compress(tmp_path, photos)


def test_files_that_go_or_change_while_the_job_runs_are_bad_samples(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = part_lists.Planner.shards

    def then_change(self: part_lists.Planner, recorded: Any) -> Any:
        shards = planned(self, recorded)
        (photos / "a0.png").unlink()
        (photos / "a1.json").write_text("another")
        return shards

    monkeypatch.setattr(part_lists.Planner, "shards", then_change)
    summary = compress(tmp_path, photos)
    assert (summary.ok, summary.bad) == (8, 2)
    told = {problem.key: problem.reason for problem in summary.problems}
    assert "was removed after it was listed" in told["a0"]
    assert "changed after it was listed" in told["a1"]


def test_two_pictures_of_one_name_are_one_sample_and_told(tmp_path: Path, photos: Path) -> None:
    (photos / "a0.jpg").write_bytes((photos / "a0.png").read_bytes())
    summary = compress(tmp_path, photos)
    assert summary.ok == 10
    assert any("1 picture not encoded but kept" in note for note in summary.notes)
    assert any("a.jpg and a.png are one" in note for note in summary.notes)


def test_a_job_that_is_killed_goes_on_with_the_same_parts(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.compress import worker

    done = []
    run = worker.ShardCompressor.run

    def die(self: Any, job: Any, skip: Any = None) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(job.name)
        return run(self, job, skip)

    with monkeypatch.context() as first:
        first.setattr(worker.ShardCompressor, "run", die)
        with pytest.raises(KeyboardInterrupt):
            compress(tmp_path, photos)
    (photos / "a00.png").write_bytes(png(50))
    summary = compress(tmp_path, photos)
    assert (summary.ok, summary.resumed, summary.shards) == (11, 1, 4)
    assert len({*keys_of(tmp_path)}) == 11


def test_two_jobs_at_the_same_time_take_each_file_once(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one lists its parts between this one's look and its list."""
    publish = part_lists.Planner._publish

    def late(self: Any, root: str, parts: Any) -> None:
        with monkeypatch.context() as other:
            other.setattr(part_lists.Planner, "_publish", publish)
            compress(tmp_path, photos / "trip")
        publish(self, root, parts)
        monkeypatch.setattr(part_lists.Planner, "_publish", publish)

    monkeypatch.setattr(part_lists.Planner, "_publish", late)
    assert compress(tmp_path, photos).ok == 10
    assert len(keys_of(tmp_path)) == 10


def test_lists_that_are_lost_or_forged_end_the_job(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos)
    (path,) = (tmp_path / "archive/parts").iterdir()
    whole = path.read_text()
    path.unlink()
    with pytest.raises(StorageError, match="put the lists back"):
        compress(tmp_path, photos)
    (damage,) = verify_dataset(VerifyOptions(str(tmp_path / "archive"))).damaged
    assert (damage.kind, damage.path, len(damage.problems)) == ("parts", "parts", 3)
    for wrong in ("../secret.png", "/etc/secret.png", "x/../../y.png", ".ssh/id.png", ""):
        told = json.loads(whole)
        told["parts"][0][0][0] = wrong
        path.write_text(json.dumps(told))
        with pytest.raises(StorageError, match=r"000001\.json: is damaged"):
            compress(tmp_path, photos)
    path.write_text("[1]")
    (damage,) = verify_dataset(VerifyOptions(str(tmp_path / "archive"))).damaged
    assert "000001.json: is damaged" in damage.problems[0]
    with pytest.raises(StorageError, match=r"000001\.json: is damaged"):
        compress(tmp_path, photos)


def damage(tmp_path: Path) -> Path:
    path = sorted((tmp_path / "archive/data").iterdir())[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    return path


def repair(tmp_path: Path, **options: Any) -> Any:
    chosen = VerifyOptions(str(tmp_path / "archive"), read=Subset(), repair=True, **options)
    return verify_dataset(chosen)


def test_a_damaged_file_is_repaired_from_the_folder(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos)
    shutil.move(tmp_path / "archive", tmp_path / "elsewhere")  # lists lie in the dataset itself
    shutil.move(tmp_path / "elsewhere", tmp_path / "archive")
    damage(tmp_path)
    report = repair(tmp_path)
    assert report.exit_code == 0, report
    archive = open_dataset(str(tmp_path / "archive"))
    assert len(archive.files) == 3
    np.testing.assert_array_equal(archive.image("a0"), picture(0))


def test_a_file_that_has_changed_is_named_by_the_repair(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos)
    os.utime(photos / "a1.png", ns=(5, 5))
    os.utime(photos / "trip/day 1/2024.01.07-b.PNG", ns=(5, 5))
    damage(tmp_path)
    report = repair(tmp_path)
    assert report.exit_code == 1
    (why,) = [one.why_not for one in report.damaged]
    assert "a1.png changed after it was listed" in why


def test_originals_are_the_files_byte_for_byte(tmp_path: Path, photos: Path) -> None:
    compress(tmp_path, photos, keep_original="always")
    options = DecodeOptions(str(tmp_path / "archive"), str(tmp_path / "out"), format="originals")
    assert decode_dataset(options).exit_code == 0
    found = {}
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    wanted = {
        path.relative_to(photos).as_posix(): path.read_bytes()
        for path in photos.rglob("*")
        if path.suffix.lower() in (".png", ".json") and ".cache" not in path.parts
    }
    assert found == wanted


def test_a_folder_with_tars_and_pictures_must_be_told_apart(tmp_path: Path, photos: Path) -> None:
    write_tar(photos / "x.tar", samples(3))
    with pytest.raises(StorageError, match=r"1 tars and 10 pictures.*--input-format tars or files"):
        compress(tmp_path, photos)
    assert compress(tmp_path / "a", photos, input_format="tars").ok == 3
    assert compress(tmp_path / "b", photos, input_format="files").ok == 10
    with pytest.raises(StorageError, match="no Parquet files"):
        compress(tmp_path / "c", photos, input_format="parquet")
    assert compress(tmp_path / "d", photos / "x.tar", photos / "trip").ok == 7  # as they are given


def test_globs_and_single_files_are_taken(tmp_path: Path, photos: Path) -> None:
    assert compress(tmp_path, f"{photos}/a[0-2].*").ok == 3
    assert compress(tmp_path, photos / "a3.png", photos / "a3.json", photos / "a4.png").ok == 2
    summary = compress(tmp_path, photos)
    assert (summary.ok, summary.bad) == (10, 0)
    assert not any("gone" in note for note in summary.notes)


def test_loops_of_links_are_refused(tmp_path: Path, photos: Path) -> None:
    (photos / "trip/again").symlink_to(photos)
    with pytest.raises(StorageError, match="leads back"):
        compress(tmp_path, photos)
