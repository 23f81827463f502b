"""The steps of a job that writes a dataset, without Ray and without pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.job import run_dataset_job
from pipeline.dataset.layout import manifest_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest import latest_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.records import Records
from pipeline.running.progress.summary import Summary
from pipeline.running.tasks import Outcome, Task
from pipeline.stores.store import Store

PLAN = Plan("dataset.json", {"a": 1})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "archive"))


def run_job(store: Store, *names: str, failing: str = "") -> Summary:
    """A job whose data files have ten bytes each."""
    summary = Summary("done")
    ledger = Ledger(store, PLAN.fingerprint)

    def sources(done: Mapping[str, Any], lost: Mapping[str, Any]) -> dict[str, str]:
        return {name: f"{name}.tar" for name in names}

    def run(done: Records) -> list[Outcome]:
        new = [name for name in names if name not in done]
        for name in set(new) - {failing}:
            store.create(f"data/{name}.parquet", b"0123456789")
            source = {"url": f"{name}.tar", "size": 1, "etag": ""}
            counts = dict.fromkeys(("rows", "ok", "bad", "filtered"), 1)
            ledger.commit(name, {**counts, "bytes": 10, "footer_bytes": 9, "source": source})
        return [
            Outcome(Task(n, ()), None, "cut") if n == failing else Outcome(Task(n, ()), {})
            for n in new
        ]

    run_dataset_job(store, PLAN, sources, run, summary, publish_model=lambda: None)
    return summary


def listed(store: Store) -> list[str]:
    return [file["name"] for file in newest_manifest(store)["files"]]


def newest_manifest(store: Store) -> dict[str, Any]:
    return dict(json.loads(store.read(manifest_name(latest_manifest(store)))))


def test_a_damaged_file_of_this_job_is_done_again(store: Store, tmp_path: Path) -> None:
    run_job(store, "x", "y")
    (tmp_path / "archive/data/x.parquet").write_bytes(b"123")
    summary = run_job(store, "x")
    assert "warning: x was damaged or lost and is done again" in summary.notes
    assert not summary.failed_shards
    assert listed(store) == ["x", "y"]
    assert store.sizes("data") == {"x.parquet": 10, "y.parquet": 10}


@pytest.mark.parametrize("left", [b"123", None])
def test_a_damaged_file_of_another_job_stays_and_is_told(
    store: Store, tmp_path: Path, left: bytes | None
) -> None:
    """This job has no source for it: what is left must not go, nor may it leave the manifest."""
    run_job(store, "x", "y")
    data = tmp_path / "archive/data/x.parquet"
    data.unlink()
    if left is not None:
        data.write_bytes(left)
    for _ in range(2):
        summary = run_job(store, "y", "z")
        assert [one.shard for one in summary.failed_shards] == [f"{store.url}/data/x.parquet"]
        assert "its source x.tar is not among the inputs" in summary.failed_shards[0].reason
        assert not any("done again" in note for note in summary.notes)
        assert listed(store) == ["x", "y", "z"]
        assert newest_manifest(store)["failed"] == []
        assert (data.read_bytes() if data.exists() else None) == left
    (tmp_path / "archive/commits/x.json").unlink()  # the message's last resort
    assert not run_job(store, "y", "z").failed_shards
    assert listed(store) == ["y", "z"]


def test_what_failed_stays_listed_until_it_is_done(store: Store) -> None:
    run_job(store, "x", "y", failing="x")
    failed = [{"url": "x.tar", "error": "cut (attempts: 0)"}]
    assert newest_manifest(store)["failed"] == failed
    assert not run_job(store, "z").failed_shards
    assert (newest_manifest(store)["failed"], listed(store)) == (failed, ["y", "z"])
    run_job(store, "x")
    assert (newest_manifest(store)["failed"], listed(store)) == ([], ["x", "y", "z"])
