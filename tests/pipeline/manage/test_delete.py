"""Deleted samples are removed from every file, for good; everything else stays the same."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import delete_samples as script
from pipeline import (
    CompressOptions,
    DatasetError,
    DecodeOptions,
    DeleteOptions,
    DeleteSummary,
    MergeOptions,
    compress_dataset,
    decode_dataset,
    delete_samples,
    info_dataset,
    merge_datasets,
    open_dataset,
)
from pipeline.dataset import manifest_writer
from pipeline.dataset.deletions import Deletions
from pipeline.dataset.layout import MANIFESTS, split_generation
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.manage import delete_job
from pipeline.manage.delete_job import DamagedArchiveError
from pipeline.manage.merge_checks import MergeError
from pipeline.reader.index_keys import index_keys
from pipeline.reader.key_map import KeyMap
from pipeline.stores.store import StorageError, Store
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.pipeline.makers import png, samples, write_tar
from tests.pipeline.manage.conftest import MakeArchive
from tests.pipeline.manage.killing import Killed, contents, killer, points

GONE = ("s0001", "s0011", "bad-a")


@pytest.fixture
def archive(make_archive: MakeArchive) -> str:
    return make_archive("A", "a", "b", "c", keep_original="always")


def delete(url: str, *keys: str, **options: Any) -> DeleteSummary:
    return delete_samples(DeleteOptions(dataset=url, keys=keys, **options))


def rows(url: str) -> list[dict[str, Any]]:
    """Everything in the dataset's order, but the rows' numbers."""
    found = []
    dataset = open_dataset(url)
    for file in dataset.files:
        with dataset.open(file) as opened:
            found += [{**row, "index": None} for row in opened.parquet.read().to_pylist()]
    return found


def check_sound(url: str) -> None:
    report = verify(VerifyOptions(url, read=Subset()))
    assert report.exit_code == 0, report.lines()
    assert not report.orphans
    assert info_dataset(url).exit_code == 0


def check_gone(url: str, before: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """No file has the keys, or any of their bytes."""
    secrets = [key.encode() for key in keys]
    for row in before:
        if row["key"] in keys:
            stored = [row[name] for name in row if name.startswith("layer_") or name == "original"]
            secrets += [value for value in stored if value]
    assert len(secrets) > 2 * len(keys)
    files = contents(Store(url))
    for path, data in files.items():
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        assert not any(secret in raw for secret in secrets), path
    assert [row for row in rows(url) if row["key"] not in keys] == rows(url)


def test_they_are_gone_and_the_rest_stays(archive: str) -> None:
    before, files = rows(archive), contents(Store(archive))
    summary = delete(archive, *GONE)
    assert (summary.exit_code, summary.deleted, summary.deleted_keys) == (0, 3, 3)
    assert len(summary.files) == 2
    assert rows(archive) == [row for row in before if row["key"] not in GONE]
    dataset = open_dataset(archive)
    assert [len(row["layer_00"] or b"") > 0 for row in rows(archive)].count(True) == 13
    for key in [*dataset.keys()]:
        assert dataset.locate(key).indexed  # type: ignore[union-attr]
        assert dataset.original(key)
    for key in GONE:
        assert dataset.locate(key) is None
        with pytest.raises(DatasetError, match="no picture with the key"):
            dataset.record(key)
    untouched = next(path for path in files if path.startswith("data/c-"))
    assert contents(Store(archive))[untouched] == files[untouched]
    check_gone(archive, before, GONE)
    check_sound(archive)
    counts = info_dataset(archive).counts
    assert (counts["rows"], counts["deleted"]) == (21 - 3, 3)
    deleted = [file.record.get("deleted", 0) for file in dataset.files]
    assert deleted == [2, 1, 0]


def test_more_and_more(archive: str) -> None:
    before = rows(archive)
    for key in GONE:
        assert delete(archive, key).exit_code == 0
    check_gone(archive, before, GONE)
    dataset = open_dataset(archive)
    assert [file.name[-2:] for file in dataset.files][:2] == [".2", ".1"]
    assert [file.record.get("deleted", 0) for file in dataset.files] == [2, 1, 0]
    check_sound(archive)


def test_every_sample_of_a_shard(archive: str) -> None:
    dataset = open_dataset(archive)
    with dataset.open(dataset.files[0]) as opened:
        keys = [row["key"] for row in opened.rows(["key"])]
    assert len(keys) == 7
    assert delete(archive, *keys).exit_code == 0
    dataset = open_dataset(archive)
    assert dataset.files[0].rows == 0
    assert len(dataset) == 10
    assert [record.key for record in dataset.fetch(["s0010"], 1)] == ["s0010"]
    check_sound(archive)


def test_keys_that_are_not_there(archive: str) -> None:
    summary = delete(archive, "s0001", "nobody", "s9999")
    assert (summary.exit_code, summary.deleted) == (1, 1)
    assert summary.missing == ["nobody", "s9999"]
    assert "not in the archive: 2 keys: 'nobody', 's9999'" in summary.lines()
    before = contents(Store(archive))
    again = delete(archive, "s0001", "nobody")
    assert (again.exit_code, again.already, again.missing) == (1, 1, ["nobody"])
    assert delete(archive, "s0001").exit_code == 0
    assert contents(Store(archive)) == before


def test_nothing_is_done_where_nothing_is_found(archive: str) -> None:
    before = contents(Store(archive))
    assert delete(archive, "nobody").exit_code == 1
    assert contents(Store(archive)) == before


def test_a_key_that_several_shards_have(make_archive: MakeArchive, tmp_path: Path) -> None:
    for letter in "de":
        write_tar(tmp_path / f"{letter}.tar", [*samples(2), (f"{letter}.png", png(3))])
    archive = make_archive("A", "d", "e")
    before = rows(archive)
    summary = delete(archive, "s0001")
    assert (summary.deleted, summary.deleted_keys) == (2, 1)
    check_gone(archive, before, ("s0001",))
    check_sound(archive)


def test_keys_that_are_no_text(make_archive: MakeArchive, tmp_path: Path) -> None:
    write_tar(tmp_path / "d.tar", [*samples(2), ("caf\udce9.png", png(3))])
    archive = make_archive("A", "d")
    assert script.main([archive, "--keys", "caf\udce9"]) == 0
    assert [*open_dataset(archive).keys()] == ["s0000", "s0001"]
    next(Path(archive).glob("data/*")).unlink()
    make_archive("A", "d")
    assert [*open_dataset(archive).keys()] == ["s0000", "s0001"]


def test_a_dry_run_changes_nothing(archive: str) -> None:
    before = contents(Store(archive))
    summary = delete(archive, *GONE, "nobody", dry_run=True)
    assert contents(Store(archive)) == before
    assert (summary.exit_code, summary.deleted, summary.missing) == (1, 3, ["nobody"])
    assert summary.lines()[0] == "would delete: 3 samples of 3 keys, 2 data files to write again"


def test_maps_of_keys_and_older_manifests_go(archive: str, make_archive: MakeArchive) -> None:
    make_archive("A", "a", "b", "c", "d", keep_original="always")
    index_keys(archive)
    assert KeyMap(Store(archive), open_dataset(archive).files).files_with(["s0001"])
    delete(archive, "s0001")
    dataset = open_dataset(archive)
    assert KeyMap(Store(archive), dataset.files).files_with(["s0001"]) is None
    assert dataset.manifest == 3
    assert not [*Path(archive).glob("keys/*")]
    assert [path.name for path in Path(archive).glob("manifest-*")] == ["manifest-000003.json"]
    with pytest.raises(DatasetError, match="there is no manifest-000001"):
        open_dataset(archive, manifest=1)


def test_readers_that_are_open_see_the_old_one_or_none(archive: str) -> None:
    opened = open_dataset(archive)
    assert opened.locate("s0001")  # its place is remembered
    delete(archive, "s0001")
    with pytest.raises(DatasetError, match="is gone: open the archive again"):
        opened.record("s0001")
    with pytest.raises(DatasetError, match="is gone: open the archive again"):
        opened.record("s0002")
    assert opened.record("s0012").key == "s0012"
    assert open_dataset(archive).record("s0002").key == "s0002"


def test_opening_while_manifests_are_replaced(
    archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Store.read

    def meanwhile(self: Store, name: str, *most: int) -> bytes:
        if name == "manifest-000001.json":
            monkeypatch.undo()
            delete(archive, "s0001")
        return read(self, name, *most)

    monkeypatch.setattr(Store, "read", meanwhile)
    assert open_dataset(archive).manifest == 2


# -- once, whatever happens -----------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False])
def test_killed_at_any_write(
    listed: bool, archive: str, make_archive: MakeArchive, tmp_path: Path
) -> None:
    """Also where a file was recorded and is in no manifest yet."""
    if not listed:
        make_archive("A", "a", "b", "c", "d", keep_original="always")
        (Path(archive) / "manifest-000002.json").unlink()
    index_keys(archive)
    before = rows(archive)
    whole = tmp_path / "whole"
    shutil.copytree(archive, whole)
    with killer() as watching:
        assert delete(str(whole), *GONE).exit_code == 0
    expected = contents(Store(str(whole)))
    assert watching.count > 12
    for at, after in points(watching.count):
        out = str(tmp_path / f"killed-{at}-{after}")
        shutil.copytree(archive, out)
        with killer(at, after), pytest.raises(Killed):
            delete(out, *GONE)
        seen = {row["key"] for row in rows(out)}  # the old one or the new one
        assert {*GONE} <= seen or not seen & {*GONE}
        assert verify(VerifyOptions(out)).exit_code == 0
        assert delete(out, *GONE).exit_code == 0
        assert contents(Store(out)) == expected
        shutil.rmtree(out)
    check_gone(str(whole), before, GONE)
    check_sound(str(whole))


def test_names_that_lists_of_files_keep_are_told(make_archive: MakeArchive, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").write_bytes(png(number))
    url = make_archive("A", "a")
    assert not any("lists of files" in note for note in delete(url, "s0001").notes)
    compress_dataset(CompressOptions((str(photos),), url, "toy", lossless=True))
    assert any(f"lists of files in {url}/parts" in note for note in delete(url, "0").notes)


def test_killed_with_a_manifest_in_parts(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are bounds in its parts, so these go, too."""
    monkeypatch.setattr(manifest_writer, "INLINE_FILES", 0)
    monkeypatch.setattr(manifest_writer, "LONGEST_PART", 1)
    make_manifest_anew(archive)
    before = rows(archive)
    whole = str(tmp_path / "whole")
    shutil.copytree(archive, whole)
    with killer() as watching:
        assert delete(whole, "s0000", "s0004").exit_code == 0
    for at, after in points(watching.count):
        out = str(tmp_path / f"killed-{at}-{after}")
        shutil.copytree(archive, out)
        with killer(at, after), pytest.raises(Killed):
            delete(out, "s0000", "s0004")
        assert len(rows(out)) in (len(before), len(before) - 2)
        assert delete(out, "s0000", "s0004").exit_code == 0
        named = {part.path for part in open_dataset(out).files.parts}
        assert {f"{MANIFESTS}/{name}" for name in Store(out).sizes(MANIFESTS)} == named
        for path in named:
            assert b"s0000" not in gzip.decompress(Path(out, path).read_bytes())
        check_gone(out, before, ("s0000", "s0004"))
        check_sound(out)
        shutil.rmtree(out)


def make_manifest_anew(url: str) -> None:
    store, dataset = Store(url), open_dataset(url)
    store.remove("manifest-000001.json")
    done, _ = Ledger(store, dataset.fingerprint).completed("data", ".parquet")
    publish_manifest(store, Plan("dataset.json", dataset.parameters), done)
    assert len(open_dataset(url).files.parts) == len(dataset.files)


def test_killed_and_then_other_keys(archive: str, tmp_path: Path) -> None:
    """What was begun is finished, too."""
    with killer(2), pytest.raises(Killed):
        delete(archive, "s0001")
    (words,) = info_dataset(archive).unfinished
    assert words.startswith("1 sample that a job has not deleted yet: run strata delete")
    before = rows(archive)
    assert delete(archive, "s0011").exit_code == 0
    check_gone(archive, before, ("s0001", "s0011"))


def test_another_job_publishes_the_samples_meanwhile(
    archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As --retry bad may, which copies all rows that are not bad."""
    before = rows(archive)
    dataset = open_dataset(archive)
    file = dataset.files[0]
    thin = delete_job._Deletion._thin
    rounds = []

    def meanwhile(self: Any, to_go: Any) -> Any:
        rounds.append(None)
        if len(rounds) == 1:
            store = dataset.store
            record = json.loads(store.read(f"commits/{file.name}.json"))
            name = f"{file.name}.1"
            index = {**record["index"], "path": f"index/{name}.parquet"}
            store.create(f"data/{name}.parquet", store.read(file.path))
            store.create(index["path"], store.read(record["index"]["path"]))
            told = {**record, "index": index, "name": name, "generation": 1}
            store.create(f"commits/{name}.json", json.dumps(told).encode())
        return thin(self, to_go)

    monkeypatch.setattr(delete_job._Deletion, "_thin", meanwhile)
    assert delete(archive, *GONE).exit_code == 0
    assert open_dataset(archive).files[0].name == f"{file.name}.2"
    check_gone(archive, before, GONE)
    check_sound(archive)


def test_what_killed_jobs_left_of_these_shards_goes(archive: str) -> None:
    dataset = open_dataset(archive)
    file, root = dataset.files[0], Path(archive)
    data = (root / file.path).read_bytes()
    (root / f"data/{file.name}.1.parquet").write_bytes(data)
    (root / ".strata/saved").mkdir(parents=True)
    (root / f".strata/saved/{file.name}.1.0-3.parquet").write_bytes(data)
    other = root / ".strata/saved/z-0123456789ab.0-3.parquet"
    other.write_bytes(b"of a shard under way")
    before = rows(archive)
    summary = delete(archive, *GONE)
    check_gone(archive, before, GONE)
    assert open_dataset(archive).files[0].name == f"{file.name}.2"
    assert other.exists()
    assert any(note.startswith("1 file of running or killed jobs") for note in summary.notes)


# -- they do not come back ------------------------------------------------------------------------


def test_compressing_again_does_not_bring_them_back(
    archive: str, make_archive: MakeArchive
) -> None:
    before = rows(archive)
    delete(archive, *GONE)
    kept = rows(archive)
    make_archive("A", "a", "b", "c", keep_original="always")
    assert rows(archive) == kept
    for path in Path(archive).glob("data/a-*"):
        path.unlink()  # lost: the shard is compressed again
    make_archive("A", "a", "b", "c", keep_original="always")
    assert rows(archive) == kept
    assert info_dataset(archive).counts["deleted"] == 3
    check_gone(archive, before, GONE)
    check_sound(archive)


def test_trying_bad_samples_again_does_not_bring_them_back(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(archive)
    delete(archive, "s0001", "bad-a")
    monkeypatch.setattr("pipeline.compress.encoder.SampleEncoder.rows", _mending)
    tars = tuple(str(tmp_path / f"{name}.tar") for name in "abc")
    summary = compress_dataset(
        CompressOptions(tars, archive, "toy", lossless=True, keep_original="always", retry="bad")
    )
    assert summary.ok == 14 + 2  # those of b and c
    check_gone(archive, before, ("s0001",))
    assert [file.record.get("deleted", 0) for file in open_dataset(archive).files] == [2, 0, 0]
    report = verify(VerifyOptions(archive, read=Subset(), decode=False))
    assert report.exit_code == 0, report.lines()


def _mending(self: Any, file: Any, numbered: Any, clock: Any, *_: Any, **__: Any) -> Any:
    """Rows as the encoder gives them, of broken pictures too: as another release may read them."""
    from pipeline.compress.keeping import ASKED
    from pipeline.dataset.rows import Row
    from tests.pipeline.makers import picture

    for number, sample in numbered:
        encoded = self.codec.encode([picture(7)])[0]
        yield Row(sample.key, number, reason=ASKED, encoded=encoded, source_bytes=6)


def test_repair_does_not_bring_them_back(archive: str) -> None:
    before = rows(archive)
    delete(archive, *GONE)
    kept = rows(archive)
    path = next(Path(archive).glob("data/a-*"))
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    report = verify(VerifyOptions(archive, read=Subset(), repair=True))
    assert [damage.repaired for damage in report.damaged] == [True]
    assert rows(archive) == kept
    for path in Path(archive).glob("commits/*"):
        path.unlink()
    next(Path(archive).glob("manifest-*2.json")).unlink()
    max(Path(archive).glob("manifest-*")).write_text("{")
    report = verify(VerifyOptions(archive, repair=True))
    assert info_dataset(archive).counts["deleted"] == 3
    assert delete(archive, *GONE).exit_code == 0
    check_gone(archive, before, GONE)


def test_a_copy_of_the_dataset(archive: str, tmp_path: Path) -> None:
    """Deleting from the one does not touch the other; running the copy again does."""
    copy = DecodeOptions(archive, str(tmp_path / "copy"), format="strata", layers=2)
    decode_dataset(copy)
    before = rows(copy.output)
    delete(copy.output, "s0012")
    delete(archive, "s0001")
    decode_dataset(copy)
    kept = [row["key"] for row in rows(copy.output)]
    assert "s0012" not in kept
    assert "s0001" not in kept
    assert len(kept) == len(before) - 2
    # a newer file of the source does not bring back what was deleted from the copy
    path = next(Path(archive).glob("data/b-*"))
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    verify(VerifyOptions(archive, read=Subset(), repair=True))
    delete(archive, "s0011")
    decode_dataset(copy)
    kept = [row["key"] for row in rows(copy.output)]
    assert not {"s0001", "s0011", "s0012"} & {*kept}
    assert len(kept) == len(before) - 3
    report = verify(VerifyOptions(copy.output, read=Subset()))
    assert report.exit_code == 0, report.lines()


def test_merging_does_not_bring_them_back(
    archive: str, make_archive: MakeArchive, tmp_path: Path
) -> None:
    other = make_archive("B", "d", keep_original="always")
    whole = str(tmp_path / "whole")
    both = MergeOptions(inputs=(archive, other), output=whole)
    merge_datasets(both)
    delete(whole, "s0001")
    kept = rows(whole)
    merge_datasets(both)  # the archive still has it
    assert rows(whole) == kept
    delete(archive, "s0002", "s0003")
    delete(archive, "s0004")  # a generation that the merged one does not have
    with pytest.raises(MergeError, match="samples of these shards were deleted from another"):
        merge_datasets(both)
    assert rows(whole) == kept
    delete(archive, "s0001")
    delete(whole, "s0002", "s0003")
    delete(whole, "s0004")
    merge_datasets(both)
    assert not {"s0001", "s0002", "s0003", "s0004"} & {row["key"] for row in rows(whole)}
    # what was deleted before the merge stays deleted in what was merged
    fresh = str(tmp_path / "fresh")
    merge_datasets(MergeOptions(inputs=(archive, other), output=fresh))
    next(Path(fresh).glob("data/a-*")).unlink()
    make_archive("fresh", "a", "b", "c", "d", keep_original="always")
    assert [row["key"] for row in rows(fresh)] == [row["key"] for row in rows(whole)]
    check_sound(fresh)


# -- what is refused ------------------------------------------------------------------------------


def test_a_damaged_archive_is_repaired_first(archive: str) -> None:
    path = next(Path(archive).glob("data/c-*"))
    path.write_bytes(path.read_bytes()[:-4])
    before = contents(Store(archive))
    with pytest.raises(DamagedArchiveError, match=r"is damaged .*strata verify .* --repair first"):
        delete(archive, *GONE)
    assert contents(Store(archive)) == before


def test_a_damaged_file_is_not_written_again(archive: str) -> None:
    path = next(Path(archive).glob("data/a-*"))
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    with pytest.raises(StorageError, match="is not the file that was written"):
        delete(archive, *GONE)
    verify(VerifyOptions(archive, read=Subset(), repair=True))
    assert delete(archive, *GONE).exit_code == 0
    check_sound(archive)


@pytest.mark.parametrize(
    "harm", [b"{", b'{"format": 1, "files": {}}', b'{"files": {"x": {"y": 0}}}']
)
def test_a_damaged_list_stops_whoever_would_bring_samples_back(
    harm: bytes, archive: str, make_archive: MakeArchive, tmp_path: Path
) -> None:
    delete(archive, *GONE)
    next(Path(archive).glob("deleted/*")).write_bytes(harm)
    assert [one.kind for one in verify(VerifyOptions(archive)).damaged] == ["deletion"]
    assert info_dataset(archive).exit_code == 1
    next(Path(archive).glob("data/a-*")).unlink()
    with pytest.raises(StorageError, match="says which samples were deleted"):
        make_archive("A", "a", "b", "c", keep_original="always")
    with pytest.raises(StorageError, match="says which samples were deleted"):
        Deletions(Store(archive)).read()


def test_a_lost_list_is_told(archive: str) -> None:
    delete(archive, *GONE)
    next(Path(archive).glob("deleted/*")).unlink()
    report = verify(VerifyOptions(archive, repair=True))
    assert report.exit_code == 1
    (damage,) = report.damaged
    for letter, problem in zip("ab", damage.problems, strict=True):
        assert problem.startswith(f"does not say which samples of data/{letter}-")
    assert "without it they would come back" in damage.why_not


def test_the_command(archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    keys.write_text("s0001\n\nbad-a\n")
    assert script.main([archive, "--keys-file", str(keys), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["deleted"], told["dry_run"], told["exit_code"]) == (2, True, 0)
    assert script.main([archive, "--keys-file", str(keys)]) == 0
    assert "deleted: 2 samples of 2 keys, 1 data file written again" in capsys.readouterr().out
    assert script.main([archive, "--keys", "s0011", "nobody"]) == 1
    assert script.main([str(tmp_path / "no"), "--keys", "x"]) == 2
    for wrong in ([archive], [archive, "--keys-file", str(tmp_path / "no")]):
        with pytest.raises(SystemExit) as ended:
            script.main(wrong)
        assert ended.value.code == 2


def test_names_of_shards_are_those_without_generation(archive: str) -> None:
    delete(archive, "s0001")
    hashes = Deletions(Store(archive)).read().hashes
    names = {split_generation(file.name)[0] for file in open_dataset(archive).files}
    assert hashes.keys() < names
