"""Deletions, copies and merges with retries, repairs, saved rows and folders of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import (
    CompressOptions,
    DecodeOptions,
    DeleteOptions,
    MergeOptions,
    compress_dataset,
    decode_dataset,
    delete_samples,
    info_dataset,
    merge_datasets,
    open_dataset,
)
from pipeline.compress.saved_rows import SavedRows
from pipeline.dataset.layout import SAVED
from pipeline.manage import delete_job
from pipeline.manage.merge_checks import MergeError
from pipeline.stores.store import Store
from pipeline.verify import repair
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.pipeline.makers import ToyCodec, png, samples, write_tar
from tests.pipeline.manage.killing import Killed

MakeArchive = Callable[..., str]
BAD = png(9, 24, 13)  # of a width that the toy does not encode


def compress(output: str | Path, source: Path, **options: Any) -> Any:
    chosen = {"lossless": True, **options}
    return compress_dataset(CompressOptions((str(source),), str(output), "toy", **chosen))


def delete(url: str, *keys: str) -> None:
    delete_samples(DeleteOptions(dataset=url, keys=keys))


def keys_of(url: str) -> list[str]:
    keys: list[str] = []
    dataset = open_dataset(url)
    for file in dataset.files:
        with dataset.open(file) as opened:
            keys += [row["key"] for row in opened.rows(["key"])]
    return keys


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy encodes every picture from now on."""

    def encode(
        self: Any, images: list[np.ndarray], *, layers: int | None = None, **_: Any
    ) -> list[Any]:
        return [self._encode(image, layers or 4) for image in images]

    monkeypatch.setattr(ToyCodec, "encode", encode)


def die(*_: Any) -> None:
    raise Killed


def killed_delete(monkeypatch: pytest.MonkeyPatch, url: str, *keys: str) -> None:
    """A deletion that is killed when it has said what is to be deleted, and nothing more."""
    with monkeypatch.context() as patched:
        patched.setattr(delete_job._Deletion, "_rewrite", die)
        with pytest.raises(Killed):
            delete(url, *keys)


def killed_after(patched: pytest.MonkeyPatch, rows: int) -> None:
    """Workers die when they have saved so many rows."""
    add = SavedRows.add

    def dies(self: SavedRows, local: Path, count: int) -> None:
        add(self, local, count)
        if self.rows == rows:
            raise Killed

    patched.setattr(SavedRows, "add", dies)


def folder(path: Path, names: list[str]) -> Path:
    path.mkdir()
    for number, name in enumerate(names):
        (path / f"{name}.png").write_bytes(png(number))
    return path


def test_saved_rows_of_before_a_deletion(
    make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are numbered as the samples were then: another picture would be lost."""
    url = make_archive("A", "a")
    (data,) = Path(url).glob("data/*")
    hurt = bytearray(data.read_bytes())
    hurt[hurt.find(b"\x78\x9c", 200) + 8] ^= 1
    data.write_bytes(hurt)
    shards = repair.run_shards

    def at_once(*arguments: Any, **options: Any) -> Any:
        return shards(*arguments, **options, save_seconds=0.0)

    with monkeypatch.context() as patched:
        killed_after(patched, 3)
        patched.setattr(repair, "run_shards", at_once)
        with pytest.raises(Killed):
            verify(VerifyOptions(url, read=Subset(), repair=True, batch_size=1))
    with pytest.raises(Exception, match="repair first"):
        delete(url, "s0001")
    verify(VerifyOptions(url, read=Subset(), repair=True))
    assert keys_of(url) == ["s0000", "s0002", "s0003", "s0004", "bad-a", "._x.png"]


def test_a_retry_of_a_folder_that_has_lost_pictures(
    toy: Any, without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "photos", [f"b{number}" for number in range(8)])
    (root / "w.png").write_bytes(BAD)
    compress(tmp_path / "A", root, keep_original="never")
    for path in root.glob("b*"):
        path.unlink()
    mend(monkeypatch)
    assert compress(tmp_path / "A", root, keep_original="never", retry="bad").ok == 9


def test_a_folder_loses_pictures_that_are_saved_already(
    toy: Any, without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "photos", [f"c{number}" for number in range(8)])
    options: dict[str, Any] = {"keep_original": "never"}
    with monkeypatch.context() as patched:
        killed_after(patched, 7)
        with pytest.raises(Killed):
            compress(tmp_path / "A", root, **options, save_seconds=0.0, batch_size=1)
    for number in range(7):
        (root / f"c{number}.png").unlink()
    assert compress(tmp_path / "A", root, **options).ok == 8


def test_a_retry_after_a_killed_deletion(
    make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = make_archive("A", "a")
    killed_delete(monkeypatch, url, "s0001")
    assert not compress(url, tmp_path / "a.tar", retry="bad").failed_shards


def test_a_folder_of_decoded_files_loses_what_was_deleted(
    make_archive: MakeArchive, tmp_path: Path
) -> None:
    url, out = make_archive("A", "a", "b"), tmp_path / "out"
    decode_dataset(DecodeOptions(url, str(out), format="files"))
    mine = out / "mine.txt"
    mine.write_text("not the job's")
    delete(url, "s0001")
    decode_dataset(DecodeOptions(url, str(out), format="files"))
    assert [*out.rglob("s0000.png")]
    assert not [*out.rglob("s0001.*")]
    assert mine.exists()


def test_originals_of_a_shard_that_was_deleted_whole(
    make_archive: MakeArchive, tmp_path: Path
) -> None:
    url, out = make_archive("A", "a"), tmp_path / "out"
    decode_dataset(DecodeOptions(url, str(out), format="originals"))
    assert [*out.glob("*.tar")]
    delete(url, *keys_of(url))
    decode_dataset(DecodeOptions(url, str(out), format="originals"))
    assert not [*out.glob("*.tar")]


@pytest.mark.parametrize("how", ["copy", "merge"])
def test_what_a_retry_gave_reaches_a_thinned_copy(
    toy: Any, without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Both are at generation 1 then. A merge refuses, because it would bring samples back."""
    shard = write_tar(tmp_path / "u.tar", [*samples(4), ("u.png", BAD)])
    archive, copy = str(tmp_path / "A"), str(tmp_path / "C")

    def again() -> None:
        if how == "copy":
            decode_dataset(DecodeOptions(archive, copy, format="strata"))
        else:
            merge_datasets(MergeOptions(inputs=(archive,), output=copy))

    compress(archive, shard)
    again()
    delete(copy, "s0001")
    mend(monkeypatch)
    compress(archive, shard, retry="bad")
    if how == "merge":
        with pytest.raises(MergeError):
            again()
        return
    again()
    assert open_dataset(copy).locate("u")
    assert not open_dataset(copy).locate("s0001")


def test_a_retry_after_one_that_changed_nothing(
    toy: Any, without_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that the first one saved are not taken up: their bad samples would stay bad."""
    shard, url = write_tar(tmp_path / "u.tar", [("a.png", BAD), *samples(4)]), str(tmp_path / "A")
    compress(url, shard)
    compress(url, shard, retry="bad", save_seconds=0.0, batch_size=1)
    mend(monkeypatch)
    compress(url, shard, retry="bad")
    assert open_dataset(url).locate("a")
    assert not Store(url).sizes(SAVED)


def test_quality_is_told_after_a_deletion(make_archive: MakeArchive) -> None:
    url = make_archive("A", "a", lossless=False, keep_original="never")
    assert info_dataset(url).totals["quality"]
    delete(url, "s0001")
    assert info_dataset(url).totals["quality"]


def test_a_copy_without_originals_does_not_say_that_it_keeps_them(
    make_archive: MakeArchive, tmp_path: Path
) -> None:
    url, copy = make_archive("A", "a", lossless=False), str(tmp_path / "C")
    decode_dataset(DecodeOptions(url, copy, format="strata", layers=1))
    info = info_dataset(copy)
    assert info.counts["kept"] == 0
    assert not [line for line in info.lines() if "5 kept, exact" in line]
    assert "each picture stores 1 layers, or fewer and its original" in info.plan


def test_the_ratio_of_a_copy_with_originals(make_archive: MakeArchive, tmp_path: Path) -> None:
    url, copy = make_archive("A", "a"), str(tmp_path / "C")
    summary = decode_dataset(DecodeOptions(url, copy, format="strata", keep_original=True))
    (line,) = [line for line in summary.lines() if line.startswith("pictures")]
    assert "ratio 1.00" in line


def test_a_repaired_record_tells_what_is_still_to_be_deleted(
    make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_archive("A", "a")
    killed_delete(monkeypatch, url, "s0001")
    next(Path(url).glob("commits/a-*")).unlink()
    verify(VerifyOptions(url, read=Subset(), repair=True))
    assert "s0001" in keys_of(url)
    assert info_dataset(url).unfinished


def test_repair_does_not_miss_pictures_that_were_deleted(
    toy: Any, without_ray: None, tmp_path: Path
) -> None:
    """Whoever deletes a picture for good removes it from the folder, too."""
    root, url = folder(tmp_path / "photos", ["a0", "a1", "a2", "a3"]), str(tmp_path / "A")
    compress(url, root)
    delete(url, "a1")
    (root / "a1.png").unlink()
    next(Path(url).glob("data/*")).unlink()
    assert verify(VerifyOptions(url, repair=True)).exit_code == 0
    assert keys_of(url) == ["a0", "a2", "a3"]


def test_the_plan_of_archives_that_keep_different_files(
    make_archive: MakeArchive, tmp_path: Path
) -> None:
    lossy: dict[str, Any] = {"lossless": False}
    first = make_archive("A", "a", keep_original="always", store_layers=3, **lossy)
    second = make_archive("B", "b", keep_original="never", **lossy)
    merge_datasets(MergeOptions(inputs=(first, second), output=str(tmp_path / "C")))
    info = info_dataset(str(tmp_path / "C"))
    assert info.counts["kept"] == 5
    assert not [line for line in info.plan if "originals" in line]
