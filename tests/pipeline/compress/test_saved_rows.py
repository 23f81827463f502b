"""A worker that is lost in the middle of a shard: finished rows are not encoded again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.compress import worker
from pipeline.compress.saved_rows import SavedRows
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset.layout import SAVED, shard_name
from pipeline.reader.dataset import Dataset
from pipeline.running.tasks import PausedError
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store
from pipeline.verify.garbage import find_garbage
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, png, write_tar

COUNT = 40


class Killed(BaseException):
    """What nothing in a worker catches."""


@pytest.fixture
def whole(make_dataset: Make, tmp_path: Path) -> Dataset:
    """An undisturbed run. Some samples are bad."""
    sizes = {3: 13, 20: 13, 30: 13}  # the toy codec fails on these
    files = [(f"{n:02d}.png", png(n, 24, sizes.get(n, 32))) for n in range(COUNT)]
    return make_dataset([str(write_tar(tmp_path / "x.tar", files))], output=str(tmp_path / "whole"))


class Runs:
    """Attempts at the same shard, in a dataset of its own; windows of two pictures."""

    def __init__(self, whole: Dataset, toy: ToyCodec, folder: Path, **changes: Any) -> None:
        (self.shard,) = expand_inputs([str(folder / "x.tar")])
        self.store = Store(str(folder / "again"))
        self.store.create_from(f"models/{toy.model_id}/model.safetensors", toy.model_path)
        self.settings = CompressSettings(
            self.store.url,
            whole.fingerprint,
            toy.model_id,
            layers=4,
            batch_size=2,
            save_seconds=0.0,
        )
        self.job = ShardJob(shard_name(self.shard, whole.fingerprint), self.shard)

    def attempt(self, **changes: Any) -> dict[str, Any]:
        return ShardCompressor(replace(self.settings, **changes)).run(self.job)

    def data(self) -> bytes:
        return self.store.read(f"data/{self.job.name}.parquet")


@pytest.fixture
def runs(whole: Dataset, toy: ToyCodec, tmp_path: Path) -> Runs:
    return Runs(whole, toy, tmp_path)


def whole_file(whole: Dataset) -> bytes:
    (file,) = whole.files
    return Store(whole.url).read(file.path)


def kill_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The worker dies when it has written so many more rows."""
    copy, left = worker.RowWriter.copy, [rows]

    def deadly(self: Any, columns: dict[str, Any]) -> None:
        copy(self, columns)
        left[0] -= 1
        if not left[0]:
            raise Killed

    monkeypatch.setattr(worker.RowWriter, "copy", deadly)


def test_every_attempt_goes_on_where_the_last_one_was_lost(
    runs: Runs, whole: Dataset, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        with monkeypatch.context() as patch:
            kill_after(patch, 8)
            with pytest.raises(Killed):
                runs.attempt()
    assert set(runs.store.sizes("data")) == set()  # nothing half-written is visible
    assert len(runs.store.sizes(SAVED)) == 4 * 7  # a row each, but for the last of an attempt
    toy.batches.clear()
    record = runs.attempt()
    assert sum(toy.batches) < COUNT - 20  # the others were not encoded again
    assert (record["ok"], record["bad"]) == (COUNT - 3, 3)
    assert runs.data() == whole_file(whole)
    assert runs.store.sizes(SAVED) == {}


def test_pausing_saves_at_once(runs: Runs, whole: Dataset) -> None:
    compressor = ShardCompressor(replace(runs.settings, save_seconds=3600.0))
    finished = compressor.encoder._finish  # type: ignore[attr-defined]

    def finish(*arguments: Any) -> Any:
        rows = finished(*arguments)
        compressor.pause()
        return rows

    compressor.encoder._finish = finish  # type: ignore[method-assign]
    with pytest.raises(PausedError):
        compressor.run(runs.job)
    assert len(runs.store.sizes(SAVED)) == 1
    with pytest.raises(PausedError):
        compressor.run(runs.job)  # one that had not begun
    runs.attempt()
    assert runs.data() == whole_file(whole)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:60] + data[61:]])
def test_damaged_rows_are_encoded_again(
    runs: Runs, whole: Dataset, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, 20)
        with pytest.raises(Killed):
            runs.attempt()
    name = sorted(runs.store.sizes(SAVED))[3]
    path = Path(runs.store.path(f"{SAVED}/{name}"))
    path.write_bytes(damage(path.read_bytes()))
    runs.attempt()
    assert runs.data() == whole_file(whole)


def test_rows_of_two_jobs_that_overlap(runs: Runs, whole: Dataset, tmp_path: Path) -> None:
    (file,) = whole.files
    with whole.open(file) as opened:
        rows = list(worker.iter_rows(opened.parquet, worker.schema(4).names))
    for start, stop in ((0, 5), (0, 9), (3, 16), (16, 20), (25, 30)):
        local = tmp_path / "part"
        writer = worker.RowWriter(local, 4, {})
        for row in rows[start:stop]:
            writer.copy(row)
        writer.close()
        runs.store.create_from(f"{SAVED}/{runs.job.name}.{start}-{stop}.parquet", local)
        runs.store.create_from(f"{SAVED}/other-{'0' * 12}.{start}-{stop}.parquet", local)
    saved = SavedRows(runs.store, runs.job.name, tmp_path)
    saved.fetch()
    assert saved.rows == 20
    assert [row["index"] for row in saved] == list(range(20))
    runs.attempt(save_seconds=3600.0)
    assert runs.data() == whole_file(whole)
    assert len(runs.store.sizes(SAVED)) == 5  # the other shard's


def test_a_store_that_takes_no_rows_costs_nothing_else(
    runs: Runs, whole: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_from = Store.create_from

    def full(self: Store, name: str, local: Path) -> bool:
        if name.startswith(SAVED):
            raise OSError("no space left")
        return create_from(self, name, local)

    monkeypatch.setattr(Store, "create_from", full)
    runs.attempt()
    assert runs.data() == whole_file(whole)


def test_left_over_rows_are_garbage(runs: Runs, whole: Dataset) -> None:
    store = Store(whole.url)
    store.create(f"{SAVED}/{runs.job.name}.0-3.parquet", b"rows")
    store.create(f"{SAVED}/notes.txt", b"not ours")
    assert [item.path for item in find_garbage(store, -60.0)] == [
        f"{SAVED}/{runs.job.name}.0-3.parquet"
    ]
