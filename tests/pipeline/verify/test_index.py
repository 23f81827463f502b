"""Indexes of data files: damage is found, and they are made again without encoding."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compress import worker
from pipeline.dataset.index_writer import write_index
from pipeline.dataset.layout import PLAN_NAME, manifest_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from tests.pipeline.verify.archives import (
    FULL,
    PICTURES,
    Archive,
    flip,
    in_a_layer,
    lose,
    truncated,
)


def index_of(archive: Archive, stem: str = "a") -> Path:
    return archive.root / "index" / archive.file(stem).name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def in_a_page(path: Path) -> None:
    column = pq.read_metadata(path).row_group(0).column(6)
    flip(path, column.data_page_offset + column.total_compressed_size - 3)


def of_another_file(path: Path) -> None:
    """A sound index, but with other places."""
    table = pq.read_table(path)
    rows = pa.array([row + 1 for row in table.column("row").to_pylist()], pa.int32())
    write_index(table.set_column(1, "row", rows), path)


@pytest.fixture
def never_encodes(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object) -> None:
        raise AssertionError("a shard is encoded again")

    monkeypatch.setattr(worker.ShardCompressor, "run", encode)


@pytest.mark.usefixtures("never_encodes")
@pytest.mark.parametrize("harm", [lose, cut, of_another_file, in_a_page])
def test_a_damaged_index_is_made_anew(archive: Archive, harm: Callable[[Path], None]) -> None:
    path = index_of(archive)
    before = path.read_bytes()
    harm(path)
    quick, full = archive.verify(), archive.verify(read=FULL)
    other_size = not path.exists() or path.stat().st_size != len(before)
    assert bool(quick.damaged) == other_size  # more than that a quick look does not see
    (damage,) = full.damaged
    assert (damage.kind, damage.path) == ("index", f"index/{path.name}")
    assert damage.source.endswith("a.tar")
    repaired = archive.verify(read=FULL, repair=True)
    assert [d.repaired for d in repaired.damaged] == [True]
    assert (repaired.exit_code, repaired.new_manifest) == (0, 0)
    assert path.read_bytes() == before
    archive.check_whole()


def test_the_index_of_a_file_that_is_damaged_too(archive: Archive) -> None:
    """The next generation brings its own; nothing vouches for the old file."""
    path = index_of(archive)
    in_a_layer(archive)
    lose(path)
    report = archive.verify(repair=True)  # the quick check does not see the layer
    assert {(d.kind, d.repaired) for d in report.damaged} == {("index", True), ("data", True)}
    assert report.exit_code == 0
    assert index_of(archive).name == f"{path.stem}.1.parquet"
    archive.check_whole()


def test_a_damaged_file_says_nothing_of_its_index(archive: Archive) -> None:
    truncated(archive)
    lose(index_of(archive))
    assert [d.kind for d in archive.verify(read=FULL).damaged] == ["data"]
    assert archive.verify(repair=True).exit_code == 0
    archive.check_whole()


def without_indexes(archive: Archive) -> None:
    """As releases wrote datasets that knew no index."""
    dataset = archive.dataset
    for file in dataset.files:
        (archive.root / "index" / f"{file.name}.parquet").unlink()
        record = archive.root / "commits" / f"{file.name}.json"
        told = json.loads(record.read_text())
        record.write_text(json.dumps({k: v for k, v in told.items() if k != "index"}))
    done, _ = Ledger(dataset.store, dataset.fingerprint).completed("data", ".parquet")
    publish_manifest(dataset.store, Plan(PLAN_NAME, dataset.parameters), done)


def test_a_manifest_with_an_odd_index_is_not_trusted(archive: Archive) -> None:
    path = archive.root / manifest_name(1)
    manifest = json.loads(path.read_text())
    manifest["files"][0]["index"]["bytes"] = "many"
    path.write_text(json.dumps(manifest))
    assert [d.kind for d in archive.verify(repair=True).damaged] == ["manifest"]
    archive.check_whole()
    assert {record.key for record in archive.dataset.fetch(PICTURES)} == PICTURES.keys()
