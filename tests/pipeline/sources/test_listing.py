"""Hundreds of thousands of inputs: few requests, and every missing or changed one is named."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.sources.listing import expand_inputs, find_inputs
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
    with pytest.raises(StorageError, match="has no tar"):
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
        pytest.raises(StorageError, match=r"x-000\.tar: changed after the job started"),
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


# --- files as they lie on disks ---


def names(root: Path, *patterns: str) -> list[str]:
    """What is found, relative to ``root``."""
    found = expand_inputs([pattern.replace("{}", str(root)) for pattern in patterns])
    return [shard.url.removeprefix(f"{root}/") for shard in found]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder ``in`` with a tar, a link to one, and a link to a folder of them."""
    for name in ("in", "blobs"):
        (tmp_path / name).mkdir()
    for name in ("in/a.tar", "blobs/0f3c", "blobs/x.tar"):
        (tmp_path / name).write_bytes(TAR)
    (tmp_path / "in/b.tar").symlink_to("../blobs/0f3c")
    (tmp_path / "in/more").symlink_to("../blobs")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{}/in/*.tar", ["in/a.tar", "in/b.tar"]),
        ("{}/in/b.tar", ["in/b.tar"]),
        ("{}/in", ["in/a.tar", "in/b.tar", "in/more/x.tar"]),
        ("{}/in/more", ["in/more/x.tar"]),
        ("{}/in/*/*.tar", ["in/more/x.tar"]),
        ("{}/in/**/*.tar", ["in/a.tar", "in/b.tar", "in/more/x.tar"]),
        ("{}/in/*", ["in/a.tar", "in/b.tar", "in/more/x.tar"]),  # as a shell's list of these is
    ],
)
def test_links_are_what_they_lead_to(linked: Path, pattern: str, expected: list[str]) -> None:
    assert names(linked, pattern) == expected
    (shard,) = expand_inputs([str(linked / "in/b.tar")])
    facts = (linked / "blobs/0f3c").stat()
    assert (shard.size, shard.etag) == (len(TAR), f"mtime {facts.st_mtime_ns}")
    with open_shard(shard, linked) as opened:
        assert len(opened.samples) == 1


def test_a_file_of_several_names_is_one_shard(linked: Path) -> None:
    """As in the cache of a model hub: two versions of a data set share their files."""
    for version in ("one", "two"):
        (linked / version).mkdir()
        (linked / version / "x.tar").symlink_to("../blobs/0f3c")
    assert names(linked, "{}/one", "{}/two") == ["one/x.tar"]
    assert names(linked, "{}") == ["blobs/x.tar", "in/a.tar", "in/b.tar"]
    assert names(linked, "{}/in/more/x.tar", "{}/blobs/x.tar") == ["blobs/x.tar"]


@pytest.mark.parametrize("target", [".", "..", "../in"])
def test_a_link_that_leads_round_in_a_circle_is_named(linked: Path, target: str) -> None:
    (linked / "in/round").symlink_to(target)
    with pytest.raises(StorageError, match="in/round: this link leads back"):
        expand_inputs([str(linked)])


def test_two_links_that_lead_into_each_other_are_named(linked: Path) -> None:
    (linked / "blobs/back").symlink_to("../in")
    with pytest.raises(StorageError, match="this link leads back"):
        expand_inputs([str(linked / "in")])


@pytest.mark.parametrize("target", ["/nowhere.tar", "gone.tar"])
def test_a_link_that_leads_nowhere_is_named(linked: Path, target: str) -> None:
    (linked / "in/gone.tar").symlink_to(target)  # the second to itself
    for pattern in ("in", "in/*.tar"):
        with pytest.raises(StorageError, match=r"gone\.tar: this link leads nowhere"):
            expand_inputs([str(linked / pattern)])
    (linked / "in/gone.tar").rename(linked / "in/.#lock")  # as editors make them
    assert len(expand_inputs([str(linked / "in")])) == 3


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"Permission denied.*more"):
        expand_inputs([str(linked / "in")])


def test_spellings_of_a_path_are_one_shard(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spellings = ["{}/in/a.tar", "{}/in/./a.tar", "{}/blobs/../in/a.tar", "{}//in/a.tar"]
    assert names(linked, *spellings, "/{}/in/a.tar", "file://{}/in/./a.tar") == ["in/a.tar"]
    monkeypatch.chdir(linked / "in")
    assert names(linked, "a.tar", "./a.tar", "../in/a.tar", ".") == [
        "in/a.tar",
        "in/b.tar",
        "in/more/x.tar",
    ]
    (linked / "far/away").mkdir(parents=True)
    (linked / "far/c.tar").write_bytes(TAR)
    (linked / "near").symlink_to("far/away")  # ".." behind it is not the folder it lies in
    assert names(linked, "{}/near/../c.tar") == ["far/c.tar"]


def test_hidden_files_are_not_searched_for(linked: Path) -> None:
    (linked / "in/.cache").mkdir()
    for name in ("in/._a.tar", "in/.cache/y.tar"):
        (linked / name).write_bytes(TAR)
    expected = ["in/a.tar", "in/b.tar", "in/more/x.tar"]
    assert names(linked, "{}/in") == names(linked, "{}/in/**/*.tar") == expected
    assert names(linked, "{}/in/*.tar") == ["in/a.tar", "in/b.tar"]
    assert names(linked, "{}/in/.cache") == ["in/.cache/y.tar"]  # asked for by name
    assert names(linked, "{}/in/._a.tar") == names(linked, "{}/in/.*.tar") == ["in/._a.tar"]


def test_hidden_files_beside_pictures_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".DS_Store", ".git/config", "trip/b.png", "trip/.b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    hidden = "left out as hidden: a name, or a folder's name, begins with a dot"
    assert find_inputs([str(tmp_path)]).notes == [f"{tmp_path}: 4 of its files are {hidden}"]
    assert find_inputs([str(tmp_path / "trip")]).notes == [
        f"{tmp_path / 'trip'}: 1 of its files is {hidden}"
    ]
    (tmp_path / "trip/.b.json").unlink()
    assert find_inputs([str(tmp_path / "trip")]).notes == []


def test_braces_in_the_names_of_files(tmp_path: Path) -> None:
    for name in ("a{.tar", "b{1,2}.tar", "c1.tar", "c2x.tar"):
        (tmp_path / name).write_bytes(TAR)
    for name in ("a{.tar", "b{1,2}.tar"):
        assert names(tmp_path, str(tmp_path / name)) == [name]
    assert names(tmp_path, str(tmp_path / "c{1,{2,2}x}.tar")) == ["c1.tar", "c2x.tar"]
    with pytest.raises(StorageError, match="no such file"):
        expand_inputs([str(tmp_path / "d}.tar")])  # a store may have such names
    for name in ("d{.tar", "c{1,{2,3.tar", "d{1}}.tar"):
        with pytest.raises(StorageError, match=r"brace.*a-\{00\.\.31\}\.tar"):
            expand_inputs([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["A.TAR", "A.Tar.GZ", "A.TGZ"])
def test_suffixes_in_capitals(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TAR)  # whatever its name says, it is not packed
    (shard,) = expand_inputs([str(tmp_path)])
    assert shard.stem == "A"
    with open_shard(shard, tmp_path) as opened:
        assert len(opened.samples) == 1


def test_what_is_no_tar_is_refused_before_a_job_begins(tmp_path: Path) -> None:
    good, page, picture = (tmp_path / name for name in ("good.tar", "page.tar", "picture.dat"))
    good.write_bytes(TAR)
    page.write_bytes(b"<!DOCTYPE html><html>" + bytes(1000))
    picture.write_bytes(b"\xff\xd8\xff" + bytes(1000))
    for wrong in (page, picture):
        with pytest.raises(StorageError, match=f"not a tar: .*{wrong.name}.*begins with"):
            expand_inputs([str(wrong)])
    with pytest.raises(StorageError, match=r"not a tar: .*picture\.dat"):
        expand_inputs([str(tmp_path / "*")])
    assert len(expand_inputs([str(good), str(page)])) == 2  # the job reports the damaged one
    page.write_bytes(b"")
    with pytest.raises(StorageError, match=r"page\.tar .is empty"):
        expand_inputs([str(page)])
    blob = tmp_path / "0f3c"
    blob.write_bytes(TAR)
    assert len(expand_inputs([str(blob)])) == 1


@pytest.mark.parametrize("name", ["b.tar.zst", "b.tar.XZ", "b.tbz2"])
def test_tars_of_another_packing_are_not_passed_over(tmp_path: Path, name: str) -> None:
    for one in ("a.tar", name, f".{name}"):
        (tmp_path / one).write_bytes(TAR)
    with pytest.raises(StorageError, match=rf"/{name}: only gzip is supported"):
        expand_inputs([str(tmp_path)])
    assert names(tmp_path, "{}/*.tar") == ["a.tar"]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(StorageError, match="a pipe or a device"):
        expand_inputs([str(tmp_path / "a.tar")])


@pytest.mark.parametrize("pattern", ["", " ", "/", "//", "bucket://", "bucket:///"])
def test_unset_variables_search_nothing(bucket: BucketFileSystem, pattern: str) -> None:
    with pytest.raises(StorageError, match="variable"):
        expand_inputs([pattern])
