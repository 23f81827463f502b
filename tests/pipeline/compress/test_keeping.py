"""What is kept beside the streams: originals, measured quality, and good rows in a retry."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from codec.images.files import read_image, write_image
from codec.images.metrics import psnr
from pipeline.compress import encoder as encoder_module
from pipeline.compress import keeping, loading
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset.layout import generation_name, shard_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.rows import Row, iter_rows, schema
from pipeline.decode.job import DecodeOptions, decode
from pipeline.reader.dataset import Dataset
from pipeline.sources.listing import expand_inputs
from pipeline.sources.tar_members import ShardError
from pipeline.stores.store import Store
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar


def rows_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {
        row["key"]: row
        for file in dataset.files
        for row in iter_rows(dataset.open(file).parquet, schema(dataset.num_layers).names)
    }


def compressor(dataset: Dataset, toy: ToyCodec, **changes: Any) -> ShardCompressor:
    settings: dict[str, Any] = {"layers": 4, **changes}
    return ShardCompressor(
        CompressSettings(dataset.url, dataset.fingerprint, toy.model_id, **settings)
    )


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def mixed(folder: Path) -> str:
    """A picture that the toy codec makes larger, one that it makes smaller, and some that fail."""
    files = [
        ("noise.jpg", write_image(NOISE, None, "jpg", quality=40)),
        ("plain.png", write_image(np.full((64, 64, 3), 7, np.uint8), None, "png")),
        ("photo.bmp", write_image(picture(1, 64, 64), None, "png")),
        ("cut.png", png(2)[:50]),
        ("big.png", b"\x89PNG" + bytes(3 << 20)),
        ("twice.png", png(3)),
        ("twice.png", png(4)),
        ("alone.txt", b"no picture"),
        ("._hidden.png", bytes(3 << 20)),
        ("small.png", png(4, 2, 2)),
    ]
    return str(write_tar(folder / "mixed.tar", files))


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("never", set()),
        ("bad", {"cut", "big"}),
        ("larger", {"cut", "big", "noise", "photo"}),
        ("always", {"cut", "big", "noise", "plain", "photo"}),
    ],
)
def test_which_originals_are_kept(
    make_dataset: Make, tmp_path: Path, policy: str, kept: set[str]
) -> None:
    dataset = make_dataset([mixed(tmp_path)], keep_original=policy, min_side=3)
    rows = rows_of(dataset)
    found = {key for key, row in rows.items() if row["original"] is not None}
    assert found - {"small"} == kept
    assert ("small" in found) == (policy != "never")  # what is filtered, as long as it is small
    for row in rows.values():
        if row["original"] is not None:
            assert hashlib.sha256(row["original"]).digest() == row["source_sha256"]
    fields = {key: {f["name"]: f["data"] for f in row["fields"]} for key, row in rows.items()}
    assert (fields["twice"]["png"] is None) == (policy == "never")
    assert fields["alone"]["txt"] == b"no picture"
    hidden = fields["._hidden.png"].popitem()[1]
    assert (hidden is not None) == (policy == "always")
    for key in ("noise", "plain", "photo"):  # whatever is kept, there is something to look at
        assert rows[key]["layers"] >= 1
        assert rows[key]["image_sha256"] is not None


def test_a_stream_that_would_be_larger_becomes_a_preview(
    make_dataset: Make, tmp_path: Path
) -> None:
    dataset = make_dataset([mixed(tmp_path)], keep_original="larger", min_side=3)
    rows = rows_of(dataset)
    noise, plain = rows["noise"], rows["plain"]
    assert noise["layers"] == 2 < plain["layers"] == 4
    assert (noise["reason"], plain["reason"]) == (keeping.LARGER, "")
    assert plain["original"] is None
    (file,) = dataset.files
    assert file.record["kept"] == 2
    good = [row for row in rows.values() if row["status"] == "ok"]
    streams = sum(row["cumulative_bytes"][-1] for row in good)
    assert file.record["stream_bytes"] == streams + sum(len(row["original"] or b"") for row in good)


@pytest.mark.parametrize("settings", [{}, {"keep_original": "always", "store_layers": 2}])
def test_an_original_stands_in_for_layers_that_are_not_there(
    make_dataset: Make, tmp_path: Path, without_ray: None, settings: dict[str, Any]
) -> None:
    dataset = make_dataset([mixed(tmp_path)], **{"keep_original": "larger", **settings}, min_side=3)
    noise = read_image(write_image(NOISE, None, "jpg", quality=40)).rgb
    assert (dataset.image("noise") == noise).all()
    preview = dataset.image("noise", 1)
    assert (preview != noise).any()
    for layers, expected in ((None, noise), (1, preview)):
        out = tmp_path / f"out-{layers}"
        summary = decode(DecodeOptions(dataset.url, str(out), layers))
        assert (summary.ok, summary.bad) == (3, 4)
        (tar,) = out.glob("*.tar")
        with tarfile.open(tar) as opened:
            data = opened.extractfile("noise.png")
            assert data is not None
            assert (read_image(data.read()).rgb == expected).all()


@pytest.mark.parametrize("alpha", [None, bytes(500)])
def test_a_file_counts_as_it_would_be_stored(
    toy: ToyCodec, monkeypatch: pytest.MonkeyPatch, alpha: bytes | None
) -> None:
    (stream,) = toy.encode([picture(1, 64, 64)])
    nbytes = stream.nbytes + len(alpha or b"")
    settings = CompressSettings("out", "f", toy.model_id, 4, keep_original="larger")
    for size, kept in ((nbytes, True), (nbytes + 1, False)):
        monkeypatch.setattr(keeping, "pack_file", lambda data, n=size: (bytes(n), "lepton"))
        file = bytes(nbytes * 3 // 2)
        row = Row("a", 0, original=file, source_bytes=len(file), alpha=alpha)
        done = keeping.finished_row(settings, row, stream, None)
        assert (done.original, done.original_packing) == (
            (bytes(size), "lepton") if kept else (None, None)
        )
        assert done.encoded is not None
        assert done.encoded.num_layers == (2 if kept else 4)


@pytest.mark.parametrize("keep", ["larger", "never"])
def test_exact(make_dataset: Make, toy: ToyCodec, tmp_path: Path, keep: str) -> None:
    files = {
        "a.jpg": write_image(picture(1, 64, 64), None, "jpg", quality=95),
        "b.png": write_image(np.full((64, 64, 3), 7, np.uint8), None, "png"),
        "c.webp": write_image(picture(2, 64, 64), None, "webp"),
    }
    tar = str(write_tar(tmp_path / "x.tar", files.items()))
    dataset = make_dataset([tar], store_layers=4, lossless=True, keep_original=keep)
    rows = rows_of(dataset)
    for name, data in files.items():
        assert (dataset.image(name[0]) == read_image(data).rgb).all()
    kept = {key for key, row in rows.items() if row["original"] is not None}
    assert kept == ({"a", "c"} if keep == "larger" else set())
    if keep == "larger":
        assert dataset.original("a") == files["a.jpg"]
        assert [rows[key]["reason"] for key in "abc"] == [keeping.EXACT, "", keeping.LARGER]
        assert [rows[key]["layers"] for key in "abc"] == [2, 4, 2]
        assert sorted(toy.batches) == [1, 2]  # of a JPEG file, no more is encoded than is stored


def test_what_does_not_reach_the_quality_and_keeps_no_file_says_so(
    make_dataset: Make, tmp_path: Path
) -> None:
    tar = str(write_tar(tmp_path / "x.tar", [("a.png", png(1, 64, 64))]))
    dataset = make_dataset([tar], layers=2, target_quality="90dB", keep_original="bad")
    row = rows_of(dataset)["a"]
    assert (row["reason"], row["layers"], row["original"]) == (keeping.MISSED, 2, None)


def test_as_many_layers_as_the_quality_takes(make_dataset: Make, tmp_path: Path) -> None:
    bits = np.full((64, 64, 3), 0b01010000, np.uint8)
    bits[0, 0] = 255
    files = [("few.png", write_image(bits, None, "png")), ("many.png", png(1, 64, 64))]
    tar = str(write_tar(tmp_path / "x.tar", files))
    dataset = make_dataset([tar], target_quality="34dB", keep_original="bad")
    rows = rows_of(dataset)
    assert (rows["few"]["layers"], rows["many"]["layers"]) == (2, 3)
    for row in rows.values():
        assert row["psnr"][-1] >= 34 > row["psnr"][-2]


def test_an_original_beside_a_complete_stream_is_left_alone(
    make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    dataset = make_dataset([mixed(tmp_path)], layers=2, keep_original="always")
    photo = picture(1, 64, 64)
    assert (dataset.image("photo") != photo).any()  # two layers were asked for, and are there
    assert decode(DecodeOptions(dataset.url, str(tmp_path / "out"))).ok == 4
    (tar,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(tar) as opened:
        data = opened.extractfile("photo.png")
        assert data is not None
        assert (read_image(data.read()).rgb == dataset.image("photo")).all()


def test_what_killed_a_worker_is_kept_and_not_read_again(
    make_dataset: Make, toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(keeping, "pack_file", lambda data: read.append(data) or (data, None))
    jpegs = [write_image(picture(n), None, "jpg") for n in range(3)]
    tar = write_tar(tmp_path / "x.tar", [(f"{n}.jpg", data) for n, data in enumerate(jpegs)])
    dataset = make_dataset([], keep_original="always")
    (shard,) = expand_inputs([str(tar)])
    job = ShardJob(shard_name(shard, dataset.fingerprint), shard)
    compressor(dataset, toy, keep_original="always").run(job, {1: "its worker died"})
    (path,) = (Path(dataset.url) / "data").glob("x-*.parquet")
    rows = list(iter_rows(pq.ParquetFile(path), schema(4).names))
    assert [row["original"] for row in rows] == jpegs
    assert read == [jpegs[0], jpegs[2]]


def test_a_floor_for_quality(make_dataset: Make, tmp_path: Path) -> None:
    """Two of eight bits, as the toy codec's first layer has them: some pictures need more."""
    dataset = make_dataset(
        [mixed(tmp_path)],
        layers=2,
        store_layers=2,
        keep_original="larger",
        target_quality="24dB",
        min_side=3,
    )
    rows = rows_of(dataset)
    for key, image in (("photo", picture(1, 64, 64)), ("plain", np.full((64, 64, 3), 7, np.uint8))):
        row = rows[key]
        decoded = dataset.image(key, 1)
        assert row["psnr"][0] == pytest.approx(psnr(image, decoded), abs=1e-3)
        assert len(row["psnr"]) == row["layers"]
    below = {k for k, row in rows.items() if row["status"] == "ok" and row["original"] is not None}
    assert "plain" not in below  # 7 of 255 off in every value is 31 dB
    assert "noise" in below
    small = rows_of(
        make_dataset(
            [mixed(tmp_path)],
            output=str(tmp_path / "one"),
            layers=1,
            store_layers=1,
            keep_original="larger",
            target_quality="24dB",
        )
    )["photo"]
    assert small["cumulative_bytes"][-1] < small["source_bytes"]  # not larger, but not good enough
    assert small["psnr"][0] < 24
    assert small["original"] is not None
    without = make_dataset([mixed(tmp_path)], output=str(tmp_path / "without"), layers=2)
    assert rows_of(without)["photo"]["psnr"] is None


def test_pixels_have_a_hash_of_their_own(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    for key, row in rows_of(dataset).items():
        assert hashlib.sha256(dataset.image(key).tobytes()).digest() == row["image_sha256"]


def test_only_bad_samples_are_tried_again(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*samples(3), ("broken.png", b"no"), ("unlucky.png", png(5, 24, 13)), *samples(2, 10)]
    files.append(("._hidden", b"filtered, then as now"))
    tar = str(write_tar(tmp_path / "x.tar", files))
    dataset = make_dataset([tar])
    (file,) = dataset.files
    before = rows_of(dataset)
    (shard,) = expand_inputs([tar])
    name = shard_name(shard, dataset.fingerprint)
    again = ShardJob(name, shard, generation=1, previous=file.path)
    unchanged = compressor(dataset, toy).run(again)
    assert unchanged["unchanged"]
    assert unchanged["sha256"] == file.record["sha256"]
    assert not Store(dataset.url).exists(f"data/{name}.1.parquet")

    monkeypatch.setattr(
        toy,
        "encode",
        lambda images, *, layers, **_: [  # it has learned
            toy._encode(image, layers) for image in images
        ],
    )
    toy.batches.clear()
    record = compressor(dataset, toy).run(again)
    assert (record["ok"], record["bad"], record["generation"]) == (6, 1, 1)
    assert record["name"] == generation_name(name, 1)
    ledger = Ledger(Store(dataset.url), dataset.fingerprint)
    done, lost = ledger.completed("data", ".parquet")
    assert not lost
    assert done[name]["name"] == record["name"]
    after = rows_of(make_dataset([tar]))
    assert list(after) == list(before)
    for key in before:
        if key != "unlucky":
            assert after[key] == before[key]
    assert after["unlucky"]["status"] == "ok"


def test_a_shard_that_has_other_samples_now_is_not_mixed_with_old_rows(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec
) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", [*samples(2), ("b.png", b"no")]))])
    (file,) = dataset.files
    (other,) = expand_inputs([str(write_tar(tmp_path / "x.tar", samples(2)))])
    name = file.record["base"]
    with pytest.raises(ShardError, match=r"has 2 samples, and had 3"):
        compressor(dataset, toy).run(ShardJob(name, other, 1, file.path))


def test_samples_that_must_not_be_touched(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading.read_image

    def deadly(data: bytes, **options: Any) -> Any:
        if data == png(1):
            raise SystemExit("this would have been the end")
        return read(data, **options)

    monkeypatch.setattr(loading, "read_image", deadly)
    dataset = make_dataset([str(write_tar(tmp_path / "y.tar", [("a.png", png(0))]))])
    tar = write_tar(tmp_path / "x.tar", samples(4))
    (shard,) = expand_inputs([str(tar)])
    job = ShardJob(shard_name(shard, dataset.fingerprint), shard)
    worker = compressor(dataset, toy)
    assert worker.probe(job, 0, 1) == 4
    assert worker.probe(job, 2, 4) == 4
    assert worker.probe(job, 0, 4, {1: "kills"}) == 4
    with pytest.raises(RuntimeError, match="SystemExit: this would have been the end"):
        worker.probe(job, 1, 2)
    assert not Store(dataset.url).exists(f"data/{job.name}.parquet")
    record = worker.run(job, {1: "kills its worker: it died"})
    assert (record["ok"], record["bad"]) == (3, 1)
    assert record["problems"] == [["s0001", "bad", "kills its worker: it died"]]
    assert record["reasons"] == {"kills its worker": 1}


def test_memory_that_runs_out_halves_the_batch(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = toy.encode

    def tight(images: list[np.ndarray], **options: Any) -> Any:
        if len(images) > 5:
            toy.batches.append(len(images))
            raise MemoryError("too much at once")
        return encode(images, **options)

    monkeypatch.setattr(toy, "encode", tight)
    monkeypatch.setattr(encoder_module, "WINDOW_ROWS", 16)
    tar = str(write_tar(tmp_path / "x.tar", samples(48)))
    dataset = make_dataset([tar], batch_size=16)
    assert len(dataset) == 48
    # 16, then halves of 8, then of 4; from then on the device is not asked for so much again
    assert [size for size in toy.batches if size > 5].count(16) == 1
    assert sum(size for size in toy.batches if size <= 5) == 48


def test_another_job_was_faster(make_dataset: Make, tmp_path: Path, toy: ToyCodec) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    toy.batches.clear()
    (file,) = dataset.files
    (shard,) = expand_inputs([str(tmp_path / "x.tar")])
    record = compressor(dataset, toy).run(ShardJob(file.record["base"], shard))
    assert record["found"]
    assert record["sha256"] == file.record["sha256"]
    assert toy.batches == []
