"""Folders on stores: few requests, every file as it was listed, whatever its name."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.sources import folder as folder_module
from pipeline.sources.folder import (
    PART_SAMPLES,
    File,
    Folder,
    changed_files,
    files_of,
    parts_of,
    samples_in,
    split_into_parts,
)
from pipeline.sources.listing import expand_inputs, find_inputs
from pipeline.sources.shards import open_shard
from pipeline.stores.filesystems import StorageError
from tests.pipeline.makers import png


class PhotoStore(MemoryFileSystem):
    """``photos://``: memory whose versions are MD5, as S3's are, and that counts its requests."""

    protocol = "photos"
    store: ClassVar[dict[str, Any]] = {}
    requests: ClassVar[Counter[str]] = Counter()
    versions: ClassVar[str] = "md5"
    gone: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("photos://", "memory://")))

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.store[name].getvalue()
        tag = hashlib.md5(data).hexdigest()
        return {
            "name": name,
            "type": "file",
            "size": len(data),
            "ETag": f'"{tag if self.versions == "md5" else "v-" + tag}"',
        }

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.requests["info"] += 1
        path = self._strip_protocol(path)
        if path in self.store and path not in self.gone:
            return self._entry(path)
        return dict(super().info(path))

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, **_: Any) -> Any:
        self.requests["find"] += 1
        path = self._strip_protocol(path)
        return {n: self._entry(n) for n in self.store if n.startswith(f"{path.rstrip('/')}/")}

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        self.requests["get"] += 1
        return bytes(super().cat_file(path, *arguments, **options))


fsspec.register_implementation("photos", PhotoStore, clobber=True)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> PhotoStore:
    PhotoStore.store.clear()
    fs = PhotoStore()
    monkeypatch.setattr(PhotoStore, "versions", "md5")
    for number in range(1500):
        fs.pipe_file(f"/b/in/{number % 7}/{number:04d}.png", b"picture %d" % number)
        fs.pipe_file(f"/b/in/{number % 7}/{number:04d}.txt", b"text" if number % 2 else b"")
    PhotoStore.requests.clear()
    return fs


def test_thousands_of_files_cost_one_listing_and_one_request_each(
    store: PhotoStore, tmp_path: Path
) -> None:
    (folder,) = find_inputs(["photos:///b/in"]).folders
    assert PhotoStore.requests.total() == 2  # is it a folder, and what is in it
    parts = parts_of(folder)
    assert [len(files_of(part)) for part in parts] == [2 * PART_SAMPLES, 2 * (1500 - PART_SAMPLES)]
    assert parts == expand_inputs(["photos:///b/in"])
    PhotoStore.requests.clear()
    with open_shard(parts[1], tmp_path) as opened:
        assert not any(sample.problem for sample in opened.samples)
        read = {
            sample.key: [opened.read(member) for _, member in sample.fields]
            for sample in opened.samples
        }
    texts = [b"", b"text"]
    assert all(
        found == [b"picture %d" % int(key[2:]), texts[int(key[2:]) % 2]]
        for key, found in read.items()
    )
    empty = sum(not found[1] for found in read.values())
    assert PhotoStore.requests == {"get": 2 * len(read) - empty}


def test_other_versions_are_asked_for_once_more(
    store: PhotoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PhotoStore, "versions", "other")
    part = expand_inputs(["photos:///b/in/3"])[0]
    PhotoStore.requests.clear()
    with open_shard(part, tmp_path) as opened:
        assert not any(sample.problem for sample in opened.samples)
    assert PhotoStore.requests["info"] == len(files_of(part))


@pytest.mark.parametrize("versions", ["md5", "other"])
def test_what_is_not_as_it_was_listed_is_named(
    store: PhotoStore, tmp_path: Path, versions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PhotoStore, "versions", versions)
    (part,) = expand_inputs(["photos:///b/in/3"])
    store.pipe_file("/b/in/3/0010.png", b"PICTURE 10")  # of the same size
    store.pipe_file("/b/in/3/0017.png", b"longer picture 17")
    store.pipe_file("/b/in/3/0024.txt", b"no more empty")
    store.rm("/b/in/3/0031.png")
    with open_shard(part, tmp_path) as opened:
        problems = {s.key: s.problem for s in opened.samples if s.problem}
    told = {
        "0010": "the field 'png' changed after it was listed (10 bytes then, 10 now)",
        "0017": "the field 'png' changed after it was listed (10 bytes then, 17 now)",
        "0024": "the field 'txt' changed after it was listed (0 bytes then, 13 now)",
        "0031": "the field 'png' was removed after it was listed",
    }
    if versions == "md5":  # what an empty file held when it was listed is known without asking
        del told["0024"]
    assert problems == told
    assert sorted(line.split()[0] for line in changed_files(part, None)) == [
        "0010.png",
        "0017.png",
        "0024.txt",
        "0031.png",
    ]


def test_large_files_are_not_held(
    store: PhotoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "FETCHED_BYTES", 50)
    large = bytes(range(200))
    store.pipe_file("/b/in/3/0010.tif", large)
    store.pipe_file("/b/in/3/0017.tif", large)
    (part,) = expand_inputs(["photos:///b/in/3"])
    store.pipe_file("/b/in/3/0017.tif", large[::-1])
    with open_shard(part, tmp_path) as opened:
        found = {sample.key: sample for sample in opened.samples}
        fields = {name: opened.read(member) for name, member in found["0010"].fields}
        assert "'tif' changed after" in found["0017"].problem
    assert fields == {"png": b"picture 10", "tif": large, "txt": b""}
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_store_that_stops_answering_is_no_bad_sample(
    store: PhotoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (part,) = expand_inputs(["photos:///b/in/3"])

    def refuse(*_: Any, **__: Any) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(PhotoStore, "cat_file", refuse)
    with pytest.raises(OSError, match=r"photos:///b/in/3/0003\.png: cannot be fetched"):
        open_shard(part, tmp_path).__enter__()


def test_names_of_all_kinds_are_grouped_by_their_last_dot() -> None:
    names = ["a.jpg", "a-1.jpg", "a.json", "a.b.jpg", "b.tar.gz", "c", "d.txt", "x/a.PNG", "x/a.x"]
    samples, others = samples_in(File(name, 1, "") for name in names)
    assert {key: [file.path for file in files] for key, files in samples.items()} == {
        "a": ["a.jpg", "a.json"],
        "a-1": ["a-1.jpg"],
        "a.b": ["a.b.jpg"],
        "x/a": ["x/a.PNG", "x/a.x"],
    }
    assert [file.path for file in others] == ["b.tar.gz", "c", "d.txt"]


def test_parts_are_cut_by_count_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "PART_SAMPLES", 3)
    monkeypatch.setattr(folder_module, "PART_BYTES", 100)
    sizes = [10, 10, 10, 10, 90, 1, 500, 1]
    samples, _ = samples_in(File(f"{n}.png", size, "") for n, size in enumerate(sizes))
    assert [[file.size for file in part] for part in split_into_parts(samples)] == [
        [10, 10, 10],
        [10, 90],
        [1],
        [500],
        [1],
    ]


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "caf\udce9 [1] {a,b} #x.png").write_bytes(png())
    (part,) = expand_inputs([str(photos)])
    with open_shard(part, tmp_path) as opened:
        (sample,) = opened.samples
        assert sample.key == "caf\udce9 [1] {a,b} #x"
        assert opened.read(sample.fields[0][1]) == png()


def test_a_file_that_must_not_be_read_is_one_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(png())

    def refuse(path: Any, *rest: Any) -> Any:  # tests may run as root, who may read everything
        if str(path).endswith("a.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *rest)

    monkeypatch.setattr(folder_module, "open", refuse, raising=False)
    (part,) = expand_inputs([str(photos)])
    with open_shard(part, tmp_path) as opened:
        problems = {sample.key: sample.problem for sample in opened.samples}
    assert problems == {"a": "the field 'png' cannot be read: permission denied", "b": ""}


def test_hidden_files_that_are_spelled_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".a.png").write_bytes(png())
    with pytest.raises(StorageError, match="a hidden file"):
        expand_inputs([str(tmp_path / ".a.png")])


def test_a_folder_is_the_same_by_any_spelling(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(png())
    (tmp_path / "link").symlink_to(photos)
    wanted = Folder(str(photos), find_inputs([str(photos)]).folders[0].files)
    for spelling in (f"{photos}/", f"{tmp_path}/./photos", tmp_path / "link", f"{photos}/*.png"):
        (found,) = find_inputs([str(spelling)]).folders
        assert (found.root, found.files) == (wanted.root, wanted.files)
