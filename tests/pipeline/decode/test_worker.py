"""Decoding a data file: the original's keys and side fields, and names that cannot escape."""

import dataclasses
import io
import json
import shutil
import tarfile
import tempfile
import threading
import weakref
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from codec.images.files import read_image, write_image
from pipeline.dataset import rows as dataset_rows
from pipeline.dataset.data_file import DataFile
from pipeline.dataset.rows import row_bytes
from pipeline.decode import selection
from pipeline.decode import worker as decode_worker
from pipeline.decode.dataset_worker import HandOutSettings
from pipeline.decode.job import DecodeOptions
from pipeline.decode.job import decode as decode_job
from pipeline.decode.layer_rule import LayerRule
from pipeline.decode.samples import image_field_name
from pipeline.decode.targets import FileTarget, UnwritableNameError, safe_path
from pipeline.decode.worker import ShardDecoder
from pipeline.reader import originals
from pipeline.reader.dataset import Dataset
from pipeline.running.options import OptionError
from pipeline.stores.store import Store
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar

WORKERS = [one.name for one in fields(HandOutSettings)]


def worker_for(dataset: Dataset, output: Path, **changes: Any) -> ShardDecoder:
    rule = changes.pop("rule", LayerRule(dataset.num_layers, changes.pop("layers", 4)))
    own = {name: changes.pop(name) for name in [*changes] if name in WORKERS}
    options = DecodeOptions(dataset.url, str(output), **changes)
    return ShardDecoder(HandOutSettings(options, "f", rule, **own))


def decode(dataset: Dataset, output: Path, **changes: Any) -> list[dict[str, Any]]:
    worker = worker_for(dataset, output, **changes)
    return [worker.run(file) for file in dataset.files]


def tar_files(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_keys_and_side_fields_come_back(make_dataset: Make, tmp_path: Path) -> None:
    alpha = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    files = [
        *samples(3),
        ("dir.x/ü 1.json", b"[]"),
        ("dir.x/ü 1.image.webp", write_image(picture(5), alpha, "webp")),
        ("dir.x/ü 1.TXT", b"\x00\xff"),
        ("caf\udce9.png", png(6)),
        ("caf\udce9.cls", b"1"),
    ]
    source = write_tar(tmp_path / "x.tar", files)
    dataset = make_dataset([str(source)])
    (record,) = decode(dataset, tmp_path / "out")
    assert (record["ok"], record["bad"]) == (5, 0)
    (path,) = (tmp_path / "out").glob("*.tar")
    found = tar_files(path)
    assert list(found) == [name.replace("image.webp", "image.png") for name, _ in files]
    for name, data in files:
        if name.endswith(("png", "webp")):
            back = read_image(found[name.replace("webp", "png")])
            assert (back.rgb == read_image(data).rgb).all()
        else:
            assert found[name] == data
    back_alpha = read_image(found["dir.x/ü 1.image.png"]).alpha
    assert back_alpha is not None
    assert (back_alpha == alpha).all()

    def keys(tar: Path) -> list[str]:
        return [s["__key__"] for s in webdataset.WebDataset(str(tar), shardshuffle=False)]

    assert keys(path) == keys(source)


def test_bad_samples_are_named(make_dataset: Make, tmp_path: Path, toy: ToyCodec) -> None:
    files = [*samples(2), ("bad.png", b"x"), ("z.png", png(3))]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    (record,) = decode(dataset, tmp_path / "out")
    assert (record["rows"], record["ok"], record["bad"]) == (4, 3, 1)
    assert record["problems"][0][:2] == ("bad", "bad")

    # another model's streams cannot be read: all of them are bad, and none is guessed
    toy.model_id = "1" * 64
    monkey = Dataset.codec
    try:
        Dataset.codec = lambda *_: toy  # type: ignore[method-assign, assignment]
        (record,) = decode(dataset, tmp_path / "out2")
    finally:
        Dataset.codec = monkey  # type: ignore[method-assign]
    assert (record["ok"], record["bad"]) == (0, 4)
    assert "layer 1" in record["problems"][0][2]


def test_a_device_that_fails_is_no_reason_to_lose_pictures(
    make_dataset: Make, tmp_path: Path, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded is never done again, so it must be the pictures that are bad."""
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(30)))])
    decode_toy = toy.decode
    broken: set[int] = set()

    def decode_some(streams: Any, **options: Any) -> Any:
        pictures = decode_toy(streams, **options)
        for number in range(30):
            if number in broken and any((one == picture(number)).all() for one in pictures):
                raise RuntimeError("the device is gone")
        return pictures

    monkeypatch.setattr(toy, "decode", decode_some)
    broken |= {*range(7), *range(10, 17)}
    (record,) = decode(dataset, tmp_path / "some")
    assert (record["ok"], record["bad"]) == (16, 14)
    broken |= {*range(12, 30)}  # from here on
    with pytest.raises(RuntimeError, match=r"no picture could be decoded: .*device is gone"):
        decode(dataset, tmp_path / "out", batch_size=5)
    assert not list((tmp_path / "out").rglob("*.*"))
    broken.clear()
    (record,) = decode(dataset, tmp_path / "out")
    assert (record["ok"], record["bad"]) == (30, 0)


def test_jpg_shows_transparency_on_white(
    make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    alpha = np.full((24, 32), 255, np.uint8)
    alpha[:, 16:] = 0
    files = [("a.png", write_image(picture(), alpha, "png")), ("b.png", png())]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    given = DecodeOptions(dataset.url, str(tmp_path / "out"), image_format="jpg", image_quality=100)
    summary = decode_job(given)
    assert (summary.ok, summary.bad) == (2, 0)
    assert "1 picture with transparency put on white" in "\n".join(summary.lines())
    (path,) = (tmp_path / "out").glob("*.tar")
    found = tar_files(path)
    assert list(found) == ["a.jpg", "b.jpg"]
    shown = read_image(found["a.jpg"]).rgb
    assert (shown[:, 18:] > 250).all()
    assert np.abs(shown[:, :8].astype(int) - read_image(found["b.jpg"]).rgb[:, :8]).max() <= 8


def test_a_side_field_of_the_new_name_is_kept(make_dataset: Make, tmp_path: Path) -> None:
    files = [("a.jpg", write_image(picture(), None, "jpg")), ("a.png", b"not encoded")]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    decode(dataset, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.tar")
    assert tar_files(path)["a.png"] == b"not encoded"
    assert list(tar_files(path)) == ["a.decoded.png", "a.png"]
    assert image_field_name("JPG", "webp", set()) == "webp"


HOSTILE = ["../../x.png", "/etc/passwd.png", "a/../../../y.png", "..", "./.././z.png", "C:\\w.png"]


def test_hostile_keys_stay_inside(make_dataset: Make, tmp_path: Path) -> None:
    files = [(name, png(n)) for n, name in enumerate(HOSTILE) if name != ".."]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    out = tmp_path / "deep" / "er" / "out"
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    (record,) = decode(dataset, out, format="files")
    assert record["ok"] == 5
    written = [path for path in (out / dataset.files[0].name).rglob("*") if path.is_file()]
    assert len(written) == 5
    after = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert after - before == {tmp_path / "deep", tmp_path / "deep" / "er", out}
    assert not Path("/etc/passwd.png").exists()


def test_names_that_clash_or_are_too_long(make_dataset: Make, tmp_path: Path) -> None:
    files = [
        *(("a.png", png(0)), ("a.png/b.png", png(1))),
        *(("c.png/d.png", png(2)), ("c.png", png(3)), ("l" * 260 + ".png", png(4))),
    ]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    (record,) = decode(dataset, tmp_path / "out", format="files")
    assert record["ok"] == 2
    assert [key[:10] for key, _, _ in record["problems"]] == ["a.png/b", "c", "l" * 10]
    assert record["reasons"] == {"its name cannot be written": 3}


@given(st.lists(st.text(alphabet="./%\\a\0ü\udce9", max_size=6), min_size=2, max_size=2))
def test_safe_paths_stay_different_and_inside(names: list[str]) -> None:
    safe = [safe_path(name) for name in names]
    for path in safe:
        parts = path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\\" not in path
        path.encode()
    assert (safe[0] == safe[1]) == (names[0] == names[1])


def test_safe_paths_leave_ordinary_names_alone() -> None:
    assert safe_path("d/ü 1.a-b_c(2).png") == "d/ü 1.a-b_c(2).png"
    with pytest.raises(UnwritableNameError):
        safe_path("d/" + "x" * 256)


def test_the_longest_names_of_file_systems_can_be_written(tmp_path: Path) -> None:
    target = FileTarget(Store(str(tmp_path)), "x")
    target.write("n" * 251, [("png", b"1")])
    target.close()
    (file,) = (tmp_path / "x").iterdir()
    assert (len(file.name), file.read_bytes()) == (255, b"1")


def test_a_second_run_leaves_the_first_ones_tar(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    first = decode(dataset, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.tar")
    before = path.read_bytes()
    assert decode(dataset, tmp_path / "out") == first
    assert path.read_bytes() == before
    assert io.BytesIO(before).getbuffer().nbytes == first[0]["bytes"]


def next_generation(dataset: Dataset, file: DataFile, number: int) -> DataFile:
    """A copy of a data file as a later generation."""
    later = dataclasses.replace(file, name=f"{file.name}.{number}")
    shutil.copy(f"{dataset.url}/{file.path}", f"{dataset.url}/{later.path}")
    return later


def test_a_newer_generation_takes_the_place_of_the_older_ones(
    make_dataset: Make, tmp_path: Path
) -> None:
    dataset = make_dataset(
        [
            str(write_tar(tmp_path / f"{name}.tar", samples(2, 10 * n)))
            for n, name in enumerate("xy")
        ]
    )
    x, y = dataset.files
    worker = worker_for(dataset, tmp_path / "out")
    for file in (x, y):
        worker.run(file)
    again = next_generation(dataset, x, 2)
    assert worker.run(again)["ok"] == 2
    tars = {path.stem for path in (tmp_path / "out").glob("*.tar")}
    assert tars == {again.name, y.name}
    records = {path.stem for path in (tmp_path / "out/.strata/commits").glob("*.json")}
    assert records == {again.name, y.name}


@pytest.mark.usefixtures("without_ray")
def test_an_older_tar_that_was_left_behind_is_removed(make_dataset: Make, tmp_path: Path) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    options = DecodeOptions(dataset.url, str(tmp_path / "out"))
    assert decode_job(options).ok == 2
    tar = tmp_path / "out" / f"{dataset.files[0].name}.tar"
    record = tmp_path / "out/.strata/commits" / f"{dataset.files[0].name}.json"
    kept = tar.read_bytes(), record.read_bytes()

    manifest = next((tmp_path / "dataset").glob("manifest-*.json"))
    newer = json.loads(manifest.read_text())
    (entry,) = newer["files"]
    data = tmp_path / "dataset" / entry["path"]
    entry |= {"name": f"{entry['name']}.1", "path": f"data/{entry['name']}.1.parquet"}
    entry["index"] = None
    data.rename(tmp_path / "dataset" / entry["path"])
    manifest.write_text(json.dumps(newer))
    assert decode_job(options).ok == 2
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == [f"{tar.stem}.1.tar"]

    tar.write_bytes(kept[0])  # as if the worker had died before it removed them
    record.write_bytes(kept[1])
    assert decode_job(options).resumed == 1
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == [f"{tar.stem}.1.tar"]
    assert not record.exists()


def test_files_of_a_newer_generation_replace_those_that_differ(
    make_dataset: Make, tmp_path: Path
) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    (file,) = dataset.files
    out = tmp_path / "out"
    worker = worker_for(dataset, out, format="files")
    worker.run(file)
    picture_path, label = out / file.name / "s0001.png", out / file.name / "s0000.cls"
    whole = picture_path.read_bytes()
    picture_path.write_bytes(b"what the older generation had")
    before = label.stat().st_mtime_ns
    worker.run(next_generation(dataset, file, 1))
    assert picture_path.read_bytes() == whole
    assert label.stat().st_mtime_ns == before
    assert [path.name for path in out.iterdir() if path.is_dir() and path.name[0] != "."] == [
        file.name
    ]


def test_what_the_driver_sees_of_a_worker(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: ToyCodec
) -> None:
    """While it decodes, and when it is idle: stages, counts, and the bytes that really moved."""
    CountingFileSystem.store.clear()
    files = [(f"s{n:04d}.png", png(n, 60, 70)) for n in range(30)]
    source = write_tar(tmp_path / "x.tar", [*files, ("z.png", b"x")])
    dataset = make_dataset([str(source)], output="counting://bucket/set")
    (file,) = dataset.files
    worker = worker_for(dataset, tmp_path / "out", layers=2, batch_size=20)
    seen: list[dict[str, Any]] = []
    decode_toy = toy.decode

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(worker.status())
        return decode_toy(*arguments, **options)

    monkeypatch.setattr(toy, "decode", watched)
    CountingFileSystem.requests.clear()
    record = worker.run(file)
    shards = [report["shards"][file.name] for report in seen]
    begun = {"stage": "decode", "samples": 1, "of": 31, "bad": 0, "key": "s0000"}
    assert shards[0] == begun  # the bad sample needs no decoding
    assert shards[1] == begun | {"samples": 21, "key": "s0020"}
    after = worker.status()
    assert after["shards"] == {}
    assert {"download", "device", "write", "upload"} <= after["stage_seconds"].keys()
    assert record["stage_seconds"] == after["stage_seconds"]  # it did nothing else
    assert after["bytes_out"] == record["bytes"]
    fetched = CountingFileSystem.bytes_read(".parquet")
    assert after["bytes_in"] == pytest.approx(fetched, rel=0.1)  # the gaps between columns
    assert fetched < file.bytes
    assert after["rss"] > 1 << 20
    assert after["pid"]


def test_the_model_comes_through_the_scratch_folder(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's folder for temporary files may be small, or not there."""
    CountingFileSystem.store.clear()
    source = write_tar(tmp_path / "x.tar", samples(2))
    dataset = make_dataset([str(source)], output="counting://bucket/set")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (record,) = decode(dataset, tmp_path / "out", scratch=str(tmp_path / "scratch"))
    assert record["ok"] == 2


class Meter:
    """Bytes of what is in memory of what was shown to it, and the most that ever was."""

    def __init__(self) -> None:
        self.alive = self.peak = 0
        self._lock = threading.Lock()

    def show(self, what: Any, nbytes: int) -> None:
        weakref.finalize(what, self._add, -nbytes)
        self._add(nbytes)

    def _add(self, nbytes: int) -> None:
        with self._lock:
            self.alive += nbytes
            self.peak = max(self.peak, self.alive)


def metered(worker: ShardDecoder, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Have rows and decoded pictures counted as long as anybody holds them."""
    meter = Meter()
    decode_toy, rows_of, read = toy.decode, selection.to_rows, originals.read_image

    class Row(dict[str, Any]):
        def __init__(self, columns: dict[str, Any]) -> None:
            super().__init__(columns)
            meter.show(self, row_bytes({"fields": [], **columns}))

        def __or__(self, other: Any) -> "Row":
            return Row({**self, **other})

    def decode(*arguments: Any, **options: Any) -> list[np.ndarray]:
        pictures = decode_toy(*arguments, **options)
        for one in pictures:
            meter.show(one, one.nbytes)
        return pictures

    def to_rows(*arguments: Any) -> list[Row]:
        return list(map(Row, rows_of(*arguments)))

    def read_image(*arguments: Any, **options: Any) -> Any:
        found = read(*arguments, **options)
        meter.show(found.rgb, found.rgb.nbytes)
        return found

    monkeypatch.setattr(toy, "decode", decode)
    monkeypatch.setattr(selection, "to_rows", to_rows)
    monkeypatch.setattr(originals, "read_image", read_image)
    return meter


@pytest.mark.parametrize("what", ["large pictures", "small, then large", "fields", "originals"])
def test_memory_does_not_depend_on_the_data_file(
    what: str,
    make_dataset: Make,
    toy: ToyCodec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = write_image(np.zeros((100, 100, 3), np.uint8), None, "png")
    noise = np.random.default_rng(1).integers(0, 255, (100, 100, 3), np.uint8)
    files = {
        "large pictures": [(f"{n}.png", large) for n in range(80)],
        "small, then large": [(f"{n}.png", png(n, 2, 2) if n < 40 else large) for n in range(120)],
        "fields": [
            one
            for n in range(80)
            for one in ((f"{n}.png", png(n, 2, 2)), (f"{n}.npy", bytes(30_000)))
        ],
        "originals": [(f"{n}.webp", write_image(noise, None, "webp")) for n in range(40)],
    }[what]
    keep = "larger" if what == "originals" else "bad"
    window, group, row = 200_000, 100_000, 100 * 100 * 3 + 35_000
    monkeypatch.setattr(dataset_rows, "BYTES_PER_GROUP", group)
    monkeypatch.setattr(decode_worker, "WINDOW_BYTES", window)
    source = write_tar(tmp_path / "x.tar", files)
    dataset = make_dataset(
        [str(source)], keep_original=keep, store_layers="fit" if keep == "larger" else None
    )
    worker = worker_for(dataset, tmp_path / "out", threads=2, batch_size=4)
    meter = metered(worker, toy, monkeypatch)
    (record,) = [worker.run(file) for file in dataset.files]
    assert record["ok"] == len({name.split(".")[0] for name, _ in files})
    assert window / 2 < meter.peak <= window + group + row


def test_rows_of_a_row_group_are_released_when_they_are_written(
    make_dataset: Make, toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with its last ones: large fields are gone when large pictures come."""
    large = write_image(np.zeros((100, 100, 3), np.uint8), None, "png")
    files: list[tuple[str, bytes]] = []
    for n in range(30):
        files += [(f"a{n:02d}.png", png(n, 2, 2)), (f"a{n:02d}.npy", bytes(30_000))]
    files += [(f"b{n:02d}.png", large) for n in range(40)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    (file,) = dataset.files
    with dataset.open(file) as opened:
        assert opened.metadata.num_row_groups == 1
    group, window = 30 * 30_000, 600_000  # bytes of the fields, and of twenty large pictures
    monkeypatch.setattr(decode_worker, "WINDOW_BYTES", window)
    worker = worker_for(dataset, tmp_path / "out", batch_size=4)
    meter = metered(worker, toy, monkeypatch)
    assert worker.run(file)["ok"] == 70
    assert group < meter.peak < group + window / 4


def test_side_pictures_come_beside_previews_only_where_they_are_asked_for(
    make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    files = [("a.png", png(1)), ("a.seg.png", png(2)), ("a.json", b"{}"), ("b.png", png(3))]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    whole = {name for name, _ in files}
    for asked in (False, True):
        (record,) = decode(dataset, tmp_path / str(asked), max_side=64, side_pictures=asked)
        (path,) = (tmp_path / str(asked)).glob("*.tar")
        assert set(tar_files(path)) == (whole if asked else whole - {"a.seg.png"})
        assert record["left_out"] == (not asked)

    def hands_out(**options: Any) -> bool:
        given = DecodeOptions(dataset=dataset.url, output=str(tmp_path / "out"), **options)
        return given.includes_side_pictures

    assert hands_out()
    for limit in ({"layers": 1}, {"max_side": 8}, {"target_bpp": 1.0}, {"min_psnr": 30.0}):
        assert not hands_out(**limit)
        assert hands_out(**limit, side_pictures=True)
    with pytest.raises(OptionError, match="strata copies all side fields"):
        decode_job(
            DecodeOptions(
                dataset=dataset.url, output="x", format="strata", side_pictures=True, layers=1
            )
        )
    small = DecodeOptions(dataset=dataset.url, output=str(tmp_path / "out"), layers=1)
    assert "1 picture among the side fields left out" in "\n".join(decode_job(small).notes)


def test_what_comes_from_originals_is_told(
    make_dataset: Make,
    toy: ToyCodec,
    tmp_path: Path,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toy, "decode_options", frozenset({"decoder"}))
    monkeypatch.setattr("pipeline.decode.job.size", "{} bytes".format)
    files = [("a.png", png(1)), ("b.png", png(2))]
    source = str(write_tar(tmp_path / "x.tar", files))
    dataset = make_dataset([source], store_layers=2, layers=4, keep_original="always")

    def told(layers: int) -> str:
        output = str(tmp_path / str(layers))
        looks = {"decoder": "realistic"}
        return "\n".join(
            decode_job(DecodeOptions(dataset.url, output, layers, codec_options=looks)).lines()
        )

    nbytes = sum(len(data) for _, data in files)
    whole = told(3)
    assert f"pictures: {nbytes} bytes of 2 originals -> " in whole
    assert "warning: --decoder realistic had no part in 2 pictures" in whole
    few = told(2)
    assert "of streams (2.00 layers on average) -> " in few
    assert "had no part" not in few
