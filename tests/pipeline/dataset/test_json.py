"""Files of JSON in a dataset are read if they are files, and not too large."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codec.errors import StrataError
from pipeline import open_dataset
from pipeline.dataset import untrusted
from pipeline.dataset.layout import PLAN_NAME
from pipeline.dataset.ledger import Ledger
from pipeline.stores.store import StorageError, Store
from pipeline.verify.job import VerifyOptions, verify
from tests.pipeline.streams import rows, write_dataset

MANIFEST = "manifest-000001.json"
LAYERS = (20, 0, 70)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(str(tmp_path / "set"), [list(rows(["a", "b"], LAYERS))], len(LAYERS))
    return tmp_path / "set"


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(3 << 30)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def ways(folder: Path) -> Iterator[Callable[[], object]]:
    store = Store(str(folder))
    ledger = Ledger(store, json.loads((folder.parent / "plan").read_text())["fingerprint"])
    (name,) = (path.stem for path in folder.parent.joinpath("names").iterdir())
    yield lambda: open_dataset(str(folder)).page()
    yield lambda: list(open_dataset(str(folder)).fetch(["a"]))
    yield lambda: verify(VerifyOptions(dataset=str(folder)))
    yield lambda: ledger.read(name)
    yield lambda: ledger.records()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("harm", [pipe, device, huge])
@pytest.mark.parametrize("part", [PLAN_NAME, MANIFEST, "commits/*", "data/*", "index/*"])
def test_what_is_no_file_is_not_waited_for(
    folder: Path, part: str, harm: Callable[[Path], None]
) -> None:
    (folder.parent / "plan").write_bytes((folder / PLAN_NAME).read_bytes())
    (path,) = folder.glob(part)
    (folder.parent / "names").mkdir()
    (record,) = folder.glob("commits/*")
    (folder.parent / "names" / record.name).touch()
    harm(path)
    told, before = [], peak()
    for way in ways(folder):
        try:
            way()
        except StrataError as error:
            told.append(str(error))
    harmless = harm is huge and part in ("data/*", "index/*")  # its end is read, and is no footer
    if not part.startswith("index") and not harmless:
        assert told
    if path.name in (PLAN_NAME, record.name):
        assert any("is not a regular file" in one or "is larger than" in one for one in told), told
    assert peak() - before < 100 << 20


@pytest.mark.parametrize("data", [b"[]", b"3", b"", b"{", b"[" * 100_000, b'{"a":' * 100_000])
def test_only_objects_of_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        untrusted.parse_json(data)


def test_many_small_files_are_small(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number, size in enumerate((0, 5, 6)):
        store.create(str(number), b"x" * size)
    assert [data for _, data in store.read_many("01", 5)] == [b"", b"x" * 5]
    with pytest.raises(StorageError, match="/2: is larger than 5 bytes"):
        list(store.read_many("012", 5))
    with pytest.raises(StorageError, match="/2: is larger than 5 bytes"):
        store.read("2", 5)
