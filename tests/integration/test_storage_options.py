"""Ways to give credentials and endpoints, on a real S3 protocol; and network faults."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.plan import Plan
from pipeline.sources.listing import expand_inputs
from pipeline.sources.shards import open_shard
from pipeline.stores.store import PART_BYTES, StorageError, Store
from pipeline.verify.garbage import find_garbage, remove_garbage
from tests.integration.faults import FaultProxy
from tests.integration.servers import ROOT, S3Server
from tests.pipeline.makers import samples, tar_bytes

pytestmark = pytest.mark.integration
TAR = tar_bytes(samples(40))


@pytest.fixture
def folder(moto_server: S3Server, folder: str) -> str:
    """A folder of its own for each test, with a shard in it that everybody may read."""
    store = Store(f"{moto_server.url}/{folder}", moto_server.options())
    store.create("in/x.tar", TAR)
    store.fs.chmod(store.path("in/x.tar"), "public-read")
    return store.url


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no file says which store is meant."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


SIZE_OF_SHARD = (
    "import sys, json; from pipeline.sources.listing import expand_inputs; "
    "print(expand_inputs([sys.argv[1]], json.loads(sys.argv[2]))[0].size)"
)


def size_in_a_new_process(url: str, options: str = "{}", **environment: str) -> int:
    """What a process with these variables sees."""
    result = subprocess.run(
        [sys.executable, "-c", SIZE_OF_SHARD, url, options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return int(result.stdout)


KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def test_the_variables_of_the_ecosystem(nowhere: None, folder: str, moto_server: S3Server) -> None:
    url, endpoint = f"{folder}/in/x.tar", moto_server.endpoint
    assert size_in_a_new_process(url, AWS_ENDPOINT_URL=endpoint, **KEYS) == len(TAR)
    assert size_in_a_new_process(url, FSSPEC_S3_ENDPOINT_URL=endpoint, **KEYS) == len(TAR)
    anonymous = {"FSSPEC_S3_ENDPOINT_URL": endpoint, "FSSPEC_S3_ANON": "true"}
    assert size_in_a_new_process(url, **anonymous) == len(TAR)


def test_a_profile(nowhere: None, folder: str, moto_server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        f"[profile lab]\nendpoint_url = {moto_server.endpoint}\n"
        "aws_access_key_id = test\naws_secret_access_key = test\n"
    )
    url = f"{folder}/in/x.tar"
    assert size_in_a_new_process(url, AWS_PROFILE="lab") == len(TAR)
    assert size_in_a_new_process(url, '{"profile": "lab"}') == len(TAR)


def test_without_a_signature(nowhere: None, folder: str, moto_server: S3Server) -> None:
    options = {"anon": True, "endpoint_url": moto_server.endpoint}
    (shard,) = expand_inputs([f"{folder}/in"], options)
    assert (shard.url, shard.size) == (f"{folder}/in/x.tar", len(TAR))
    assert expand_inputs([shard.url], options) == [shard]
    signed = {**options, "anon": False}
    with pytest.raises(StorageError, match=r"(?i)credentials"):
        expand_inputs([shard.url], signed)


def test_a_wrong_address(nowhere: None) -> None:
    config = {"connect_timeout": 1, "retries": {"total_max_attempts": 1}}
    options = {"anon": True, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": config}
    with pytest.raises(StorageError, match=r"s3://bucket/x\.tar: cannot be listed"):
        expand_inputs(["s3://bucket/x.tar"], options)
    with pytest.raises(pipeline.DatasetError, match="s3://bucket/set"):
        pipeline.open_dataset("s3://bucket/set", options)


def test_what_everything_here_needs_of_a_store(folder: str, moto_server: S3Server) -> None:
    """Listings, records by the hundred, inputs by the hundred."""
    store = Store(folder, moto_server.options())
    ledger = Ledger(store, "f")
    names = [f"x-{number:012x}" for number in range(70)]
    for name in names:
        ledger.commit(name, {"bytes": 3, "rows": 1})
        store.create(f"data/{name}.parquet", b"123")
    store.remove(f"data/{names[5]}.parquet")
    done, lost = ledger.completed("data", ".parquet")
    assert sorted([*done, *lost]) == names
    assert list(lost) == [names[5]]
    ledger.drop("data", ".parquet", lost)
    assert not ledger.exists(names[5])
    assert ledger.exists(names[6])
    with pytest.raises(FileNotFoundError):
        list(store.read_many(["commits/none.json"]))
    many = [f"{folder}/many/{number:03d}.tar" for number in range(120)]
    for url in many:
        store.create(url.removeprefix(f"{folder}/"), bytes(1024))  # an empty tar
    with FaultProxy(moto_server.endpoint) as proxy:
        options = moto_server.options(proxy.endpoint)
        assert [shard.url for shard in expand_inputs(many, options)] == many
        assert len(expand_inputs([f"{folder}/many", f"{folder}/many/1*.tar"], options)) == 120
        assert sum(proxy.counts.values()) < 12
        with pytest.raises(StorageError, match=r"many/120\.tar: there is no such file"):
            expand_inputs([*many, f"{folder}/many/120.tar"], options)


def test_large_files_are_create_only_too(
    folder: str, moto_server: S3Server, tmp_path: Path
) -> None:
    """They go up in parts, which S3 puts together only if the name is free."""
    store = Store(folder, moto_server.options())
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * (2 * PART_BYTES >> 20) + b"the end")
    with FaultProxy(moto_server.endpoint) as proxy:
        proxied = Store(folder, moto_server.options(proxy.endpoint))
        assert proxied.create_from("data/large", large)
        assert proxy.counts["POST"] == 2  # begun and ended
    assert store.read("data/large") == large.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(bytes(2 * PART_BYTES + 1))
    assert not store.create_from("data/large", other)
    assert store.info("data/large")["size"] == large.stat().st_size
    assert pending(store) == []
    fetched = tmp_path / "fetched"
    store.fetch("data/large", fetched)
    assert fetched.read_bytes() == large.read_bytes()


def pending(store: Store) -> list[str]:
    bucket, key = store.root.split("/", 1)
    page = store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
    return [upload["Key"].removeprefix(f"{key}/") for upload in page.get("Uploads", [])]


def begin_upload(store: Store, name: str) -> None:
    """What a job leaves that is killed while it uploads."""
    bucket, key = store.path(name).split("/", 1)
    which = {"Bucket": bucket, "Key": key}
    upload = store.fs.call_s3("create_multipart_upload", **which)["UploadId"]
    store.fs.call_s3("upload_part", **which, UploadId=upload, PartNumber=1, Body=b"12345")


def test_garbage_on_an_object_store(folder: str, moto_server: S3Server) -> None:
    store = Store(f"{folder}/set", moto_server.options())
    with pytest.raises(pipeline.DatasetError, match="no archive"):
        find_garbage(store, -60)
    Plan("dataset.json", {"a": 1}).establish(store)
    store.create("data/lost-0123456789ab.parquet", b"123456")
    store.create("data/good-0123456789ab.parquet", b"12")
    Ledger(store, "f").commit("good-0123456789ab", {"bytes": 2})
    begin_upload(store, "data/half-0123456789ab.parquet")
    begin_upload(store, "elsewhere/half.parquet")
    begin_upload(Store(folder, moto_server.options()), "settled/data/x-0123456789ab.parquet")
    assert find_garbage(store, 100 * 365 * 86400) == []
    found = find_garbage(store, -60)
    assert {(item.path, item.bytes, item.reason) for item in found} == {
        ("data/lost-0123456789ab.parquet", 6, "no commit record"),
        ("data/half-0123456789ab.parquet", 5, "an upload that never ended"),
    }
    lost = next(item for item in found if not item.upload)
    assert lost.modified == pytest.approx(time.time(), abs=60)
    assert not any(item is lost for item in find_garbage(store, 3600))
    remove_garbage(store, found)
    assert set(store.sizes("data")) == {"good-0123456789ab.parquet"}
    assert pending(store) == ["elsewhere/half.parquet"]
    remove_garbage(store, found)  # gone already, which is as well


def impatient(server: S3Server, endpoint: str) -> dict[str, Any]:
    return server.options(endpoint, read_timeout=1)


def test_bodies_that_are_cut_are_read_on(
    folder: str, moto_server: S3Server, tmp_path: Path
) -> None:
    """Or end in an error, but never in a short file."""
    with FaultProxy(moto_server.endpoint) as proxy:
        options = impatient(moto_server, proxy.endpoint)
        (shard,) = expand_inputs([f"{folder}/in/x.tar"], options)
        store = Store(folder, options)
        for fault in (proxy.truncate, proxy.stall):
            fault(path="x.tar", times=1)
            with open_shard(shard, tmp_path, options) as opened:
                assert len(opened.samples) == 40
            fault(path="x.tar", times=1)
            store.fetch("in/x.tar", tmp_path / "fetched")
            assert (tmp_path / "fetched").read_bytes() == TAR
            fault(path="x.tar", times=1)
            assert store.read("in/x.tar") == TAR
            fault(path="x.tar", times=1)
            assert list(store.read_many(["in/x.tar"])) == [("in/x.tar", TAR)]
            proxy.clear()
        proxy.truncate(path="x.tar")
        with pytest.raises(OSError, match=r"in/x\.tar: cannot be fetched"):
            store.fetch("in/x.tar", tmp_path / "fetched")
        with pytest.raises(OSError, match=r"in/x\.tar: cannot be fetched"):
            open_shard(shard, tmp_path, options).__enter__()
        with pytest.raises(Exception, match=r"(?i)payload"):
            list(store.read_many(["in/x.tar"]))


def test_a_body_that_stalls_ends_before_its_deadline(
    folder: str, moto_server: S3Server, tmp_path: Path
) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        options = impatient(moto_server, proxy.endpoint)
        store = Store(folder, options)
        proxy.stall(path="x.tar")
        started = time.monotonic()
        with pytest.raises(OSError, match=r"in/x\.tar: cannot be fetched: .*[Tt]ime"):
            store.fetch("in/x.tar", tmp_path / "fetched")
        assert time.monotonic() - started < 100  # three times a second, and the waits between


def test_one_answer_in_ten_says_slow_down(folder: str, moto_server: S3Server) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        store = Store(folder, moto_server.options(proxy.endpoint))
        rule = proxy.slow_down(0.1, seed=1)
        ledger = Ledger(store, "f")
        for number in range(40):
            ledger.commit(f"x-{number}", {"bytes": 0})
        assert len(ledger.records()) == 40
        assert rule.hits > 3
