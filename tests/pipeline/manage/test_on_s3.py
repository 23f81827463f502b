"""Archives in an object store: info, merge inside the store, delete."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import (
    DeleteOptions,
    DeleteSummary,
    MergeOptions,
    delete_samples,
    info_dataset,
    merge_datasets,
    open_dataset,
)
from pipeline.stores.copying import can_copy_inside, create_copy
from pipeline.stores.store import Store
from tests.integration.faults import FaultProxy
from tests.integration.servers import S3Server, moto
from tests.pipeline.manage.conftest import MakeArchive
from tests.pipeline.manage.killing import Killed, contents, killer, points

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def options(server: S3Server, proxy: FaultProxy) -> dict[str, Any]:
    return server.options(proxy.endpoint)


@pytest.fixture
def bucket(server: S3Server, make_archive: MakeArchive, tmp_path: Path) -> str:
    """The URL of a folder with the archives A and B in it."""
    store = server.filesystem()
    for name, *shards in (("A", "a", "b"), ("B", "c"), ("A-before", "a", "b")):
        make_archive(name, *shards)
        root = f"{server.url}/{tmp_path.name}/{name}"
        for path in (tmp_path / name).rglob("*"):
            if path.is_file():
                store.put_file(str(path), f"{root}/{path.relative_to(tmp_path / name)}")
    return f"{server.url}/{tmp_path.name}"


def merge(bucket: str, output: str, options: dict[str, Any], **others: Any) -> Any:
    given = {"input_options": options, "output_options": options} | others
    return merge_datasets(
        MergeOptions(inputs=(f"{bucket}/A", f"{bucket}/B"), output=output, **given)
    )


def test_info(bucket: str, options: dict[str, Any], proxy: FaultProxy) -> None:
    info = info_dataset(f"{bucket}/A", options)
    assert (info.counts["ok"], info.exit_code) == (10, 0)
    assert sum(proxy.counts.values()) <= info.requests + 2  # a look for the size of the plan
    assert proxy.bytes("GET", "/data/") == (0, 0)


def test_bytes_stay_in_the_store(
    bucket: str, options: dict[str, Any], proxy: FaultProxy, server: S3Server
) -> None:
    summary = merge(bucket, f"{bucket}/C", options)
    assert (summary.exit_code, summary.ok) == (0, 15)
    assert proxy.bytes("GET", r"/C/data/|/[AB]/data/") == (0, 0)
    assert proxy.bytes("PUT", "/C/data/")[0] == 0
    merged = contents(Store(f"{bucket}/C", options))
    for name in "AB":
        for path, data in contents(Store(f"{bucket}/{name}", options)).items():
            assert path.startswith("manifest-") or merged[path] == data
    assert len(open_dataset(f"{bucket}/C", options)) == 15
    assert merge(bucket, f"{bucket}/C", options).resumed == 3


def test_between_stores(bucket: str, options: dict[str, Any], tmp_path: Path) -> None:
    """From the store to this machine, and by another client into the store again."""
    merge(bucket, str(tmp_path / "C"), options)
    merge(
        bucket, f"{bucket}/D", options, output_options=options | {"config_kwargs": {"retries": {}}}
    )
    here, there = Store(str(tmp_path / "C")), Store(f"{bucket}/D", options)
    assert not can_copy_inside(here, here)
    assert contents(here) == contents(there)


def test_killed_at_some_writes(bucket: str, options: dict[str, Any]) -> None:
    with killer() as whole:
        merge(bucket, f"{bucket}/C", options)
    expected = contents(Store(f"{bucket}/C", options))
    for at, after in [*points(whole.count)][::6]:
        out = f"{bucket}/killed-{at}-{after}"
        with killer(at, after), pytest.raises(Killed):
            merge(bucket, out, options)
        assert merge(bucket, out, options).exit_code == 0
        assert contents(Store(out, options)) == expected


def test_deleting(bucket: str, options: dict[str, Any]) -> None:
    url, keys = f"{bucket}/A", ("s0001", "s0011", "nobody")

    def delete() -> DeleteSummary:
        return delete_samples(DeleteOptions(dataset=url, keys=keys, input_options=options))

    before = contents(Store(url, options))
    with killer() as whole:
        summary = delete()
    assert (summary.exit_code, summary.deleted, summary.missing) == (1, 2, ["nobody"])
    expected = contents(Store(url, options))
    assert not {path for path in expected if path.startswith("data/")} & before.keys()
    assert not {*keys} & {*open_dataset(url, options).keys()}
    assert delete().already == 2
    for at, after in [*points(whole.count)][::7]:
        url = f"{bucket}/killed-{at}-{after}"
        store = Store(url, options)
        for path in before:
            store.fs.copy(f"{bucket}/A-before/{path}".removeprefix("s3://"), store.path(path))
        with killer(at, after), pytest.raises(Killed):
            delete()
        assert delete().missing == ["nobody"]
        assert contents(store) == expected


def test_unfinished_uploads_of_deleted_samples_go(bucket: str, options: dict[str, Any]) -> None:
    """No listing shows them, and what a killed job has sent of a file stays in the store."""
    url = f"{bucket}/A"
    file = open_dataset(url, options).files[0]
    store = Store(url, options)
    name, key, _ = store.fs.split_path(store.path(f"data/{file.name}.1.parquet"))
    store.fs.call_s3("create_multipart_upload", Bucket=name, Key=key)
    delete_samples(DeleteOptions(dataset=url, keys=("s0001",), input_options=options))
    assert not store.fs.call_s3("list_multipart_uploads", Bucket=name, Prefix=key).get("Uploads")
    assert len(open_dataset(url, options)) == 9


def test_a_copy_inside_the_store_overwrites_nothing(
    bucket: str, options: dict[str, Any], proxy: FaultProxy
) -> None:
    """Whoever has written the name while the copy was under way."""
    source, target = Store(f"{bucket}/A", options), Store(f"{bucket}/E", options)
    (path,) = (path for path in contents(source) if path.startswith("data/a-"))
    size = source.info(path)["size"]

    def somebody(_: str) -> None:
        assert target.create(path, b"earlier")

    proxy.call(somebody, method="POST", path=r"/E/data/.*uploadId=", when="before")
    assert not create_copy(source, target, path, size)
    assert target.read(path) == b"earlier"
    bucket_name, key, _ = target.fs.split_path(target.path(path))
    uploads = target.fs.call_s3("list_multipart_uploads", Bucket=bucket_name, Prefix=key)
    assert not uploads.get("Uploads")
    target.remove(path)
    assert create_copy(source, target, path, size)
    assert target.read(path) == source.read(path)
    with pytest.raises(FileNotFoundError):
        create_copy(source, target, "data/nothing-0123456789ab.parquet", 9)
