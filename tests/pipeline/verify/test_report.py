"""The report of a check, unknown files in the dataset, and when garbage is removed."""

import json
from pathlib import Path

from pipeline.dataset.layout import manifest_name
from pipeline.verify.checks import Damage
from pipeline.verify.job import VerifyOptions, verify
from tests.pipeline.makers import samples, write_tar
from tests.pipeline.verify.archives import FULL, Archive, truncated


def test_the_report_as_json(archive: Archive) -> None:
    truncated(archive)
    report = json.loads(json.dumps(archive.verify(read=FULL, repair=True).to_json()))
    assert report["level"] == "full"
    assert report["damaged"][0]["repaired"] is True
    assert report["damaged"][0]["source"].endswith("a.tar")
    assert report["model"]["state"] == "sound"
    assert report["totals"]["ok"] == 9
    assert (report["manifest"], report["new_manifest"], report["exit_code"]) == (1, 2, 0)


def test_problems_are_counted_and_the_first_kept(archive: Archive) -> None:
    many = Damage("data", "x", [str(n) for n in range(50)])
    assert (len(many.problems), many.problem_count) == (20, 50)


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


def test_what_is_beside_the_dataset(archive: Archive, tmp_path: Path) -> None:
    (archive.root / "data" / "notes.txt").write_text("hello")
    (archive.root / "data" / "lost-0123456789ab.parquet").write_bytes(b"12345")
    manifest = (archive.root / manifest_name(1)).read_bytes()
    write_tar(tmp_path / "c.tar", samples(1, 50))
    write_tar(tmp_path / "none.tar", samples(1, 60))
    archive.compress(str(tmp_path / "c.tar"), str(tmp_path / "none.tar"))
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
        f"index/{old.name}",
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
    assert any("garbage was not removed" in line for line in report.lines())
