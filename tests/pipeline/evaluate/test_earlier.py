"""Curves of an earlier report beside new ones: what is taken over, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluate.contenders import peer_contenders
from pipeline.evaluate.peers import all_peers
from pipeline.running.options import OptionError
from tests.jobs.scripts import load_job
from tests.pipeline.evaluate.inprocess import Runner, png_samples

GIVEN = {"prior art": ((0.5, 20.0), (2.0, 30.0))}


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in report["series"]}


def same(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """All but decibels of MS-SSIM, which come from a rounded figure."""
    for one, other in zip(then["points"], now["points"], strict=True):
        a, b = one.pop("ms_ssim_db"), other.pop("ms_ssim_db")
        if a != b and a != pytest.approx(b, abs=0.002):
            return False
    return then == now


@pytest.fixture
def before(run: Runner, model: str, tmp_path: Path) -> Path:
    data = run.tar("a.tar", png_samples((48, 64), (40, 40)))
    peers = ("jpeg", "jpeg_progressive", "webp_lossless")
    run(data, models=(model,), peers=peers, given=GIVEN)
    return tmp_path / "report" / "report.json"


def test_other_curves_are_taken_over(run: Runner, before: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    data = run.tar("elsewhere/b.tar", png_samples((48, 64), (40, 40)))
    output = tmp_path / "second"
    run(data, peers=("webp",), earlier=str(before), anchor="jpeg", output=str(output))
    assert [name.split("-")[0] for name in run.done] == ["webp"]
    first, second = told(before.parent), told(output)
    assert second["series"][0]["name"] == "WebP"  # what is new comes first
    assert [one["name"] for one in second["series"][1:]] == list(by_name(first))
    for then, now in zip(first["series"], second["series"][1:], strict=True):
        assert same(then, now)
    for name, rates in first["bd_rate"]["percent"].items():
        for metric, rate in rates.items():  # of rounded figures
            assert second["bd_rate"]["percent"][name][metric] == pytest.approx(rate, abs=0.05)
    assert second["bd_rate"]["percent"]["WebP"]["psnr"] is not None
    assert second["models"] == first["models"]
    assert second["pictures"] == first["pictures"]
    assert {one["name"] for one in second["speed"]} >= {"WebP", "JPEG", "toy quality 0"}
    (source,) = second["earlier"]
    assert (source["made"], source["command"]) == (first["made"], first["command"])
    groups = list(dict.fromkeys(one["group"] for one in first["series"]))
    assert source["of"] == groups
    assert "prior art" in groups
    assert f"earlier: {', '.join(groups)}: measured" in (output / "results.md").read_text()


def test_what_is_measured_takes_the_place_of_its_former_curves(
    run: Runner, before: Path, model: str, tmp_path: Path
) -> None:
    report = told(before.parent)
    report["versions"]["old-library"] = "1.2"
    for one in report["series"]:
        one["points"][0]["bpp"] *= 1.5
    report["models"].append({"name": "other", "codec": "uqdm", "model_id": "ab" * 32})
    report["models"][0]["model_id"] = "cd" * 32  # as if the model had been another one
    before.write_text(json.dumps(report))
    output = tmp_path / "second"
    run(
        str(tmp_path / "a.tar"),
        models=(model,),
        peers=("webp",),
        earlier=str(before),
        output=str(output),
    )
    second = told(output)
    assert [one["name"] for one in second["series"][1:]] == [
        one["name"] for one in report["series"]
    ]
    now, then = by_name(second), by_name(report)
    for name in now.keys() - {"WebP"}:
        ratio = then[name]["points"][0]["bpp"] / now[name]["points"][0]["bpp"]
        anew = now[name]["group"] == "toy"
        assert ratio == pytest.approx(1.5 if anew else 1, abs=1e-3), name
    assert [one["name"] for one in second["models"]] == ["toy", "other"]
    assert second["models"][0]["model_id"] != "cd" * 32
    assert "with old-library 1.2\n" in (output / "results.md").read_text()
    assert not {"toy", "WebP"} & set(second["earlier"][0]["of"])

    # What that one took over still comes from the first.
    run(
        str(tmp_path / "a.tar"),
        peers=("png",),
        earlier=str(output / "report.json"),
        output=str(tmp_path / "third"),
    )
    sources = told(tmp_path / "third")["earlier"]
    assert [one["made"] for one in sources] == [report["made"], second["made"]]
    assert sources[1]["of"] == ["WebP", "toy"]
    assert sources[0]["of"] == second["earlier"][0]["of"]


def test_peers_that_are_there_are_measured_only_by_name(
    run: Runner, before: Path, tmp_path: Path
) -> None:
    data = str(tmp_path / "a.tar")
    run(data, earlier=str(before), output=str(tmp_path / "second"))
    peers = {name.split("-")[0] for name in run.done}
    assert "webp" in peers
    assert not {"jpeg", "jpeg_progressive", "webp_lossless"} & peers
    run(data, peers=("jpeg",), earlier=str(before), output=str(tmp_path / "third"))
    assert [name.split("-")[0] for name in run.done] == ["jpeg"]
    # Nor is it said of them, where their libraries are missing, that they are left out.
    assert peer_contenders(None, {peer.title for peer in all_peers().values()}) == ([], [])


def test_other_pictures_are_refused(run: Runner, before: Path, tmp_path: Path) -> None:
    sizes = [(48, 64), (40, 40)]
    others = png_samples(*sizes[::-1])
    renamed = [(f"x{name}", content) for name, content in png_samples(*sizes)]
    for files, what in ((png_samples(*sizes, sizes[0]), "count"), (renamed, "digest")):
        data = run.tar("b.tar", files)
        with pytest.raises(OptionError, match=f"of other pictures: its {what} is"):
            run(data, peers=("png",), earlier=str(before))
    report = told(before.parent)
    del report["pictures"]["digest"]  # as reports had none once
    before.write_text(json.dumps(report))
    output = str(tmp_path / "second")
    assert run(run.tar("b.tar", renamed), peers=("png",), earlier=str(before), output=output).ok
    with pytest.raises(OptionError, match="--given JPEG: that is measured"):
        run(
            run.tar("b.tar", others),
            peers=("png",),
            earlier=str(before),
            given={"JPEG": ((1.0, 30.0),)},
        )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"series": [{"name": "x"}]}'])
def test_what_is_no_report_is_refused(
    run: Runner, model: str, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=r"report\.json: not the report\.json of an evaluation"):
        run(run.tar("a.tar", png_samples((24, 24))), peers=("png",), earlier=str(path))


def test_the_commands_option(tmp_path: Path) -> None:
    options = load_job("evaluate").parse(
        ["--data", "a.tar", "--output", str(tmp_path), "--model", "m", "--earlier", "r.json"]
    )
    assert (options.earlier, options.peers) == ("r.json", None)
