"""Publishing is all or nothing and first come first served; resuming is exact or refused."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset import layout
from pipeline.dataset.layout import generation_name, shard_name, split_generation
from pipeline.dataset.ledger import Ledger, check_inputs
from pipeline.dataset.manifest import latest_manifest
from pipeline.dataset.manifest_writer import NewerManifestError, publish_manifest
from pipeline.dataset.plan import Plan, PlanMismatchError
from pipeline.sources.shards import Shard
from pipeline.stores import store as store_module
from pipeline.stores.store import StorageError, Store

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

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.create_from("data/x", tmp_path / "big")
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "data"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(store_module.os, "link", unsupported)
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
    assert "--model is a there and b here" in str(caught.value)
    assert "--new is not given there and given here" in str(caught.value)
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
    assert list(lost) == ["gone", "short"]
    assert set(store.sizes("data")) == {"good.parquet", "short.parquet", "unrecorded.parquet"}
    ledger.drop("data", ".parquet", lost)
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


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"parameters": null}', b'"x"', b"{"])
def test_what_is_no_plan_is_refused(store: Store, content: bytes) -> None:
    store.create("dataset.json", content)
    with pytest.raises(PlanMismatchError, match=r"dataset\.json is not a plan"):
        Plan("dataset.json", {"a": 1}).check(store)


def test_manifests_are_numbered_and_not_repeated(store: Store) -> None:
    plan = Plan("dataset.json", {"a": 1})
    assert latest_manifest(store) == 0
    assert publish_manifest(store, plan, {"x": record()}) == 1
    assert publish_manifest(store, plan, {"x": record()}) == 1
    assert publish_manifest(store, plan, {"x": record(), "y": record()}) == 2
    newest = json.loads(store.read(layout.manifest_name(latest_manifest(store))))
    assert [file["path"] for file in newest["files"]] == ["data/x.parquet", "data/y.parquet"]
    assert newest["totals"]["ok"] == 2


def test_manifests_of_large_datasets_stay_small(store: Store) -> None:
    problems = [(f"k{n}", "bad", "empty") for n in range(100)]
    wide = record(problems=problems, column_bytes={f"layer_{n:02d}": n for n in range(99)})
    ledger = Ledger(store, "f")
    ledger.commit("x", wide)
    assert len((ledger.read("x") or {})["problems"]) == 100
    assert ledger.records()["x"]["problems"] == [list(problem) for problem in problems[:5]]
    plan = Plan("dataset.json", {"a": 1})
    assert publish_manifest(store, plan, {"x": wide}) == 1
    assert publish_manifest(store, plan, ledger.records()) == 2  # base and generation
    assert publish_manifest(store, plan, ledger.records()) == 2
    assert store.info(layout.manifest_name(2))["size"] < 1000


def test_single_records(store: Store) -> None:
    ledger = Ledger(store, "f")
    assert not ledger.exists("x")
    assert ledger.read("x") is None
    ledger.commit("x", record(seconds=1))
    assert ledger.exists("x")
    assert (ledger.read("x") or {})["seconds"] == 1
    store.create("commits/y.json", b"{]")
    for read in (ledger.records, lambda: ledger.read("y")):
        with pytest.raises(StorageError, match=r"commits/y\.json is not a commit record"):
            read()


def test_records_have_a_largest_size(store: Store) -> None:
    large = record(crops="x" * (1 << 20))
    ledger = Ledger(store, "f", "records", most=1 << 21)
    ledger.commit("x", large)
    assert (ledger.read("x") or {})["crops"] == large["crops"]
    assert list(ledger.records()) == ["x"]
    for read in (
        Ledger(store, "f", "records").records,
        lambda: Ledger(store, "f", "records").read("x"),
    ):
        with pytest.raises(StorageError, match=r"records/x\.json: is larger than 1048576 bytes"):
            read()


@pytest.mark.parametrize("stem", ["a-000", "a.1", "v1.2.3", "x.0"])
def test_generations_have_names(stem: str) -> None:
    name = shard_name(Shard(f"s3://bucket/{stem}.tar", 1000, "abc"), "f")
    assert split_generation(name) == (name, 0)
    assert generation_name(name, 0) == name
    for generation in (1, 2, 10):
        named = generation_name(name, generation)
        assert named == f"{name}.{generation}"
        assert split_generation(named) == (name, generation)


def test_the_newest_intact_generation_counts(store: Store) -> None:
    ledger = Ledger(store, "f")
    for name in ("a", "a.2", "a.10", "b", "b.1", "c", "c.1"):
        ledger.commit(name, record())
    for name in ("a", "a.2", "a.10", "b"):
        store.create(f"data/{name}.parquet", b"1234")
    store.create("data/b.1.parquet", b"12")  # cut; of c nothing is left
    done, lost = ledger.completed("data", ".parquet", ledger.records())
    assert {base: found["name"] for base, found in done.items()} == {"a": "a.10", "b": "b"}
    assert [done["a"][key] for key in ("base", "generation")] == ["a", 10]
    assert {base: found["name"] for base, found in lost.items()} == {"c": "c.1"}
    ledger.drop("data", ".parquet", lost)
    assert set(ledger.records()) == {"a", "a.2", "a.10", "b"}
    assert "b.1.parquet" not in store.sizes("data")
    again = {base: found["name"] for base, found in ledger.completed("data", ".parquet")[0].items()}
    assert again == {"a": "a.10", "b": "b"}
    check_inputs([SHARD], ledger.records())
    plan = Plan("dataset.json", {"a": 1})
    publish_manifest(store, plan, done)
    files = json.loads(store.read(layout.manifest_name(1)))["files"]
    assert [file["path"] for file in files] == ["data/a.10.parquet", "data/b.parquet"]


def test_elsewhere_names_are_their_own(store: Store) -> None:
    """A decode job names its files after a dataset's, generation and all."""
    ledger = Ledger(store, "f", ".strata/commits")
    for name in ("x", "x.1"):
        ledger.commit(name, record())
        store.create(f"{name}.tar", b"1234")
    done, lost = ledger.completed("", ".tar")
    assert (set(done), list(lost)) == ({"x", "x.1"}, [])
    store.remove("x.1.tar")
    done, lost = ledger.completed("", ".tar")
    assert (set(done), list(lost)) == ({"x"}, ["x.1"])


def test_a_newer_manifest_is_not_superseded_by_older_records(store: Store) -> None:
    plan = Plan("dataset.json", {"a": 1})
    assert publish_manifest(store, plan, {"x": record()}, after=0) == 1
    with pytest.raises(NewerManifestError, match=r"manifest-000001\.json"):
        publish_manifest(store, plan, {"y": record()}, after=0)
    assert latest_manifest(store) == 1
    assert publish_manifest(store, plan, {"x": record()}, after=1) == 1
    assert publish_manifest(store, plan, {"x": record(), "y": record()}, after=1) == 2


def test_what_another_job_has_done_again_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may replace a damaged file while this job still has the old records and sizes."""
    ledger = Ledger(store, "f")
    for name in ("again", "underway"):
        ledger.commit(name, record())
    records, sizes = ledger.records(), store.sizes
    for name in records:
        store.remove(f"commits/{name}.json")
        store.create(f"data/{name}.parquet", b"12345")
    ledger.commit("again", record(bytes=5))
    old = {"data": {"again.parquet": 3, "underway.parquet": 3}}
    with monkeypatch.context() as patched:
        patched.setattr(store, "sizes", lambda folder="": old.get(folder) or sizes(folder))
        done, lost = ledger.completed("data", ".parquet", records)
        ledger.drop("data", ".parquet", lost)
    assert ({name: found["bytes"] for name, found in done.items()}, list(lost)) == (
        {"again": 5},
        ["underway"],
    )
    assert set(store.sizes("data")) == {"again.parquet", "underway.parquet"}
    assert set(ledger.records()) == {"again"}
