"""Publishing is all or nothing and first come first served; resuming is exact or refused."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import commit, storage
from pipeline.commit import Ledger, Plan, PlanMismatchError, check_inputs, shard_name
from pipeline.shards import Shard
from pipeline.storage import StorageError, Store

SHARD = Shard("s3://bucket/a-000.tar", 1000, "abc")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out"
    return Store(url)


def test_the_first_writer_wins(store: Store, tmp_path: Path) -> None:
    assert store.create("d/x.json", b"first")
    assert not store.create("d/x.json", b"second")
    (tmp_path / "third").write_bytes(b"third")
    assert not store.create_from("d/x.json", tmp_path / "third")
    assert store.create_from("d/y.json", tmp_path / "third")
    assert store.read("d/x.json") == b"first"
    assert store.sizes("d") == {"x.json": 5, "y.json": 5}
    assert store.sizes("nowhere") == {}
    assert store.refuses_overwriting("d/x.json")


def test_of_many_writers_at_once_one_wins(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: store.create("x", bytes([n]) * 100_000), range(64)))
    assert sum(won) == 1
    assert store.read("x") == bytes([won.index(True)]) * 100_000
    assert os.listdir(tmp_path) == ["x"]


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "out"))
    (tmp_path / "big").write_bytes(bytes(100))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.create_from("data/x", tmp_path / "big")
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "data"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(storage.os, "link", unsupported)
    store = Store(str(tmp_path))
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert store.read("x") == b"1"
    assert os.listdir(tmp_path) == ["x"]


def test_urls_that_cannot_work() -> None:
    for url in ("nosuch://x", "zip://a::s3://b/c.zip"):
        with pytest.raises(StorageError, match=url.split(":", maxsplit=1)[0]):
            Store(url)


def test_resuming_with_other_parameters_says_what_differs(store: Store) -> None:
    assert Plan("plan.json", {"model": "a", "layers": 3}).establish(store)
    assert Plan("plan.json", {"model": "a", "layers": 3}).establish(store)
    other = Plan("plan.json", {"model": "b", "layers": 3, "new": True})
    with pytest.raises(PlanMismatchError) as caught:
        other.establish(store)
    assert "model is 'a' there and 'b' here" in str(caught.value)
    assert "new is None there and True here" in str(caught.value)
    assert "layers" not in str(caught.value)


def test_names_depend_on_all_that_matters() -> None:
    names = {
        shard_name(SHARD, "f"),
        shard_name(SHARD, "g"),
        shard_name(Shard(SHARD.url, 1001, "abc"), "f"),
        shard_name(Shard(SHARD.url, 1000, "abd"), "f"),
        shard_name(Shard("s3://other/a-000.tar", 1000, "abc"), "f"),
    }
    assert len(names) == 5
    assert all(name.startswith("a-000-") for name in names)
    odd = shard_name(Shard("/d/../.ü b\n.tar", 1, ""), "f")
    assert odd.isascii()
    assert not {"/", "\n", " "} & set(odd)
    assert not odd.startswith(".")


def record(**changes: Any) -> dict[str, Any]:
    totals = dict.fromkeys(("rows", "ok", "bad", "filtered", "pixels", "picture_bytes"), 1)
    source = {"url": SHARD.url, "size": SHARD.size, "etag": SHARD.etag}
    return {**totals, "bytes": 4, "source": source, **changes}


def test_done_means_record_and_file_agree(store: Store) -> None:
    ledger = Ledger(store, "f")
    for name in ("good", "short", "gone"):
        ledger.commit(name, record())
    store.create("data/good.parquet", b"1234")
    store.create("data/short.parquet", b"123")
    store.create("data/unrecorded.parquet", b"1234")
    done, lost = ledger.completed("data", ".parquet")
    assert list(done) == ["good"]
    assert lost == ["gone", "short"]
    assert set(store.sizes("data")) == {"good.parquet", "unrecorded.parquet"}
    assert list(ledger.records()) == ["good"]


def test_a_second_record_does_not_replace_the_first(store: Store) -> None:
    first = Ledger(store, "f").commit("x", record(seconds=1))
    assert Ledger(store, "f").commit("x", record(seconds=2)) == first
    with pytest.raises(PlanMismatchError, match=r"commits/x\.json"):
        Ledger(store, "g").records()


def test_an_input_that_changed_is_refused() -> None:
    check_inputs([SHARD], {"x": record()})
    check_inputs([Shard("s3://bucket/b.tar", 5, "x")], {"x": record()})
    with pytest.raises(PlanMismatchError, match=r"a-000\.tar .1000 bytes then, 7 now"):
        check_inputs([Shard(SHARD.url, 7, "abc")], {"x": record()})


def test_manifests_are_numbered_and_not_repeated(store: Store) -> None:
    plan = Plan("dataset.json", {"a": 1})
    assert commit.latest_manifest(store) == 0
    assert commit.publish_manifest(store, plan, {"x": record()}) == 1
    assert commit.publish_manifest(store, plan, {"x": record()}) == 1
    assert commit.publish_manifest(store, plan, {"x": record(), "y": record()}) == 2
    newest = json.loads(store.read(commit.manifest_name(commit.latest_manifest(store))))
    assert [file["path"] for file in newest["files"]] == ["data/x.parquet", "data/y.parquet"]
    assert newest["totals"]["ok"] == 2
