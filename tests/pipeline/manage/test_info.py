"""``strata info`` agrees with the content of the files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from jobs import info_dataset as script
from pipeline import DatasetError, DatasetInfo, info_dataset, open_dataset
from pipeline.manage import info as info_module
from pipeline.manage.words import plan_in_words
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import ToyCodec
from tests.pipeline.manage.conftest import MakeArchive


@pytest.fixture
def archive(make_archive: MakeArchive) -> str:
    return make_archive("A", "a", "b", keep_original="always")


def test_the_figures_are_those_of_the_files(archive: str, toy: ToyCodec, tmp_path: Path) -> None:
    info = info_dataset(archive)
    rows = []
    dataset = open_dataset(archive)
    for file in dataset.files:
        with dataset.open(file) as opened:
            rows += opened.parquet.read().to_pylist()
    statuses = Counter(row["status"] for row in rows)
    assert info.counts == {
        "rows": len(rows),
        "ok": 10,
        "bad": 2,
        "filtered": 2,
        "deleted": 0,
        "kept": 10,
        "side_pictures": 0,
    }
    assert dict(statuses) == {"ok": 10, "bad": 2, "filtered": 2}
    assert info.pixels == sum((row["width"] or 0) * (row["height"] or 0) for row in rows)
    assert info.bytes == sum(path.stat().st_size for path in Path(archive).glob("data/*"))
    assert info.index_bytes == sum(path.stat().st_size for path in Path(archive).glob("index/*"))
    bits = 0.0
    for layer in info.layers:
        stored = [row[f"layer_{layer.number - 1:02d}"] or b"" for row in rows]
        assert sum(map(len, stored)) < layer.bytes < sum(map(len, stored)) + 200 * len(rows)
        bits += 8 * layer.bytes / info.pixels
        assert layer.bits_per_pixel == pytest.approx(bits + 8 * info.header_bytes / info.pixels)
    assert info.other_bytes["original"] > sum(len(row["original"] or b"") for row in rows)
    assert [one["url"] for one in info.inputs] == [str(tmp_path / f"{n}.tar") for n in "ab"]
    assert [one["bytes"] for one in info.inputs] == [
        (tmp_path / f"{name}.tar").stat().st_size for name in "ab"
    ]
    assert (info.model.id, info.model.codec, info.model.layers) == (toy.model_id, "uqdm", 4)
    assert (info.problems, info.unfinished, info.exit_code) == ([], [], 0)
    assert info.records_read == 2
    assert not info.estimated
    json.dumps(info.to_json())


def test_the_words(archive: str) -> None:
    text = "\n".join(info_dataset(archive).lines())
    assert "pictures:    10 (2 bad, 2 filtered)" in text
    assert "layers:      10 pictures in 4" in text
    assert "originals:   10 kept, exact: --keep-original always" in text
    assert "all originals are kept" in text
    assert "pictures are exact" in text
    assert "health:      manifest, sizes of files and 2 records agree" in text


def lose_record(root: Path) -> str:
    path = next(root.glob("commits/a-*"))
    path.unlink()
    return f"commits/{path.name} is gone"


def other_record(root: Path) -> str:
    path = next(root.glob("commits/a-*"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ok": 4, "bad": 2}))
    return f"commits/{path.name} contradicts the manifest"


def no_record(root: Path) -> str:
    path = next(root.glob("commits/a-*"))
    path.write_text("{")
    return f"commits/{path.name} contradicts the manifest"


def lose_data(root: Path) -> str:
    path = next(root.glob("data/b-*"))
    path.unlink()
    return f"data/{path.name} is gone"


def cut_index(root: Path) -> str:
    path = next(root.glob("index/b-*"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    return f"index/{path.name} has {size - 1} bytes, and had {size}"


def lose_model(root: Path) -> str:
    path = next(root.glob("models/*/model.safetensors"))
    path.unlink()
    return f"models/{path.parent.name}/model.safetensors is gone"


@pytest.mark.parametrize(
    "harm", [lose_record, other_record, no_record, lose_data, cut_index, lose_model]
)
def test_what_does_not_agree(harm: object, archive: str) -> None:
    words = harm(Path(archive))  # type: ignore[operator]
    info = info_dataset(archive)
    assert info.exit_code == 1
    (problem,) = info.problems
    assert problem.startswith(words)
    assert f"  {problem}" in info.lines()


def test_what_is_unfinished(archive: str, make_archive: MakeArchive) -> None:
    make_archive("A", "c", keep_original="always")
    root = Path(archive)
    max(root.glob("manifest-*")).unlink()  # as if the job had been killed before it
    (root / ".strata" / "saved").mkdir(parents=True)
    (root / ".strata" / "saved" / "d-0123456789ab.0-3.parquet").touch()
    info = info_dataset(archive)
    assert (info.exit_code, info.files) == (0, 2)
    newer, under_way = info.unfinished
    assert newer.startswith("1 data file newer than the manifest: run the job again")
    assert under_way.startswith("rows of 1 shard that a job has not finished")


def test_many_files_are_estimated(
    make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive("many", *"abcdefgh")
    whole = info_dataset(archive)
    some = info_dataset(archive, records=3)
    assert (some.records_read, some.estimated, whole.estimated) == (3, True, False)
    for exact, estimated in zip(whole.layers, some.layers, strict=True):
        assert estimated.bytes == pytest.approx(exact.bytes, rel=0.02)
    assert "estimated from 3 records of 8:" in some.lines()
    assert some.counts == whole.counts
    monkeypatch.setattr(info_module, "READ_RECORDS", 3)
    assert info_dataset(archive, records=None).records_read == 8


def test_no_data_file_is_read(archive: str) -> None:
    """And as many files as are said."""
    CountingFileSystem.store.clear()
    fs = CountingFileSystem()
    fs.put(archive, "/archive", recursive=True)
    CountingFileSystem.requests.clear()
    info = info_dataset("counting://archive")
    assert info.exit_code == 0
    paths = [path for path, _ in CountingFileSystem.requests]
    assert not [path for path in paths if path.endswith(".parquet")]
    listings = 7  # of manifests, of the model, of five folders
    assert len(paths) == info.requests - listings - 1  # the toy model has no card


def test_where_no_archive_is(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no archive here"):
        info_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match="nope: does not exist"):
        info_dataset(str(tmp_path / "nope"))


@pytest.mark.parametrize("to_file", [False, True])
def test_the_command(
    to_file: bool, archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = [str(tmp_path / "info.json")] if to_file else []
    assert script.main([archive, "--json", *target]) == 0
    shown = capsys.readouterr().out
    text = Path(target[0]).read_text() if to_file else shown
    values = json.loads(text)
    assert values == json.loads(json.dumps(info_dataset(archive).to_json()))
    assert ("pictures:    10" in shown) == to_file
    lose_data(Path(archive))
    assert script.main([archive]) == 1
    assert script.main([str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_plans_in_words() -> None:
    lines = plan_in_words(
        {
            "layers": 2,
            "model_layers": 7,
            "keep_original": "never",
            "target_quality": "36dB",
            "something_new": 3,
            "truncated": {"dataset": "s3://x/y", "fingerprint": "f", "layers": 2},
        }
    )
    assert lines[0].startswith("layers: 2 of the model's 7")
    assert "no original is kept" in lines
    assert "each picture stores the fewest layers that reach the quality 36dB" in lines
    assert "something new: 3" in lines
    assert "copied from s3://x/y (layers 2)" in lines
    copy = {"layers": 2, "keep_original": "larger", "truncated": {"keep_original": False}}
    assert "originals are kept only where they take the place of layers" in plan_in_words(copy)
    copy["truncated"] = {"keep_original": True}
    assert any("kept of bad samples" in line for line in plan_in_words(copy))


def test_it_is_a_public_type() -> None:
    assert DatasetInfo is info_module.DatasetInfo
