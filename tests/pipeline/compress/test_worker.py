"""One worker, one shard: every sample of any tar is accounted for."""

import hashlib
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.errors import InvalidModelError
from codec.images.alpha import unpack_alpha
from codec.images.files import write_image
from pipeline.compress import encoder as encoder_module
from pipeline.compress import worker
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset import models
from pipeline.dataset.layout import shard_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.rows import iter_rows, schema
from pipeline.reader.dataset import Dataset
from pipeline.running.stages import StageClock
from pipeline.sources.listing import expand_inputs
from pipeline.sources.shards import open_shard
from pipeline.sources.tar_members import ShardError
from pipeline.stores.store import StorageError, Store
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar


def rows_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    (file,) = dataset.files
    with dataset.open(file) as opened:
        rows = list(iter_rows(opened.parquet, schema(dataset.num_layers).names))
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return {row["key"]: row for row in rows}


def test_what_becomes_of_every_sample(make_dataset: Make, tmp_path: Path) -> None:
    alpha = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    jpeg = write_image(picture(3), None, "jpg")
    files = [
        ("good.png", png(1)),
        ("good.json", b'{"a": 1}'),
        ("empty.png", b""),
        ("empty.cls", b"7"),
        ("cut.jpg", jpeg[: len(jpeg) // 2]),
        ("text.txt", b"no picture"),
        ("alpha.webp", write_image(picture(2), alpha, "webp")),
        ("unlucky.png", png(4, 24, 13)),  # the toy codec fails on it
        ("wrong.jpg", b"<html>404</html>"),
        ("bomb.png", png(5, 64, 64)),
        ("tiny.png", png(6, 2, 2)),
        ("dup.png", png(7)),
        ("last.png", png(8)),
        ("dup.json", b"{}"),
        ("._last.png", b"mac"),
        ("caf\udce9.png", png(9)),
    ]
    tar = write_tar(tmp_path / "mixed.tar", files)
    dataset = make_dataset([str(tar)], max_pixels=64 * 63, min_side=3)
    (file,) = dataset.files
    assert file.record["ok"] == 4
    assert (file.record["bad"], file.record["filtered"]) == (8, 2)
    reasons = {key: reason for _, key, _, reason in dataset.problems()}
    expected = {
        "empty": "empty",
        "cut": "jpeg",
        "text": "no picture among its fields: txt",
        "unlucky": "the codec failed: FloatingPointError: thirteen is unlucky",
        "wrong": "not an image",
        "bomb": "4096 pixels",
        "tiny": "smaller than --min-side 3: 2x2",
        "dup": "again",
        "._last.png": "skips",
    }
    assert set(reasons) == set(expected)
    for key, words in expected.items():
        assert words in reasons[key]

    opened = dataset.open(file)
    rows = list(iter_rows(opened.parquet, schema(4).names))
    by_key = {row["key"]: row for row in rows}
    assert len(rows) == 14
    assert by_key["cut"]["original"] == jpeg[: len(jpeg) // 2]  # nothing of a bad one is lost
    assert by_key["cut"]["source_sha256"] == hashlib.sha256(jpeg[: len(jpeg) // 2]).digest()
    assert by_key["empty"]["fields"][1] == {"name": "cls", "data": b"7"}
    assert by_key["good"]["fields"] == [
        {"name": "png", "data": None},
        {"name": "json", "data": b'{"a": 1}'},
    ]
    assert by_key["good"]["original"] is None
    assert by_key["good"]["source_sha256"] == hashlib.sha256(png(1)).digest()
    assert (unpack_alpha(by_key["alpha"]["alpha"]) == alpha).all()
    assert by_key["caf\\xe9"]["key_bytes"] == b"caf\xe9"
    assert (dataset.image("good") == picture(1)).all()
    assert (dataset.image("alpha") == picture(2)).all()
    with pytest.raises(Exception, match=r"'wrong' of .*mixed\.tar is bad"):
        dataset.image("wrong")


def test_one_bad_picture_does_not_take_its_batch_along(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec
) -> None:
    files = [(f"{n}.png", png(n, 24, 13 if n == 5 else 32)) for n in range(20)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))], batch_size=32)
    assert [key for _, key, _, _ in dataset.problems()] == ["5"]
    assert len(dataset) == 19
    assert toy.batches[0] == 20
    assert toy.batches[1:21] == [1] * 20


def test_a_codec_that_always_fails_fails_the_shard(make_dataset: Make, tmp_path: Path) -> None:
    files = [(f"{n}.png", png(n, 24, 13)) for n in range(10)]
    tar = write_tar(tmp_path / "x.tar", files)
    with pytest.raises(RuntimeError, match="no picture could be encoded"):
        make_dataset([str(tar)], output=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "data").exists()


def test_a_stream_is_not_larger_than_its_file(make_dataset: Make, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg = write_image(noise, None, "jpg", quality=75)
    files = [("a.jpg", jpeg), ("b.png", png(1, 64, 64)), ("c.png", png(1, 2, 2))]
    dataset = make_dataset(
        [str(write_tar(tmp_path / "x.tar", files))], layers=3, store_layers="fit"
    )
    rows = rows_of(dataset)
    assert rows["b"]["layers"] == 3
    assert rows["a"]["layers"] < 3
    assert rows["a"]["cumulative_bytes"][-1] <= len(jpeg)
    assert rows["c"]["layers"] >= 1
    full = make_dataset([str(tmp_path / "x.tar")], output=str(tmp_path / "full"), layers=3)
    assert {row["layers"] for row in rows_of(full).values()} == {3}
    more = rows_of(full)["a"]["cumulative_bytes"]
    assert more[rows["a"]["layers"]] > len(jpeg)  # it kept as many as fit


def test_small_windows_and_batches_give_the_same_dataset(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(24, 32), (8, 8), (60, 3), (24, 32), (1, 1), (8, 8)] * 5
    files = [(f"{n:02d}.png", png(n, *size)) for n, size in enumerate(sizes)]
    tar = str(write_tar(tmp_path / "x.tar", files))
    whole = make_dataset([tar], output=str(tmp_path / "whole"))
    monkeypatch.setattr(encoder_module, "WINDOW_BYTES", 2700)
    monkeypatch.setattr(encoder_module, "BATCH_PIXELS", 800)
    pieces = make_dataset([tar], output=str(tmp_path / "pieces"), batch_size=2, threads=3)
    assert rows_of(pieces) == rows_of(whole)


def test_a_cut_shard_gives_nothing_at_all(make_dataset: Make, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", samples(3))
    tar.write_bytes(tar.read_bytes()[: 512 * 9])
    with pytest.raises(ShardError, match=r"x\.tar.*offset 4608"):
        make_dataset([str(tar)], output=str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "models"]


def test_a_file_published_by_an_attempt_that_died_stands(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec
) -> None:
    tar = write_tar(tmp_path / "x.tar", samples(3))
    dataset = make_dataset([str(tar)])
    (file,) = dataset.files
    store = Store(dataset.url)
    before = store.read(file.path)
    store.remove(f"commits/{file.name}.json")  # it died between file and record
    toy.level = 0  # another encoding of the same pictures, which must not win
    (shard,) = expand_inputs([str(tar)])
    settings = CompressSettings(dataset.url, dataset.fingerprint, toy.model_id, layers=4)
    record = ShardCompressor(settings).run(ShardJob(shard_name(shard, dataset.fingerprint), shard))
    assert record["sha256"] == hashlib.sha256(before).hexdigest() == file.record["sha256"]
    assert store.read(file.path) == before
    assert Ledger(store, dataset.fingerprint).records()[file.name]["ok"] == 3


def test_rows_that_get_lost_are_noticed(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = worker.RowWriter.copy

    def forgetful(self: Any, columns: Any) -> None:
        if columns["key"] != "s0002":
            copy(self, columns)

    monkeypatch.setattr(worker.RowWriter, "copy", forgetful)
    tar = write_tar(tmp_path / "x.tar", samples(3))
    with pytest.raises(RuntimeError, match="3 samples gave 2 rows"):
        make_dataset([str(tar)], output=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "data").exists()


def test_a_damaged_model_copy_is_refused(make_dataset: Make, tmp_path: Path, toy: ToyCodec) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(1)))])
    copy = Path(dataset.url) / "models" / toy.model_id / "model.safetensors"
    copy.write_bytes(copy.read_bytes() + b" and more")
    with pytest.raises(InvalidModelError, match="is damaged"):
        dataset.codec()


def test_progress_counts_to_the_end(
    toy: ToyCodec, tmp_path: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(5)))])
    other = write_tar(tmp_path / "y.tar", [*samples(4), ("bad.png", b"")])
    compressor = ShardCompressor(
        CompressSettings(dataset.url, dataset.fingerprint, toy.model_id, layers=4)
    )
    assert compressor.status()["shards"] == {}
    seen: list[dict[str, Any]] = []
    publish = worker.Publisher.publish
    monkeypatch.setattr(
        worker.Publisher,
        "publish",
        lambda *to: seen.append(compressor.status()) or publish(*to),
    )
    compressor.run(ShardJob("y-0123456789ab", *expand_inputs([str(other)])))
    (counts,) = seen[0]["shards"].values()
    assert counts["stage"] == "upload"
    assert (counts["samples"], counts["of"], counts["bad"]) == (5, 5, 1)
    assert counts["picture_bytes"] == sum(len(png(n)) for n in range(4))
    after = compressor.status()
    assert after["shards"] == {}
    assert after["bytes_in"] == other.stat().st_size
    assert after["bytes_out"] > 0
    assert set(after["stage_seconds"]) >= {"download", "decode", "device", "coder", "upload"}


def test_pictures_count_as_soon_as_they_are_coded(
    toy: ToyCodec, tmp_path: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of large pictures takes minutes: nobody should look at a zero for so long."""
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(1)))])
    settings = CompressSettings(dataset.url, dataset.fingerprint, toy.model_id, 4)
    (shard,) = expand_inputs([str(write_tar(tmp_path / "y.tar", samples(30)))])
    heard: list[tuple[str, int]] = []
    encoder = encoder_module.SampleEncoder(toy, replace(settings, batch_size=3))
    with open_shard(shard, tmp_path) as file:
        rows = encoder.rows(
            file,
            enumerate(file.samples),
            StageClock(),
            lambda rows: heard.append(("rows", len(rows))),
            lambda count: heard.append(("coded", count)),
        )
        assert len(list(rows)) == 30
    coded = list(accumulate(count if kind == "coded" else 0 for kind, count in heard))
    in_rows = list(accumulate(count if kind == "rows" else 0 for kind, count in heard))
    assert coded[-1] == in_rows[-1] == 30
    # The third window has four batches; the coder may still have two of them.
    assert max(np.subtract(coded, in_rows)) >= 12


def test_the_device_waits_for_a_slow_coder(
    toy: ToyCodec, tmp_path: Path, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is quantised and not yet coded lies in memory."""
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(1)))])
    settings = CompressSettings(dataset.url, dataset.fingerprint, toy.model_id, 4)
    (shard,) = expand_inputs([str(write_tar(tmp_path / "y.tar", samples(20)))])
    begun: list[int] = []
    coding = threading.Event()

    def begin(images: Any, **options: Any) -> Any:
        begun.append(len(images))
        streams = toy.encode(images, **options)

        def finish() -> Any:
            coding.wait(30)
            return streams

        return finish

    monkeypatch.setattr(toy, "begin_encode", begin)
    encoder = encoder_module.SampleEncoder(toy, replace(settings, batch_size=1))
    with open_shard(shard, tmp_path) as file, ThreadPoolExecutor(1) as pool:
        rows = encoder.rows(file, enumerate(file.samples), StageClock(), lambda rows: None)
        done = pool.submit(lambda: list(rows))
        deadline = time.monotonic() + 30
        while len(begun) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(begun) == 3  # one with the coder, one waiting, one that cannot be handed over
        coding.set()
        assert len(done.result(30)) == 20


class UnportableError(Exception):
    """Like those of many libraries: pickled, but never unpickled."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")


@pytest.fixture
def compressor(make_dataset: Make, toy: ToyCodec, tmp_path: Path) -> ShardCompressor:
    """A worker for a dataset that has one other shard already."""
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(1)))])
    return ShardCompressor(
        CompressSettings(dataset.url, dataset.fingerprint, toy.model_id, layers=4)
    )


@pytest.fixture
def job(compressor: ShardCompressor, tmp_path: Path) -> ShardJob:
    (shard,) = expand_inputs([str(write_tar(tmp_path / "y.tar", samples(3, 10)))])
    return ShardJob(shard_name(shard, compressor.settings.fingerprint), shard)


@pytest.mark.parametrize("error", [UnportableError(7, "no luck"), SystemExit("no luck")])
def test_errors_reach_the_driver_whatever_they_are(
    compressor: ShardCompressor,
    job: ShardJob,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    calls = {"run": lambda: compressor.run(job), "probe": lambda: compressor.probe(job, 0, 1)}
    monkeypatch.setattr(worker, "open_shard", fail)
    for call in calls.values():
        with pytest.raises(RuntimeError, match="no luck") as caught:
            call()
        arrived = pickle.loads(pickle.dumps(caught.value))
        assert str(arrived).startswith(f"{type(error).__name__}: ")
        assert arrived.__cause__ is arrived.__context__ is None
        assert caught.value.__context__ is None  # its frames would keep pictures in memory
    monkeypatch.setattr(models, "load_codec", fail)
    with pytest.raises(RuntimeError, match="no luck"):
        ShardCompressor(compressor.settings).ready()


def test_strata_errors_stay_what_they_are(
    compressor: ShardCompressor, job: ShardJob, tmp_path: Path
) -> None:
    (tmp_path / "y.tar").write_bytes(b"no tar")
    with pytest.raises(StorageError, match=r"y\.tar: changed"):
        compressor.run(job)


def test_a_shard_may_be_under_way_twice(
    compressor: ShardCompressor, job: ShardJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker that seemed lost is asked again."""
    both = threading.Barrier(2)
    fetch = compressor._fetch

    def together(*arguments: Any, **options: Any) -> Any:
        both.wait(30)
        return fetch(*arguments, **options)

    monkeypatch.setattr(compressor, "_fetch", together)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(compressor.run, [job, job])
    assert one == other
    assert one["ok"] == 3
    assert compressor.status()["shards"] == {}


def torn(compressor: ShardCompressor, job: ShardJob) -> tuple[str, bytes]:
    """Half of the job's data file under its own name, and no record. Its path and all of it."""
    compressor.run(job)
    path = f"data/{job.name}.parquet"
    whole = compressor.store.read(path)
    for name in (path, f"commits/{job.name}.json"):
        compressor.store.remove(name)
    compressor.store.create(path, whole[: len(whole) // 2])
    return path, whole


def test_half_a_file_without_a_record_makes_room(
    compressor: ShardCompressor, job: ShardJob
) -> None:
    path, whole = torn(compressor, job)
    record = compressor.run(job)
    assert (record["ok"], record["bytes"]) == (3, len(whole))
    assert hashlib.sha256(compressor.store.read(path)).hexdigest() == record["sha256"]


def test_half_a_file_with_a_record_is_left_to_repairing(
    compressor: ShardCompressor, job: ShardJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = torn(compressor, job)
    ledger = Ledger(compressor.store, compressor.settings.fingerprint)
    fetch = Store.fetch

    def another_records_it(self: Store, name: str, local: Path) -> None:
        fetch(self, name, local)
        if name == path:
            ledger.commit(job.name, {"bytes": len(whole)})

    monkeypatch.setattr(Store, "fetch", another_records_it)
    with pytest.raises(StorageError, match=rf"{path}.*damaged"):
        compressor.run(job)
    assert len(compressor.store.read(path)) == len(whole) // 2
