"""The whole job on small pictures: figures, accounting, resuming, and the report."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from codec import load_codec
from codec.errors import UnknownModelError
from codec.images import metrics
from codec.images.files import write_image
from pipeline.evaluate import measuring
from pipeline.evaluate import worker as evaluate_worker
from pipeline.evaluate.contenders import parse_model
from pipeline.evaluate.worker import Evaluator
from pipeline.running.options import OptionError
from tests.pipeline.conftest import Make
from tests.pipeline.evaluate.inprocess import Runner, photograph, png_samples


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report" / "report.json").read_text()))


def series(folder: Path, name: str) -> dict[str, Any]:
    found = {one["name"]: one for one in told(folder)["series"]}
    assert name in found, list(found)
    return dict(found[name])


def test_figures_are_those_of_real_bytes_and_pictures(
    run: Runner, model: str, tmp_path: Path
) -> None:
    sizes = [(40, 56), (64, 48), (40, 56)]
    summary = run(run.tar("a.tar", png_samples(*sizes)), models=(model,), peers=("jpeg",))
    assert (summary.ok, summary.bad, summary.exit_code) == (3, 0, 0)
    codec = load_codec(model)
    nbytes, errors, pixels = 0, 0.0, 0
    for number, size in enumerate(sizes):
        picture = photograph(*size, seed=number)
        stream = codec.encode([picture], quality=1)[0]
        nbytes += stream.truncate(2).nbytes
        shown = codec.decode([stream], layers=2)[0]
        errors += metrics.mse(picture, shown) * size[0] * size[1]
        pixels += size[0] * size[1]
    prefixes = series(tmp_path, "toy quality 1")
    assert prefixes["kind"] == "prefixes"
    assert len(prefixes["points"]) == 3
    second = prefixes["points"][1]
    assert second["bpp"] == pytest.approx(8 * nbytes / pixels, abs=1e-5)
    assert second["psnr"] == pytest.approx(metrics.psnr_of_mean_mse([errors / pixels]), abs=1e-3)
    whole = series(tmp_path, "toy")
    assert [point["setting"] for point in whole["points"]] == ["quality 0", "quality 1"]
    assert whole["points"][1]["psnr"] == prefixes["points"][2]["psnr"]
    assert told(tmp_path)["pictures"]["count"] == 3
    assert any(
        "less than 225 pixels a side: SSIMULACRA2" in note for note in told(tmp_path)["notes"]
    )
    assert told(tmp_path)["models"][0]["model_id"] == codec.model_id


def test_bits_at_equal_quality_are_means_over_pictures(run: Runner, tmp_path: Path) -> None:
    """By hand from the points of each picture alone, which reports of one picture have."""
    smooth = [
        np.asarray(Image.fromarray(photograph(8, 8, seed=i)).resize((96, 96))) for i in (0, 1)
    ]
    files = [(f"{number}.png", write_image(picture)) for number, picture in enumerate(smooth)]
    run(run.tar("a.tar", files), peers=("jpeg", "jpeg2000"))
    assert [one.name for one in run.found.series] == ["JPEG 2000", "JPEG"]
    both = run.found.bits(run.found.series[1], run.found.series[0], "ssimulacra2")
    assert both is not None
    assert both.pictures == 2
    alone = []
    for number, file in enumerate(files):
        run(run.tar(f"{number}.tar", [file]), peers=("jpeg", "jpeg2000"))
        one = run.found.bits(run.found.series[1], run.found.series[0], "ssimulacra2")
        assert one is not None
        alone.append(np.log1p(one.percent / 100))
    assert both.percent == pytest.approx(100 * np.expm1(np.mean(alone)))
    assert run.found.bits(run.found.series[0], run.found.series[1], "swd") is None


def test_the_verdict_says_who_wins(run: Runner, model: str, tmp_path: Path) -> None:
    """The toy is far worse than JPEG."""
    run(run.tar("a.tar", png_samples((160, 224))), models=(model,), peers=("jpeg",))
    (sentences,) = told(tmp_path)["verdict"].values()
    assert sentences[0].startswith("For the same SSIMULACRA2 (mean over 30 to 90) toy takes these ")
    assert " more than JPEG" in sentences[0]
    text = (tmp_path / "report" / "results.md").read_text()
    assert f"### toy: verdict\n\n- {sentences[0]}\n" in text
    percent = told(tmp_path)["bits"]["percent"]["toy"]["JPEG"]["ssimulacra2"]["percent"]
    assert f"{percent:.0f} % more than JPEG" in sentences[0]


def test_exact_pictures_are_counted(run: Runner, tmp_path: Path) -> None:
    run(run.tar("a.tar", png_samples((32, 40), (20, 33))), peers=("png", "jpeg", "webp_lossless"))
    for name in ("PNG", "WebP lossless"):
        (point,) = series(tmp_path, name)["points"]
        assert point["exact"] == 2
        assert point["psnr"] is None
        assert (point["swd"], point["ssimulacra2"]) == (0, 100)
    assert all(point["exact"] == 0 for point in series(tmp_path, "JPEG")["points"])


def test_nothing_is_done_twice_and_other_commands_take_over_the_rest(
    run: Runner, model: str, tmp_path: Path
) -> None:
    data = run.tar("a.tar", png_samples(*[(24, 24)] * 3))
    run.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(data, models=(model,), peers=("jpeg", "webp"))
    first = run.done
    records = tmp_path / "report" / "records"
    written = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    assert len(written) == 2
    run.stop_after = 10**9
    assert run(data, models=(model,), peers=("jpeg", "webp")).resumed == 2
    assert not set(first) & set(run.done)
    for name, when in written.items():
        assert (records / name).stat().st_mtime_ns == when
    before = told(tmp_path)
    assert run(data, models=(model,), peers=("jpeg", "webp")).exit_code == 0
    assert run.done == []
    after = told(tmp_path)
    assert after["series"] == before["series"]
    run(data, models=(model,), peers=("jpeg", "webp", "png"))
    assert [name.split("-")[0] for name in run.done] == ["png"]


def test_a_changed_shard_is_measured_anew(run: Runner, tmp_path: Path) -> None:
    run(run.tar("a.tar", png_samples((24, 24))), peers=("jpeg",))
    run(run.tar("a.tar", png_samples((24, 24), (32, 24))), peers=("jpeg",))
    assert len(run.done) == 1
    assert told(tmp_path)["pictures"]["count"] == 2


def test_an_encoder_that_has_changed_is_measured_anew(
    run: Runner, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.codec.toy import ToyScheme

    data = run.tar("a.tar", png_samples((24, 24)))
    run(data, models=(f"{model},quality=1",), peers=("jpeg",))
    before = series(tmp_path, "toy")["points"]
    encode = ToyScheme.encode

    def darker(self: Any, images: Any, *rest: Any, **options: Any) -> Any:
        return encode(self, [image // 2 for image in images], *rest, **options)

    monkeypatch.setattr(ToyScheme, "encode", darker)
    run(data, models=(f"{model},quality=1",), peers=("jpeg",))
    assert [name.startswith("jpeg") for name in run.done] == [False]
    after = series(tmp_path, "toy")["points"]
    assert after[-1]["psnr"] < before[-1]["psnr"]


def test_pictures_that_fail_are_named_and_left_out_for_everybody(
    run: Runner, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.codec.toy import ToyScheme

    encode = ToyScheme.encode

    def fail_at_wide(self: Any, images: Any, *rest: Any, **options: Any) -> Any:
        if any(image.shape[1] == 44 for image in images):
            raise FloatingPointError("wide pictures are unlucky")
        return encode(self, images, *rest, **options)

    monkeypatch.setattr(ToyScheme, "encode", fail_at_wide)
    files = png_samples((24, 24), (24, 44), (24, 24))
    files += [("torn.png", files[0][1][:60]), ("words.txt", b"no picture"), ("._x.png", b"")]
    summary = run(run.tar("a.tar", files), models=(model,), peers=("jpeg",))
    assert (summary.ok, summary.bad, summary.filtered, summary.exit_code) == (2, 3, 1, 1)
    problems = {one["what"].rsplit(": ", 1)[-1]: one for one in told(tmp_path)["problems"]}
    assert set(problems) == {"p001", "torn", "words"}
    assert "toy quality 0" in problems["p001"]["of"]
    assert "JPEG" not in problems["p001"]["of"]
    assert "wide pictures are unlucky" in problems["p001"]["reason"]
    assert problems["torn"]["of"] == "all"
    jpeg = series(tmp_path, "JPEG")
    small = [photograph(24, 24, seed=number) for number in (0, 2)]
    assert told(tmp_path)["pictures"]["pixels"] == sum(one.size // 3 for one in small)
    assert all(point["bpp"] > 0 for point in jpeg["points"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "wide pictures are unlucky" in page


def test_a_model_that_can_do_nothing_is_no_reason_to_call_pictures_bad(
    run: Runner, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.codec.toy import ToyScheme

    def broken(*_: Any, **options: Any) -> Any:
        raise FloatingPointError("the device is lost")

    monkeypatch.setattr(ToyScheme, "encode", broken)
    data = run.tar("a.tar", png_samples((24, 24), (24, 24)))
    summary = run(data, models=(model,), peers=("jpeg",))
    assert len(summary.failed_shards) == 2
    assert summary.bad == 0
    assert summary.exit_code == 1
    assert not [one for one in told(tmp_path)["series"] if one["model"]]
    reasons = {one["reason"] for one in told(tmp_path)["problems"]}
    assert any("the device is lost" in reason for reason in reasons)


def test_damaged_shards_are_named_and_the_others_measured(run: Runner, tmp_path: Path) -> None:
    good = run.tar("good.tar", png_samples((24, 24)))
    torn = tmp_path / "torn.tar"
    torn.write_bytes(Path(good).read_bytes()[:1000])
    summary = run(str(tmp_path / "*.tar"), peers=("jpeg",))
    assert summary.ok == 1
    assert [problem.shard for problem in summary.failed_shards] == [str(torn)]
    assert [one["what"] for one in told(tmp_path)["problems"]] == [str(torn)]


def test_first_pictures_and_first_layers(run: Runner, model: str, tmp_path: Path) -> None:
    run.tar("a.tar", png_samples((24, 24), (24, 24)))
    run.tar("b.tar", png_samples((32, 32), (24, 24)))
    run(str(tmp_path / "*.tar"), models=(f"{model},quality=1",), layers=2, first=3, peers=())
    assert told(tmp_path)["pictures"]["pixels"] == 2 * 24**2 + 32**2
    assert [point["prefix"] for point in series(tmp_path, "toy")["points"]] == [1, 2]


def test_options_of_models(run: Runner, model: str, tmp_path: Path) -> None:
    data = run.tar("a.tar", png_samples((24, 24)))
    noisy = f"{model},quality=0+1,decoder=diffusion,seed=3,prefixes=no,label=noisy"
    run(data, models=(f"{model},quality=1", noisy), peers=())
    names = [one["name"] for one in told(tmp_path)["series"]]
    assert names == ["toy", "noisy"]
    fast, painted = (series(tmp_path, name)["points"][-1] for name in names)
    assert painted["bpp"] == fast["bpp"]
    assert painted["psnr"] != fast["psnr"]
    for text, words in [
        (f"{model},quality=7", "quality=7"),
        (f"{model},steps=2", "no option steps"),
        (f"{model},prefixes=maybe", "prefixes must be yes or no"),
        (f"{model},seed", "OPTION=VALUE"),
        (f"{model},seed=1,seed=2", "given twice"),
    ]:
        with pytest.raises(OptionError, match=words):
            run(data, models=(text,))
    with pytest.raises(OptionError, match="two contenders are called"):
        run(data, models=(model, model))
    with pytest.raises(OptionError, match="two contenders are called JPEG"):
        run(data, models=(f"{model},label=JPEG",), peers=("jpeg",))
    with pytest.raises(OptionError, match="there is no gif"):
        run(data, peers=("gif",))
    with pytest.raises(UnknownModelError, match="an archive's URL"):
        run(data, models=("nothing-here",))
    assert parse_model("a,b=c") == ("a", {"b": "c"})


def test_a_sample_that_kills_workers_is_left_alone(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler finds it by probing; then the task goes on without it."""
    tasks: list[Any] = []
    real = Evaluator.run

    def skip_second(self: Evaluator, task: Any) -> Any:
        assert self.probe(task, 0, 0) == 3
        assert self.probe(task, 2, 3, {}) == 3
        assert not list((tmp_path / "report").rglob("records/*.json"))
        tasks.append(task)
        return real(self, task, {1: "kills its worker: it died"})

    monkeypatch.setattr(Evaluator, "run", skip_second)
    summary = run(run.tar("a.tar", png_samples(*[(24, 24)] * 3)), peers=("jpeg",))
    assert len(tasks) == 1
    assert (summary.ok, summary.bad) == (2, 1)
    assert told(tmp_path)["problems"][0]["reason"] == "kills its worker: it died"


def test_without_ssimulacra2_nothing_is_measured(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(measuring, "can_judge", lambda: False)
    measuring.installed.cache_clear()
    with pytest.raises(OptionError, match=r"pip install -e '\.\[eyes\]'"):
        run(run.tar("a.tar", png_samples((24, 24))), peers=("jpeg",))
    assert not (tmp_path / "report").exists()


def test_the_model_of_a_dataset(run: Runner, make_dataset: Make, tmp_path: Path) -> None:
    data = run.tar("a.tar", png_samples((24, 24)))
    dataset = make_dataset([data])
    run(data, models=(dataset.url,), peers=())
    (model,) = told(tmp_path)["models"]
    assert (model["name"], model["model_id"]) == ("dataset", dataset.model_id)
    assert series(tmp_path, "dataset")["points"][-1]["exact"] == 1


def test_pictures_too_large_to_measure_are_bad(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_worker, "MAX_PIXELS", 1000)
    summary = run(run.tar("a.tar", png_samples((20, 50), (20, 51))), peers=("jpeg",))
    assert (summary.ok, summary.bad) == (1, 1)
    assert "more than the limit of 1000" in told(tmp_path)["problems"][0]["reason"]


def test_alpha_is_left_out_in_words(run: Runner, tmp_path: Path) -> None:
    rgb = photograph(24, 24)
    alpha = np.full((24, 24), 9, np.uint8)
    files = [*png_samples((24, 24)), ("see.png", write_image(rgb, alpha))]
    run(run.tar("a.tar", files), peers=("jpeg",))
    assert told(tmp_path)["pictures"]["with_alpha"] == 1
    assert any("1 pictures have an alpha channel" in note for note in told(tmp_path)["notes"])


class _Page(HTMLParser):
    """Checks that elements are closed, and collects attributes and words."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_by_itself(run: Runner, model: str, tmp_path: Path) -> None:
    files = [("a<b>&.png", write_image(photograph(48, 64)))]
    run(
        run.tar("a.tar", files),
        models=(model,),
        peers=("jpeg", "png"),
        show=1,
        show_bpp=(6.0, 3.0),
        command="python jobs/evaluate.py --data 'a&b'",
    )
    text = (tmp_path / "report" / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object"}
    loaded = [value for _, name, value in page.attributes if name in ("src", "srcset")]
    assert loaded
    assert all(v.startswith("#") for tag, name, v in page.attributes if name == "href")
    assert all(value.startswith("data:image/webp;base64,") for value in loaded)
    assert not re.search(r"https?://(?!www.w3.org/2000/svg)|url\(|@import", text)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "prefers-color-scheme: dark" in text
    model_id = told(tmp_path)["models"][0]["model_id"]
    for words in ("a<b>&,", "--data 'a&b'", model_id, "numpy", "libjpeg-turbo", "Verdict"):
        assert words in page.words, words
    linked = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    there = {f"#{value}" for _, name, value in page.attributes if name == "id"}
    assert {"#verdict", "#pictures", "#about"} <= linked == there


def test_pictures_of_one_row_have_the_same_size(run: Runner, model: str, tmp_path: Path) -> None:
    data = run.tar("a.tar", png_samples((160, 224)))
    run(data, models=(model,), peers=("jpeg2000", "png"), show=1, show_bpp=(0.6, 12.0))
    (shown,) = run.found.shown
    assert shown["key"] == "p000"
    for row in shown["rates"]:
        names = [file["of"] for file in row["files"]]
        assert names[:2] == ["original", "toy"]
        assert "PNG" not in names
        assert row["files"][1]["bpp"] == row["bpp"]
        for file in row["files"][1:]:
            assert 0.8 <= file["bpp"] / row["bpp"] <= 1.25
            assert file["score"] < 100
            picture = Image.open(io.BytesIO(base64.b64decode(file["picture"])))
            assert picture.size == (192, 160)
    assert names[2:] == ["JPEG 2000"]
    before = run.found.shown
    run(data, models=(model,), peers=("jpeg2000", "png"), show=1, show_bpp=(0.6, 12.0))
    assert run.done == []
    assert run.found.shown == before


def test_records_of_shown_pictures_may_be_large(
    run: Runner, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops by all codecs at all rates are more than a shard's record may have."""
    right = evaluate_worker.crops

    def padded(*arguments: Any) -> Any:
        return [{**row, "padding": "x" * (1 << 20)} for row in right(*arguments)]

    monkeypatch.setattr(evaluate_worker, "crops", padded)
    data = run.tar("a.tar", png_samples((160, 224)))
    run(data, models=(model,), peers=("jpeg2000",), show=1, show_bpp=(0.6,))
    assert run.found.shown


def test_a_picture_that_cannot_be_shown_is_named(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise FloatingPointError("no crops today")

    monkeypatch.setattr(evaluate_worker, "crops", broken)
    summary = run(run.tar("a.tar", png_samples((24, 24))), peers=("jpeg", "webp"), show=1)
    assert summary.exit_code == 1
    (problem,) = told(tmp_path)["problems"]
    assert problem["of"] == "pictures of the report"
    assert "no crops today" in problem["reason"]


def test_pictures_that_are_side_fields_are_counted(run: Runner, model: str) -> None:
    (name, data), (_, other) = png_samples((40, 56), (40, 56))
    files = [(f"2024.01-{name}", data), (f"2024.02-{name}", other)]
    summary = run(run.tar("a.tar", files), models=(model,), peers=("jpeg",))
    assert summary.ok == 1
    assert any("1 picture not measured" in note for note in summary.notes)


def test_folders_and_tables_are_measured_as_tars_are(
    run: Runner, model: str, tmp_path: Path
) -> None:
    files = png_samples((40, 56), (64, 48))
    (tmp_path / "photos").mkdir()
    for name, data in files:
        (tmp_path / "photos" / name).write_bytes(data)
    tables = tmp_path / "tables"
    tables.mkdir()
    pq.write_table(pa.table({"image": [data for _, data in files]}), tables / "x.parquet")
    of_tar = run(run.tar("a.tar", files), models=(model,), peers=())
    assert (of_tar.ok, of_tar.bad) == (2, 0)
    wanted = series(tmp_path, "toy")["points"]
    for folder in (tmp_path / "photos", tables):
        summary = run(str(folder), models=(model,), peers=())
        assert (summary.ok, summary.bad, summary.exit_code) == (2, 0, 0)
        assert series(tmp_path, "toy")["points"] == wanted
    assert run(str(tmp_path / "photos"), models=(model,), peers=()).resumed == summary.tasks
