"""Records and data files are made again, from other files and from their sources."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.dataset.layout import PLAN_NAME, manifest_name, split_generation
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.stores.store import Store
from pipeline.verify import repair
from pipeline.verify import worker as verify_worker
from tests.pipeline.makers import samples, write_tar
from tests.pipeline.verify.archives import (
    FULL,
    PICTURES,
    Archive,
    in_a_layer,
    lose,
    spoil,
    truncated,
)


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


def test_a_damaged_record_that_nobody_lists(archive: Archive) -> None:
    stray = archive.root / "commits" / "lost-0123456789ab.json"
    stray.write_bytes(b"{}")
    (damage,) = archive.verify().damaged
    assert (damage.kind, damage.path) == ("record", f"commits/{stray.name}")
    assert archive.verify(repair=True).exit_code == 0
    assert not stray.exists()
    archive.check_whole()


def test_a_source_that_is_gone_or_changed(archive: Archive) -> None:
    truncated(archive)
    left = archive.file().read_bytes()
    tar = Path(archive.tars[0])
    kept = tar.rename(tar.with_name("kept"))
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
    kept.replace(tar)  # with the old time
    assert archive.verify(repair=True).exit_code == 0
    archive.check_whole()


def test_a_second_repair_takes_the_next_generation(archive: Archive) -> None:
    name = archive.file().stem
    truncated(archive)
    assert archive.verify(repair=True).exit_code == 0
    in_a_layer(archive)
    assert archive.verify(read=FULL, repair=True).exit_code == 0
    assert archive.file().stem == f"{name}.2"
    assert archive.compress().new_samples == 0  # the next job takes the newest, too
    assert archive.file().stem == f"{name}.2"
    archive.check_whole()


def test_files_that_another_job_adds_while_one_is_repaired(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncated(archive)
    more = str(write_tar(tmp_path / "c.tar", samples(2, 50)))
    real = verify_worker.ShardVerifier.run
    began: list[int] = []

    def run(self: Any, file: Any) -> Any:
        began.append(1)
        if len(began) == 1:
            archive.compress(more, archive.tars[1])
        return real(self, file)

    monkeypatch.setattr(verify_worker.ShardVerifier, "run", run)
    assert archive.verify(read=FULL, repair=True).exit_code == 0
    assert len(archive.dataset) == 11


@pytest.mark.parametrize("unreadable", [False, True])
def test_a_manifest_that_another_job_publishes_at_the_last_moment(
    archive: Archive, unreadable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the newest and writing the next: what it added and what failed there stay."""
    truncated(archive)
    if unreadable:
        spoil(archive.root / manifest_name(1))
    more = str(write_tar(tmp_path / "c.tar", samples(2, 50)))
    failed = {"url": "d.tar", "error": "it is cut"}
    real = repair.read_manifest
    read: list[int] = []

    def read_manifest(store: Store, plan: Any, number: int) -> Any:
        found = real(store, plan, number)
        read.append(number)
        if read == [1]:
            archive.compress(more)
            others = archive.dataset
            records = {split_generation(file.name)[0]: file.record for file in others.files}
            publish_manifest(store, Plan(PLAN_NAME, others.parameters), records, [failed])
        return found

    monkeypatch.setattr(repair, "read_manifest", read_manifest)
    report = archive.verify(repair=True)
    assert (report.exit_code, read[0]) == (0, 1)
    dataset = archive.dataset
    assert set(dataset.keys()) == {*PICTURES, "s0050", "s0051"}
    assert dataset.failed == [failed]
    assert archive.file("a").name.endswith(".1.parquet")
    assert archive.verify(read=FULL).damaged == []


class Listener(http.server.BaseHTTPRequestHandler):
    """Answers nothing, and keeps what it is told."""

    told: ClassVar[list[tuple[str, str | None]]] = []

    def do_HEAD(self) -> None:
        self.told.append((self.path, self.headers["Authorization"]))
        self.send_error(404)

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[str]:
    Listener.told.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_manifest_does_not_choose_where_credentials_go(archive: Archive, listener: str) -> None:
    truncated(archive)
    for path in (archive.root / manifest_name(1), archive.record()):
        content = path.read_text().replace(archive.tars[0], f"{listener}/x.tar")
        assert listener in content
        path.write_text(content)
    options = {"headers": {"Authorization": "Bearer of mine"}}
    (damage,) = archive.verify(repair=True, source_options=options).of_kind("data")
    assert not damage.repaired
    assert f"add --source-hosts {listener} if you trust it" in damage.why_not
    assert Listener.told == []
    others = ("http://127.0.0.1", "https://" + listener[7:], "s3://x")
    archive.verify(repair=True, source_options=options, source_hosts=others)
    assert Listener.told == []
    named = (f"{listener}/whatever",)
    (damage,) = archive.verify(repair=True, source_options=options, source_hosts=named).of_kind(
        "data"
    )
    assert "its source" in damage.why_not
    assert ("/x.tar", "Bearer of mine") in Listener.told
