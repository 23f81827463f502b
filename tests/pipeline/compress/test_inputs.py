"""Whole jobs on inputs of all kinds: nothing is left out silently, or compressed twice."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from codec.errors import StrataError
from pipeline import (
    CompressOptions,
    Summary,
    compress_dataset,
    estimate_compression,
    open_dataset,
)
from pipeline.compress.job import inputs_of
from pipeline.dataset.layout import shard_name
from pipeline.running.options import OptionError
from pipeline.sources import listing
from pipeline.sources.shards import Shard
from pipeline.stores.filesystems import StorageError
from tests.pipeline.makers import ToyCodec, png, samples, write_tar


@pytest.fixture(autouse=True)
def here(toy: ToyCodec, without_ray: None) -> None:
    """In this process, with the toy codec."""


def compress(tmp_path: Path, *inputs: Any, **options: Any) -> Summary:
    output = str(tmp_path / "archive")
    return compress_dataset(CompressOptions(tuple(map(str, inputs)), output, "toy", **options))


def test_another_spelling_or_a_link_is_no_other_shard(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", samples(3))
    (tmp_path / "link.tar").symlink_to(source)
    assert compress(tmp_path, source).shards == 1
    for again in (f"{tmp_path}/./x.tar", f"{tmp_path}/archive/../x.tar", tmp_path / "link.tar"):
        assert compress(tmp_path, again).resumed == 1
    assert len(open_dataset(str(tmp_path / "archive")).files) == 1


def test_an_archive_does_not_lie_in_its_input(tmp_path: Path) -> None:
    """The next run would read it."""
    photos, link, out = tmp_path / "photos", tmp_path / "link", tmp_path / "archive"
    (photos / "data").mkdir(parents=True)
    (photos / "a.png").write_bytes(png())
    (photos / "data" / "b.png").write_bytes(png())
    link.symlink_to(photos)
    before = sorted(tmp_path.rglob("*"))
    wrong: list[tuple[object, object]] = [
        *((photos, output) for output in (photos, photos / "arc", photos / "x" / "arc")),
        *((photos, output) for output in (link / "arc", f"file://{photos}/arc", f"{photos}/x/..")),
        *((given, photos / "arc") for given in (link, f"{photos}/", f"{tmp_path}/{{x,photos}}")),
        *((given, photos / "arc") for given in (f"{photos}/*", f"{link}/*", f"{tmp_path}/p*")),
        (f"{photos}/**/*.parquet", photos / "arc"),
        (photos / "data", photos),  # where its own files would be
    ]
    for given, output in wrong:
        options = CompressOptions((str(given),), str(output), "toy")
        for job in (compress_dataset, estimate_compression):
            with pytest.raises(OptionError, match=r"lies in the input .* outside of the input"):
                job(options)
    assert sorted(tmp_path.rglob("*")) == before
    assert compress(tmp_path, photos).ok == 2
    out.rename(photos / "arc")  # as it was before this was refused
    with pytest.raises(OptionError, match="lies in the input"):
        compress_dataset(CompressOptions((str(photos),), str(photos / "arc"), "toy"))


@pytest.mark.parametrize(
    ("given", "output", "refused"),
    [
        ("s3://b/photos/", "s3://b/photos", True),
        ("s3://b/photos", "s3a://b/photos/arc/", True),
        ("s3://b/ph*", "s3://b/photos/arc", True),
        ("s3://b", "s3://b/arc", True),
        ("s3://b/photos", "s3://b/photos-arc", False),
        ("s3://b/photos", "s3://c/photos/arc", False),
        ("s3://b/photos/*.tar", "s3://b/photos/arc", False),
        ("photos", "s3://b/photos", False),
    ],
)
def test_urls_of_outputs_in_inputs(
    given: str, output: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*_: Any) -> Any:
        raise StorageError("looked")

    monkeypatch.setattr("pipeline.compress.job.find_inputs", found)
    with pytest.raises(StrataError, match="lies in the input" if refused else "looked"):
        inputs_of(CompressOptions((given,), output, "toy"))


def test_an_archive_of_an_odd_spelling_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they were recorded before spellings were made one."""
    source = write_tar(tmp_path / "x.tar", samples(3))
    (shard,) = listing.expand_inputs([str(source)])
    odd = Shard(f"{tmp_path}/./x.tar", shard.size, shard.etag)
    with monkeypatch.context() as before:
        before.setattr(
            "pipeline.compress.job.find_inputs", lambda *_: listing.Inputs([odd], [], [])
        )
        compress(tmp_path, source)
    more = write_tar(tmp_path / "y.tar", samples(2))
    summary = compress(tmp_path, source, more)
    assert (summary.shards, summary.resumed, summary.ok) == (2, 1, 5)
    dataset = open_dataset(str(tmp_path / "archive"))
    assert [file.record["source"]["url"] for file in dataset.files] == [odd.url, str(more)]
    assert dataset.files[0].name == shard_name(odd, dataset.fingerprint)
    os.utime(source, ns=(1, 1))
    with pytest.raises(Exception, match="changed since they were compressed"):
        compress(tmp_path, source)


def test_pictures_that_are_side_fields_are_counted(tmp_path: Path) -> None:
    """WebDataset's keys end at the first dot, so dates make one sample of many pictures."""
    files = [(f"2024.01.{day:02d}-a.png", png(day)) for day in range(1, 5)]
    summary = compress(tmp_path, write_tar(tmp_path / "x.tar", [*files, *samples(2)]))
    assert (summary.ok, summary.bad) == (3, 0)
    (note,) = [note for note in summary.notes if "side fields of" in note]
    assert "3 pictures not encoded but kept as files (2024.01.02-a.png, " in note
    assert "first dot" in note
    assert not any(
        "side fields of" in note
        for note in compress(tmp_path / "b", write_tar(tmp_path / "y.tar", samples(2))).notes
    )


def test_a_sample_that_is_too_large_is_named_and_costs_no_other(tmp_path: Path) -> None:
    side = [(f"big.{number}.bin", bytes(40_000)) for number in range(5)]
    source = write_tar(tmp_path / "x.tar", [*samples(2), ("big.png", png()), *side])
    summary = compress(tmp_path, source, max_sample_bytes=100_000)
    assert (summary.ok, summary.bad, summary.exit_code) == (2, 1, 1)
    (problem,) = summary.problems
    assert problem.key == "big"
    assert "larger than --max-sample-bytes 100000" in problem.reason
    assert "in 6 files" in problem.reason
    plan = json.loads((tmp_path / "archive/dataset.json").read_text())
    assert plan["parameters"]["max_sample_bytes"] == 100_000
    assert compress(tmp_path / "whole", source).ok == 3  # the usual limit is far above


def test_an_output_of_an_unset_variable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_tar(tmp_path / "x.tar", samples(1))
    with pytest.raises(StorageError, match="variable"):
        compress_dataset(CompressOptions((str(source),), "", "toy"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors"] == ["x.tar"]


def test_an_archive_whose_files_are_links_goes_on(tmp_path: Path) -> None:
    """As a model hub's cache holds it."""
    source = write_tar(tmp_path / "x.tar", samples(3))
    compress(tmp_path, source)
    archive = tmp_path / "archive"
    (tmp_path / "blobs").mkdir()
    files = [path for path in archive.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        path.rename(tmp_path / f"blobs/{number}")
        path.symlink_to(tmp_path / f"blobs/{number}")
    assert compress(tmp_path, source).resumed == 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/archive").symlink_to(archive)
    assert compress(tmp_path / "elsewhere", source).resumed == 1
