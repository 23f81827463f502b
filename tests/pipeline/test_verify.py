"""Every kind of damage is found, named, and repaired where that is possible."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec import zoo
from pipeline import DatasetError, open_dataset
from pipeline.commit import Ledger, manifest_name
from pipeline.compress import CompressOptions, compress
from pipeline.dataset import Dataset
from pipeline.scheduler import Outcome, Task
from pipeline.storage import Store
from pipeline.verification import verifier
from pipeline.verification.checks import Damage
from pipeline.verification.footers import FileChecker
from pipeline.verification.verify import Subset, VerifyOptions, VerifyReport, verify
from tests.pipeline.makers import ToyCodec, png, samples, write_tar

FULL = Subset()
Pictures = dict[str, np.ndarray]


@dataclass(frozen=True)
class Archive:
    """A small lossless dataset of the shards a and b, and what was in it at first."""

    root: Path
    pictures: Pictures

    @property
    def dataset(self) -> Dataset:
        return open_dataset(str(self.root))

    def file(self, stem: str = "a") -> Path:
        (name,) = (f.name for f in self.dataset.files if f.name.startswith(f"{stem}-"))
        return self.root / "data" / f"{name}.parquet"

    def record(self, stem: str = "a") -> Path:
        return self.root / "commits" / f"{self.file(stem).stem}.json"

    def verify(self, **options: Any) -> VerifyReport:
        return verify(VerifyOptions(dataset=str(self.root), **options))

    def check_whole(self) -> None:
        """It holds what it held at first, and nothing is damaged."""
        report = self.verify(read=FULL)
        assert [damage.to_json() for damage in report.damaged] == []
        assert (report.exit_code, report.files_read, report.pictures_decoded) == (0, 2, 9)
        now = all_pictures(self.dataset)
        assert now.keys() == self.pictures.keys()
        assert all((now[key] == picture).all() for key, picture in self.pictures.items())


def all_pictures(dataset: Dataset) -> Pictures:
    return {r.key: dataset.codec().decode([r.encoded])[0] for r in dataset.read()}


@pytest.fixture
def archive(toy: ToyCodec, without_ray: None, tmp_path: Path) -> Archive:
    root = tmp_path / "set"
    write_tar(tmp_path / "a.tar", samples(5))
    write_tar(tmp_path / "b.tar", [*samples(4, 10), ("bad.png", b"broken"), ("._x.png", b"")])
    inputs = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    options = CompressOptions(inputs=inputs, output=str(root), model="toy", lossless=True)
    assert compress(options).ok == 9
    return Archive(root, all_pictures(open_dataset(str(root))))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def place_of(path: Path, content: bytes) -> int:
    data = path.read_bytes()
    assert data.count(content) == 1
    return data.index(content)


def first_record(archive: Archive) -> Any:
    return archive.dataset.record("s0002")


def in_a_layer(archive: Archive) -> None:
    layer = first_record(archive).encoded.layers[2]
    flip(archive.file(), place_of(archive.file(), layer) + len(layer) // 2)


def in_the_header_column(archive: Archive) -> None:
    """Headers of pictures of one size are equal, and lie one after the other."""
    header = first_record(archive).encoded.header
    flip(archive.file(), archive.file().read_bytes().index(header) + 3)


def in_the_footer(archive: Archive) -> None:
    """A column's name, behind all pages."""
    flip(archive.file(), archive.file().read_bytes().rindex(b"layer_02") + 7)


def in_the_magic_number(archive: Archive) -> None:
    flip(archive.file(), archive.file().stat().st_size - 6)


def truncated(archive: Archive) -> None:
    data = archive.file().read_bytes()
    archive.file().write_bytes(data[: len(data) // 2])


def replaced(archive: Archive) -> None:
    shutil.copy(archive.file("b"), archive.file())


def replaced_by_one_of_its_size(archive: Archive) -> None:
    archive.file().write_bytes(bytes(archive.file().stat().st_size))


def missing(archive: Archive) -> None:
    archive.file().unlink()


Harm = Callable[[Archive], None]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (in_the_footer, "its footer is damaged"),
        (in_the_magic_number, "footer"),
        (truncated, "bytes, and had"),
        (replaced, "bytes, and had"),
        (replaced_by_one_of_its_size, "footer"),
        (missing, "is gone"),
    ],
)
def test_what_a_quick_check_finds_in_a_data_file(archive: Archive, harm: Harm, words: str) -> None:
    path, source = archive.file(), archive.root.parent / "a.tar"
    harm(archive)
    report = archive.verify()
    (damage,) = report.damaged
    assert (damage.kind, damage.path) == ("data", f"data/{path.name}")
    assert damage.source == str(source)
    assert words in damage.problems[0]
    assert report.exit_code == 1
    assert damage.path in "\n".join(report.lines())
    left = path.read_bytes() if path.exists() else None

    repaired = archive.verify(repair=True)
    assert [d.repaired for d in repaired.damaged] == [True]
    assert (repaired.exit_code, repaired.new_manifest) == (0, 2)
    assert archive.file().name == f"{path.stem}.1.parquet"
    assert (path.read_bytes() if path.exists() else None) == left  # nothing is overwritten
    archive.check_whole()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (in_a_layer, ["row group 0, column layer_02", "'s0002': layer 2 does not match"]),
        (in_the_header_column, ["row group 0, column header", "'s0000': layer 0"]),
    ],
)
def test_what_only_a_full_check_finds(archive: Archive, harm: Harm, words: list[str]) -> None:
    path = archive.file()
    harm(archive)
    assert archive.verify().exit_code == 0
    for decode in (False, True):
        report = archive.verify(read=FULL, decode=decode)
        (damage,) = report.damaged
        assert (damage.kind, damage.path) == ("data", f"data/{path.name}")
        assert "sha256" in damage.problems[0]
        text = "\n".join(damage.problems)
        assert all(word in text for word in words)
        assert "s0001': layer" not in text
        assert report.exit_code == 1
    assert archive.verify(read=FULL, repair=True).exit_code == 0
    archive.check_whole()


def test_a_sound_dataset(archive: Archive) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.root.rglob("*")}
    quick = archive.verify()
    assert (quick.exit_code, quick.damaged, quick.files, quick.files_read) == (0, [], 2, 0)
    assert "nothing is damaged" in quick.lines()
    size = sum(path.stat().st_size for path in (archive.root / "data").iterdir())
    assert quick.bytes_read < size / 2 + 1000  # footers, not pictures
    archive.check_whole()
    assert archive.verify(read=FULL, repair=True, collect_garbage=True, older_than=0).removed == []
    assert {path: path.stat().st_mtime_ns for path in archive.root.rglob("*")} == before


def test_damaged_footers_do_no_harm(archive: Archive) -> None:
    """Neither an exception nor (as with pyarrow left to itself) the end of the process."""
    (file,) = (f for f in archive.dataset.files if f.name.startswith("a-"))
    checker, path = FileChecker(archive.dataset), archive.file()
    whole = path.read_bytes()
    found = 0
    places = range(len(whole) - file.footer_bytes, len(whole), 3)
    for place in places:
        path.write_bytes(whole)
        flip(path, place)
        checked = checker.check(file)
        assert checked.error == ""
        found += bool(checked.damage)
    assert found > len(places) / 2  # others are in what nobody needs, and change the sha256


# -- records, manifest, model, plan ---------------------------------------------------------------


def lose(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_bytes(b'{"half')


def of_another_plan(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "x"}))


def wrong_count(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"ok": record["ok"] - 1, "bad": record["bad"] + 1}))


def wrong_rows(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"rows": record["rows"] + 1, "ok": record["ok"] + 1}))


@pytest.mark.parametrize("harm", [lose, spoil, of_another_plan, wrong_count, wrong_rows])
def test_records_are_made_anew_from_their_files(
    archive: Archive, harm: Callable[[Path], None]
) -> None:
    path = archive.record()
    before = json.loads(path.read_text())
    harm(path)
    report = archive.verify(read=FULL)
    (damage,) = report.damaged
    assert (damage.kind, damage.path) == ("record", f"commits/{path.name}")
    repaired = archive.verify(repair=True)
    assert [d.repaired for d in repaired.damaged] == [True]
    assert (repaired.exit_code, repaired.new_manifest) == (0, 0)
    assert json.loads(path.read_text()) == before
    assert archive.file().stem == path.stem
    archive.check_whole()


def test_a_lost_record_does_not_vouch_for_a_damaged_file(archive: Archive) -> None:
    """The record made anew would make the damage the truth."""
    old = archive.record()
    old.unlink()
    in_a_layer(archive)
    report = archive.verify(repair=True)
    assert {(d.kind, d.repaired) for d in report.damaged} == {("record", True), ("data", True)}
    assert archive.file().name == f"{old.stem}.1.parquet"
    archive.check_whole()


def test_both_record_and_file(archive: Archive) -> None:
    old = archive.record()
    spoil(old)
    truncated(archive)
    report = archive.verify(repair=True)
    assert report.exit_code == 0
    assert len(report.damaged) == 2
    archive.check_whole()
    assert Ledger(archive.dataset.store, archive.dataset.fingerprint).records()  # none is damaged


def edit_manifest(archive: Archive, change: Callable[[dict[str, Any]], None]) -> None:
    path = archive.root / manifest_name(1)
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def wrong_total(manifest: dict[str, Any]) -> None:
    manifest["totals"]["ok"] += 1


def wrong_size(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["bytes"] += 1
    manifest["totals"]["bytes"] += 1


def wrong_hash(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["sha256"] = "0" * 64


def no_file(manifest: dict[str, Any]) -> None:
    del manifest["files"][0]["rows"]


def of_another(manifest: dict[str, Any]) -> None:
    manifest["fingerprint"] = "f" * 64


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (wrong_total, "manifest", "its totals say ok 10"),
        (wrong_size, "manifest", "bytes is"),
        (wrong_hash, "record", "do not agree on sha256"),
        (no_file, "manifest", "not a manifest"),
        (of_another, "manifest", "other parameters"),
    ],
)
def test_a_wrong_manifest(
    archive: Archive, change: Callable[[dict[str, Any]], None], kind: str, words: str
) -> None:
    edit_manifest(archive, change)
    report = archive.verify(read=FULL)
    (damage,) = report.damaged
    assert damage.kind == kind
    assert words in damage.problems[0]
    repaired = archive.verify(repair=True)
    assert (repaired.exit_code, repaired.new_manifest) == (0, 2)
    assert {path.name for path in (archive.root / "data").iterdir()} == {
        archive.file("a").name,
        archive.file("b").name,
    }
    archive.check_whole()


def test_an_unreadable_manifest(archive: Archive) -> None:
    spoil(archive.record("a"))
    spoil(archive.root / manifest_name(1))
    report = archive.verify()
    assert [d.kind for d in report.damaged] == ["manifest", "record"]
    assert report.files == 1  # nothing else tells of the other
    assert archive_repaired(archive) == 2
    archive.check_whole()


def test_neither_manifest_nor_record(archive: Archive) -> None:
    """A data file tells its source itself: nothing of it is lost."""
    path, record = archive.file("a"), archive.record("a")
    record.unlink()
    spoil(archive.root / manifest_name(1))
    report = archive.verify(collect_garbage=True, older_than=0)
    assert {(d.kind, d.path) for d in report.damaged} == {
        ("manifest", manifest_name(1)),
        ("record", f"commits/{record.name}"),
    }
    assert path.exists()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    (hopeless,) = (d for d in archive.verify(repair=True).damaged if d.kind == "record")
    assert "run compress_dataset.py" in hopeless.why_not
    path.write_bytes(whole)
    (archive.root / manifest_name(2)).unlink()
    assert archive_repaired(archive) == 2
    archive.check_whole()


def test_what_an_older_manifest_knows(archive: Archive) -> None:
    record = archive.record("a")
    shutil.copy(archive.root / manifest_name(1), archive.root / manifest_name(2))
    spoil(archive.root / manifest_name(2))
    record.unlink()
    assert archive.verify().files == 2
    assert archive_repaired(archive) == 3
    archive.check_whole()


def archive_repaired(archive: Archive) -> int:
    report = archive.verify(repair=True)
    assert report.exit_code == 0
    return report.new_manifest


def test_files_that_another_job_adds_while_one_is_repaired(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncated(archive)
    write_tar(tmp_path / "c.tar", samples(2, 50))
    more = (str(tmp_path / "c.tar"), str(tmp_path / "b.tar"))
    options = CompressOptions(inputs=more, output=str(archive.root), model="toy", lossless=True)
    real = verifier.ShardVerifier.run
    began: list[int] = []

    def run(self: Any, file: Any) -> Any:
        began.append(1)
        if len(began) == 1:
            compress(options)
        return real(self, file)

    monkeypatch.setattr(verifier.ShardVerifier, "run", run)
    assert archive.verify(read=FULL, repair=True).exit_code == 0
    assert len(archive.dataset) == 11


@pytest.mark.parametrize("harm", [lose, spoil])
def test_a_model(
    archive: Archive, toy: ToyCodec, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = archive.root / "models" / toy.model_id / "model.safetensors"
    harm(copy)
    report = archive.verify(read=FULL)
    (damage,) = report.damaged
    assert (damage.kind, report.model_state) == ("model", "damaged")
    assert report.files_read == 2
    assert report.pictures_decoded == 0
    hopeless = archive.verify(repair=True)
    assert hopeless.exit_code == 1
    assert toy.model_id in hopeless.damaged[0].why_not

    monkeypatch.setattr(zoo, "WEIGHTS", toy.model_path.parent)
    assert archive.verify(repair=True).exit_code == 0
    assert copy.read_bytes() == toy.model_path.read_bytes()
    archive.check_whole()


@pytest.mark.parametrize("harm", [lose, spoil])
def test_a_plan(archive: Archive, harm: Callable[[Path], None]) -> None:
    harm(archive.root / "dataset.json")
    report = archive.verify(repair=True)
    (damage,) = report.damaged
    assert (damage.kind, report.exit_code) == ("plan", 1)
    assert "run compress_dataset.py" in damage.why_not
    (archive.root / "dataset.json").unlink(missing_ok=True)
    inputs = tuple(str(archive.root.parent / name) for name in ("a.tar", "b.tar"))
    compress(CompressOptions(inputs=inputs, output=str(archive.root), model="toy", lossless=True))
    archive.check_whole()


def test_parameters_that_were_edited(archive: Archive) -> None:
    path = archive.root / "dataset.json"
    plan = json.loads(path.read_text())
    plan["parameters"]["layers"] = 3
    path.write_text(json.dumps(plan))
    assert [d.kind for d in archive.verify().damaged] == ["plan"]


def test_no_dataset(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(DatasetError, match="no dataset"):
        verify(VerifyOptions(dataset=str(tmp_path / "nowhere")))
    (archive.root / manifest_name(1)).unlink()
    with pytest.raises(DatasetError, match="has not finished"):
        archive.verify()


# -- repairs that cannot be ----------------------------------------------------------------------


def test_a_source_that_is_gone_or_changed(archive: Archive, tmp_path: Path) -> None:
    truncated(archive)
    left = archive.file().read_bytes()
    tar = tmp_path / "a.tar"
    tar.rename(tmp_path / "kept")
    report = archive.verify(repair=True)
    assert report.exit_code == 1
    assert "put it back" in report.damaged[0].why_not
    assert str(tar) in report.damaged[0].why_not
    write_tar(tar, samples(5, 100))
    report = archive.verify(repair=True)
    assert "has changed since" in report.damaged[0].why_not
    assert not report.damaged[0].repaired
    assert any("not repaired" in line for line in report.lines())
    assert archive.file().read_bytes() == left
    (tmp_path / "kept").replace(tar)  # with the old time
    assert archive.verify(repair=True).exit_code == 0
    archive.check_whole()


def test_a_second_repair_takes_the_next_generation(archive: Archive) -> None:
    name = archive.file().stem
    truncated(archive)
    assert archive.verify(repair=True).exit_code == 0
    in_a_layer(archive)
    assert archive.verify(read=FULL, repair=True).exit_code == 0
    assert archive.file().stem == f"{name}.2"
    inputs = tuple(str(archive.root.parent / name) for name in ("a.tar", "b.tar"))
    options = CompressOptions(inputs=inputs, output=str(archive.root), model="toy", lossless=True)
    assert compress(options).new_samples == 0  # the next job takes the newest, too
    assert archive.file().stem == f"{name}.2"
    archive.check_whole()


def test_a_store_that_does_not_answer_is_no_damage(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.read

    def read(self: Store, name: str) -> bytes:
        if name.startswith("commits/a-"):
            raise TimeoutError("no answer")
        return real(self, name)

    monkeypatch.setattr(Store, "read", read)
    report = archive.verify(repair=True)
    assert (report.damaged, report.exit_code) == ([], 1)
    (one,) = report.unchecked
    assert one.shard.startswith("data/a-")
    assert "no answer" in one.reason


def test_a_worker_that_fails_is_no_damage(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_tasks(kind: type, settings: Any, tasks: list[Task], *_: object) -> list[Outcome]:
        return [Outcome(task, None, "its worker died", 3, True) for task in tasks]

    monkeypatch.setattr("pipeline.running.run_tasks", run_tasks)
    report = archive.verify(read=FULL, repair=True)
    assert (report.damaged, report.exit_code, len(report.unchecked)) == ([], 1, 2)


# -- what is reported, but no damage ---------------------------------------------------------------


def test_what_is_beside_the_dataset(archive: Archive, tmp_path: Path) -> None:
    (archive.root / "data" / "notes.txt").write_text("hello")
    (archive.root / "data" / "lost-0123456789ab.parquet").write_bytes(b"12345")
    manifest = (archive.root / manifest_name(1)).read_bytes()
    write_tar(tmp_path / "c.tar", samples(1, 50))
    options = CompressOptions(
        inputs=(str(tmp_path / "c.tar"), str(tmp_path / "none.tar")),
        output=str(archive.root),
        model="toy",
        lossless=True,
    )
    write_tar(tmp_path / "none.tar", samples(1, 60))
    compress(options)
    for path in archive.root.glob("manifest-*"):
        path.unlink()
    (archive.root / manifest_name(1)).write_bytes(manifest)  # as if the job had not finished
    report = archive.verify(older_than=0)
    assert (report.exit_code, report.damaged) == (0, [])
    assert report.foreign == ["data/notes.txt"]
    assert [name.split("-")[0] for name in report.unlisted] == ["c", "none"]
    assert [item.path for item in report.orphans] == ["data/lost-0123456789ab.parquet"]
    assert (report.totals["bad"], report.totals["filtered"]) == (1, 1)

    collected = archive.verify(older_than=0, collect_garbage=True)
    assert [(item.path, item.bytes) for item in collected.removed] == [
        ("data/lost-0123456789ab.parquet", 5)
    ]
    assert not (archive.root / "data" / "lost-0123456789ab.parquet").exists()
    assert (archive.root / "data" / "notes.txt").exists()


def test_what_a_repair_replaced_is_garbage_later(archive: Archive) -> None:
    old = archive.file()
    truncated(archive)
    assert archive.verify(repair=True, collect_garbage=True).removed == []
    report = archive.verify(collect_garbage=True, older_than=0)
    assert {item.path for item in report.removed} == {
        f"data/{old.name}",
        f"commits/{old.stem}.json",
    }
    assert not old.exists()
    archive.check_whole()


def test_garbage_stays_while_something_is_damaged(archive: Archive) -> None:
    """What seems to be of no use may be all that is left."""
    orphan = archive.root / "data" / "lost-0123456789ab.parquet"
    orphan.write_bytes(b"12345")
    truncated(archive)
    report = archive.verify(collect_garbage=True, older_than=0)
    assert report.removed == []
    assert orphan.exists()
    assert any("garbage was not collected" in line for line in report.lines())


def test_a_damaged_record_that_nobody_lists(archive: Archive) -> None:
    stray = archive.root / "commits" / "lost-0123456789ab.json"
    stray.write_bytes(b"{}")
    (damage,) = archive.verify().damaged
    assert (damage.kind, damage.path) == ("record", f"commits/{stray.name}")
    assert archive.verify(repair=True).exit_code == 0
    assert not stray.exists()
    archive.check_whole()


# -- parts, reports --------------------------------------------------------------------------------


def test_parts_make_a_whole(archive: Archive) -> None:
    in_a_layer(archive)
    parts = [archive.verify(read=Subset(n, 2)) for n in (1, 2)]
    assert [part.files_read for part in parts] == [1, 1]
    assert sorted(part.exit_code for part in parts) == [0, 1]
    files = archive.dataset.files
    assert sorted(Subset(share=0.01, seed=s).choose(files)[0].name for s in range(20)) != sorted(
        [files[0].name] * 20
    )
    assert Subset(share=0.5, seed=3).choose(files) == Subset(share=0.5, seed=3).choose(files)
    assert Subset(share=1.0).choose(files) == sorted(files, key=lambda file: file.name)


def test_problems_are_counted_and_the_first_kept(archive: Archive) -> None:
    many = Damage("data", "x", [str(n) for n in range(50)])
    assert (len(many.problems), many.problem_count) == (20, 50)


def test_pixels_that_are_not_those(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that decode, but to something else than was encoded."""
    real = ToyCodec._decode

    def decode(self: ToyCodec, one: Any, layers: int | None) -> np.ndarray:
        image = real(self, one, layers)
        image[0, 0, 0] ^= 1
        return image

    monkeypatch.setattr(ToyCodec, "_decode", decode)
    report = archive.verify(read=FULL)
    assert len(report.damaged) == 2
    assert any("'s0000': decodes to other pixels" in p for d in report.damaged for p in d.problems)


def test_originals_that_were_kept(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "kept"
    tar = write_tar(tmp_path / "k.tar", [("k.png", png(1))])
    options = CompressOptions(
        inputs=(str(tar),), output=str(root), model="toy", keep_original="always"
    )
    compress(options)
    kept = Archive(root, {})
    path = kept.file("k")
    flip(path, place_of(path, png(1)) + 40)
    (damage,) = kept.verify(read=FULL).damaged
    assert any("'k': its original is not the file that it was" in p for p in damage.problems)


def test_the_report_as_json(archive: Archive) -> None:
    truncated(archive)
    report = json.loads(json.dumps(archive.verify(read=FULL, repair=True).to_json()))
    assert report["level"] == "full"
    assert report["damaged"][0]["repaired"] is True
    assert report["damaged"][0]["source"].endswith("a.tar")
    assert report["model"]["state"] == "sound"
    assert report["totals"]["ok"] == 9
    assert (report["manifest"], report["new_manifest"], report["exit_code"]) == (1, 2, 0)


def test_stopping(archive: Archive) -> None:
    truncated(archive)
    report = verify(VerifyOptions(dataset=str(archive.root), repair=True), lambda: "enough")
    assert (report.stopped, report.exit_code) == ("enough", 1)
    assert not any(damage.repaired for damage in report.damaged)


def test_no_secrets_in_the_event_log(archive: Archive, tmp_path: Path) -> None:
    log = tmp_path / "log"
    archive.verify(log=str(log), source_options={"secret": "xyzzy"})
    assert "job_finished" in log.read_text()
    assert "xyzzy" not in log.read_text()
