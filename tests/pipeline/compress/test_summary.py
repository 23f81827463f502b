"""The summary of a job, compared with the content of the archive."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

import pipeline
from codec.errors import CorruptStreamError
from codec.images.files import write_image
from codec.images.metrics import psnr
from jobs import info_dataset
from pipeline.compress import keeping, sampling
from pipeline.compress import summary as summary_module
from pipeline.compress.job import CompressOptions, CompressSummary, compress
from pipeline.dataset.plan import PlanMismatchError
from pipeline.running.progress.summary import share
from tests.pipeline.compress.test_keeping import NOISE, mixed, rows_of
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar

pytestmark = pytest.mark.usefixtures("toy", "without_ray")


def run(tars: list[str], output: Path, **options: Any) -> CompressSummary:
    return compress(CompressOptions(tuple(tars), str(output), "toy", **options))


def test_everything_is_counted(tmp_path: Path) -> None:
    flat = write_image(np.full((64, 64, 3), 9, np.uint8), None, "png")
    more = [
        (f"{n}.{field}", flat if field == "png" else b"ab")
        for n in range(40)
        for field in ("png", "cls")
    ]
    tars = [mixed(tmp_path), str(write_tar(tmp_path / "more.tar", more))]
    out = tmp_path / "set"
    summary = run(tars, out, min_side=3)
    dataset = pipeline.open_dataset(str(out))
    totals = summary.totals
    rows = [row for row in rows_of(dataset).values() if row["status"] == "ok"]
    assert totals["by_layers"] == dict(Counter(str(row["layers"]) for row in rows))
    assert totals["by_layers"].keys() == {"2", "3"}
    assert totals["by_reason"] == {keeping.LARGER: 1, "bad": 4, "filtered": 1}
    assert (totals["side_fields"], totals["side_bytes"]) == (40, 80)
    assert totals["input_bytes"] == sum(Path(tar).stat().st_size for tar in tars)
    stored = [path for name in ("data", "index") for path in (out / name).iterdir()]
    assert totals["archive_bytes"] == sum(path.stat().st_size for path in stored)
    assert totals["picture_bytes"] == sum(row["source_bytes"] for row in rows)
    sampled = totals["quality"]["psnr"]
    assert sampled["pictures"] == 3  # of 40 flat pictures two, of the others one
    flat_loss = psnr(np.full((64, 64, 3), 9, np.uint8), dataset.image("7"))
    assert sampled["median"] == pytest.approx(flat_loss, abs=0.01)
    # The same in the manifest and in JSON, and of a job that finds all of it done.
    said = {name: value for name, value in totals.items() if name in dataset.totals}
    assert dataset.totals == said
    assert json.loads(json.dumps(summary.to_json()))["totals"] == totals
    assert run(tars, out, min_side=3).totals == totals
    lines = summary.lines()
    assert f"layers:      {totals['by_layers']['2']} picture in 2" in lines
    assert "originals:   4 kept: bad samples" in lines
    assert "             1 kept, exact: no stream is smaller" in lines
    assert "side fields: 40 files, 80 B" in lines
    assert not any("larger than its input" in line for line in lines)
    told = [line for line in lines[: lines.index("reasons:")] if str(tmp_path) not in line]
    assert max(map(len, told)) <= 80


@pytest.mark.parametrize(
    "other",
    [
        {"target_quality": "30dB"},
        {"keep_original": "bad"},
        {"keep_original": "always"},
        {"store_layers": "fit"},
        {"store_layers": 2},
        {"lossless": True},
    ],
)
def test_an_archive_makes_one_promise(tmp_path: Path, other: dict[str, Any]) -> None:
    tar = str(write_tar(tmp_path / "x.tar", samples(1)))
    run([tar], tmp_path / "set")
    with pytest.raises(PlanMismatchError, match="was started with other parameters"):
        run([tar], tmp_path / "set", **other)


def test_bad_samples_beyond_the_first_can_be_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = str(write_tar(tmp_path / "x.tar", [(f"bad{n}.png", b"x") for n in range(8)]))
    out = str(tmp_path / "a set")
    lines = run([tar], Path(out)).lines()
    begin = lines.index("bad samples:") + 1
    assert [line.split(" : ")[1] for line in lines[begin:-1]] == [f"'bad{n}'" for n in range(5)]
    assert lines[-1] == f"  ... and 3 more (strata info '{out}' --bad lists all)"
    assert info_dataset.main([out, "--bad"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[:5] == [line.strip() for line in lines[begin:-1]]
    assert [line.split(" : ")[:2] for line in listed] == [[tar, f"'bad{n}'"] for n in range(8)]


def test_a_share_of_almost_nothing_says_nothing() -> None:
    assert share(5_000, 10_000) == "50.0 %"
    assert share(4_708, 1) == "-"


def test_all_files_and_previews(tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "x.tar", samples(2)))
    run([tar], tmp_path / "set", keep_original="always")
    dataset = pipeline.open_dataset(str(tmp_path / "set"))
    assert dataset.original("s0001") == png(1)
    assert (dataset.image("s0001") == picture(1)).all()  # whoever asks for all gets all
    assert (dataset.image("s0001", 2) == picture(1) & 0b11110000).all()
    assert {row["layers"] for row in rows_of(dataset).values()} == {2}


def test_an_archive_that_is_larger_than_its_input(tmp_path: Path) -> None:
    jpegs = [(f"{n}.jpg", write_image(NOISE, None, "jpg", quality=40)) for n in range(9)]
    tar = str(write_tar(tmp_path / "x.tar", jpegs))
    text = "\n".join(run([tar], tmp_path / "set", lossless=True, keep_original="bad").lines())
    assert "warning: the archive is larger than its input: --keep-original larger keeps" in text


@pytest.mark.parametrize(
    ("pictures", "lossless", "words"),
    [(2, False, "of so few pictures"), (99, True, "leave out --loss"), (99, False, "--target-q")],
)
def test_advice_is_of_what_was_asked_for(pictures: int, lossless: bool, words: str) -> None:
    totals = {"by_layers": {"2": pictures}, "picture_bytes": 20_000 * pictures}
    advice = summary_module._advice(totals, {"keep_original": "larger", "lossless": lossless})
    assert advice.startswith(words)


def test_what_misses_its_quality_is_told(tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "x.tar", samples(3)))
    missed = run([tar], tmp_path / "set", target_quality="90dB", keep_original="never")
    assert "warning: 3 pictures below --target-quality with all layers" in missed.lines()
    assert missed.totals["quality"]["psnr"]["pictures"] == 1
    kept = run([tar], tmp_path / "kept", target_quality="90dB")
    assert kept.totals["by_reason"] == {keeping.BELOW: 3}
    assert not any(line.startswith("quality") for line in kept.lines())


def test_metadata_that_are_not_kept_are_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Ann"
    plain = Image.fromarray(np.full((64, 64, 3), 9, np.uint8))
    files = [("plain.png", png(1))]
    for name, told in (("ann", exif), ("bob", exif), ("none", Image.Exif())):
        out = io.BytesIO()
        plain.save(out, "PNG", exif=told, compress_level=0)
        files.append((f"{name}.png", out.getvalue()))
    tar = str(write_tar(tmp_path / "x.tar", files))
    lost = run([tar], tmp_path / "set")
    assert lost.totals["by_loss"] == {"metadata not encoded: EXIF": 2}
    assert pipeline.open_dataset(str(tmp_path / "set")).totals["by_loss"] == lost.totals["by_loss"]
    told = "metadata (EXIF) of 2 pictures is not kept: --keep-original always keeps the files"
    assert told in lost.lines()
    kept = run([tar], tmp_path / "kept", keep_original="always")
    assert kept.totals["by_loss"] == {}
    assert not any("is not kept" in line for line in kept.lines())


def test_colours_that_cannot_be_told_are_warned_of(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((64, 64, 4), 90, np.uint8), "CMYK").save(out, "JPEG", quality=100)
    tar = str(write_tar(tmp_path / "x.tar", [("a.jpg", out.getvalue()), ("b.png", png(1))]))
    lost = run([tar], tmp_path / "set", keep_original="bad")
    assert "warning: 1 picture: CMYK converted without a usable profile" in lost.lines()
    kept = run([tar], tmp_path / "kept", keep_original="always")
    assert not any("CMYK" in line for line in kept.lines())


def test_the_sample_depends_on_the_keys_alone(make_dataset: Make, tmp_path: Path) -> None:
    files = [(f"{n}.png", png(n)) for n in range(400)]
    first = make_dataset([str(write_tar(tmp_path / "x.tar", files))], layers=2)
    again = make_dataset(
        [str(write_tar(tmp_path / "y.tar", files[::-1]))], str(tmp_path / "2"), layers=2
    )
    found = [dataset.files[0].record["quality"] for dataset in (first, again)]
    assert sorted(found[0]["psnr"]) == sorted(found[1]["psnr"])
    assert len(found[0]["psnr"]) == len(found[0]["ssimulacra2"]) == sampling.MOST
    everything = [round(psnr(picture(n), first.image(str(n))), 2) for n in range(400)]
    assert set(found[0]["psnr"]) <= set(everything)


def test_without_the_package_there_is_psnr(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "can_judge", lambda: False)
    tar = str(write_tar(tmp_path / "x.tar", samples(2)))
    (file,) = make_dataset([tar]).files
    assert file.record["quality"] == {"psnr": [None]}  # four layers are exact


def test_a_stream_that_gives_another_picture_ends_the_attempt(
    make_dataset: Make, toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "_decode", lambda one, layers: picture(0, 2, 2))
    for keep in ("bad", "always"):
        with pytest.raises(CorruptStreamError, match=r"s0\d+ decodes to"):
            make_dataset(
                [str(write_tar(tmp_path / "x.tar", samples(2)))],
                str(tmp_path / keep),
                keep_original=keep,
            )
