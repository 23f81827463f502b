"""Inputs by the hundred thousand: few requests, and every missing or changed one is named."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.sources.listing import expand_inputs
from pipeline.sources.shards import Shard, open_shard
from pipeline.stores.store import StorageError
from tests.pipeline.makers import samples, tar_bytes, write_tar

TAR = tar_bytes(samples(1))


class BucketFileSystem(MemoryFileSystem):
    """``bucket://``: memory whose listings tell size and etag, and that counts its requests."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    requests: ClassVar[Counter[str]] = Counter()
    closed: ClassVar[bool] = False  # to listing
    on_download: ClassVar[Any] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("bucket://", "memory://")))

    def _tagged(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["type"] == "file":
            entry["ETag"] = f'"{hash(bytes(self.store[entry["name"]].getvalue()))}"'
        return entry

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.requests["info"] += 1
        return self._tagged(super().info(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        if self.closed:
            raise PermissionError(path)
        self.requests["ls"] += 1
        found = [self._tagged(entry) for entry in super().ls(path, detail=True)]
        return found if detail else [entry["name"] for entry in found]

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, **_: Any) -> Any:
        """One listing, as object stores do it."""
        self.requests["find"] += 1
        path = self._strip_protocol(path)
        return {
            name: self._tagged({"name": name, "type": "file", "size": len(file.getvalue())})
            for name, file in self.store.items()
            if name.startswith(f"{path.rstrip('/')}/")
        }

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        super().get_file(rpath, lpath)
        if self.on_download:
            type(self).on_download()


fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> BucketFileSystem:
    """1,000 shards in one folder."""
    BucketFileSystem.store.clear()
    fs = BucketFileSystem()
    for number in range(1000):
        fs.pipe_file(f"/b/in/x-{number:03d}.tar", TAR)
    fs.pipe_file("/b/in/readme.txt", b"no shard")
    BucketFileSystem.requests.clear()
    return fs


@pytest.mark.parametrize(
    "patterns",
    [
        ["bucket:///b/in"],
        ["bucket:///b/in/"],
        ["bucket:///b/in/x-*.tar"],
        ["bucket:///b/in/x-{000..999}.tar"],
        [f"bucket:///b/in/x-{number:03d}.tar" for number in range(1000)],
    ],
)
def test_many_shards_cost_few_requests(bucket: BucketFileSystem, patterns: list[str]) -> None:
    shards = expand_inputs(patterns)
    assert sum(bucket.requests.values()) <= 3
    assert len(shards) == 1000
    assert shards[7] == Shard("bucket:///b/in/x-007.tar", len(TAR), shards[7].etag)
    assert shards == [expand_inputs([shard.url])[0] for shard in shards[:3]] + shards[3:]


def test_a_folder_closed_to_listing(bucket: BucketFileSystem) -> None:
    expected = expand_inputs(["bucket:///b/in/x-{000..199}.tar"])
    bucket.requests.clear()
    BucketFileSystem.closed = True
    try:
        assert expand_inputs(["bucket:///b/in/x-{000..199}.tar"]) == expected
    finally:
        BucketFileSystem.closed = False
    assert bucket.requests == {"info": 200}


@pytest.mark.parametrize("last", [1006, 1020])
def test_missing_ones_are_named_and_counted(bucket: BucketFileSystem, last: int) -> None:
    with pytest.raises(StorageError, match="there is no such file") as caught:
        expand_inputs([f"bucket:///b/in/x-{{900..{last}}}.tar", "bucket:///b/none.tar"])
    message = str(caught.value)
    assert message.count("bucket://") == 5
    assert f"({last - 999 + 1} are missing)" in message
    assert "x-1000.tar" in message
    assert "x-999.tar" not in message


def test_kinds_of_inputs_together(bucket: BucketFileSystem, tmp_path: Path) -> None:
    bucket.pipe_file("/b/in/deep/y.tar", TAR)
    bucket.pipe_file("/b/in/deep/z[1].tar", TAR)
    local = write_tar(tmp_path / "local.tar", samples(1))
    many = [f"bucket:///b/in/x-{number:03d}.tar" for number in range(200)]
    shards = expand_inputs([*many, "bucket:///b/in/deep", "bucket:///b/in/x-00?.tar", str(local)])
    assert [shard.url for shard in shards] == sorted(
        [*many, "bucket:///b/in/deep/y.tar", "bucket:///b/in/deep/z[1].tar", str(local)]
    )
    assert len(expand_inputs(["bucket:///b/in/deep/z[1].tar"])) == 1
    bucket.pipe_file("/b/empty/readme.txt", b"")
    with pytest.raises(StorageError, match="no tar shard matches"):
        expand_inputs(["bucket:///b/empty"])


def test_a_shard_replaced_while_it_is_fetched(
    bucket: BucketFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = expand_inputs(["bucket:///b/in/x-000.tar"])
    with open_shard(shard, tmp_path) as opened:
        assert len(opened.samples) == 1
    other = bytearray(TAR)
    other[600] ^= 1  # of the same size
    monkeypatch.setattr(
        BucketFileSystem, "on_download", lambda: bucket.pipe_file("/b/in/x-000.tar", bytes(other))
    )
    with (
        pytest.raises(StorageError, match=r"x-000\.tar: changed after the job began"),
        open_shard(shard, tmp_path),
    ):
        pass
    monkeypatch.setattr(BucketFileSystem, "on_download", lambda: bucket.rm("/b/in/x-000.tar"))
    with pytest.raises(StorageError, match="removed"), open_shard(shard, tmp_path):
        pass
    assert not (tmp_path / "shard").exists()


def test_a_local_shard_that_changes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", samples(2))
    (shard,) = expand_inputs([str(path)])
    with pytest.raises(StorageError, match="changed after"), open_shard(shard, tmp_path):
        os.utime(path, ns=(1, 1))  # while it is read
    with pytest.raises(StorageError, match="changed after"), open_shard(shard, tmp_path):
        raise AssertionError("it was opened")
