"""Documents that are filled from an evaluation, and what stands in them beside other codecs."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluate.curves import above
from pipeline.evaluate.document import Document, DocumentError
from pipeline.running.options import OptionError
from tests.jobs.scripts import JOBS, load_job
from tests.pipeline.evaluate.inprocess import Runner, png_samples

DOCS = JOBS.parent / "docs"
DOCUMENT = """# Ours

Words of people.

<!-- small: about -->
<!-- end -->

<!-- small: toy quality 1: PSNR, dB, beside others -->
old
<!-- end -->

Between.

<!-- small: plot psnr -->
<!-- end -->

<!-- large: BD-rate -->
of another evaluation
<!-- end -->

<!-- small: no such table -->
stays
<!-- end -->
"""
GIVEN = {"prior art": ((0.5, 20.0), (2.0, 30.0))}


def places(text: str) -> dict[str, str]:
    """What stands in each place."""
    found = {}
    for part in text.split("<!-- ")[1:]:
        what, arrow, inside = part.partition(" -->\n")
        if arrow and what != "end":
            found[what] = inside
    return found


def test_places_are_filled_and_words_stay(run: Runner, model: str, tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    path.write_text(DOCUMENT)
    data = run.tar("a.tar", png_samples((48, 64), (40, 40)))
    options: dict[str, Any] = {
        "models": (model,),
        "peers": ("jpeg", "jpeg_progressive", "jpeg2000_layers"),
    }
    options |= {"markdown": str(path), "section": "small", "given": GIVEN, "command": "the command"}
    summary = run(data, **options)
    assert summary.exit_code == 0
    text = path.read_text()
    filled = places(text)
    assert "- command: `the command`\n" in filled["small: about"]
    head, _, *rows = [
        line
        for line in filled["small: toy quality 1: PSNR, dB, beside others"].splitlines()
        if line.startswith("|")
    ]
    for name in ("JPEG", "progressive JPEG", "progressive JPEG, cut", "JPEG 2000, one file"):
        assert f" {name} |" in head
    assert "prior art" in head
    assert len(rows) == 3
    assert filled["large: BD-rate"] == "of another evaluation\n"
    assert filled["small: no such table"] == "stays\n"
    assert any("small: no such table: left as it was" in note for note in summary.notes)
    assert [line for line in text.splitlines() if line in ("Words of people.", "Between.")]
    drawing = ElementTree.parse(tmp_path / "results" / "small-psnr.svg").getroot()
    assert "results/small-psnr.svg" in filled["small: plot psnr"]
    words = {node.text for node in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {"toy", "JPEG", "progressive JPEG, cut", "JPEG 2000, one file", "prior art"} <= words
    kept = json.loads((tmp_path / "results" / "small.json").read_text())
    assert {"toy", "JPEG", "prior art"} <= {one["name"] for one in kept["series"]}
    run(data, **options)
    assert path.read_text() == text
    # nothing that JSON does not have, though a given curve has a PSNR alone
    json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)


def test_the_best_of_all_cut_files_is_a_curve(run: Runner, tmp_path: Path) -> None:
    run(run.tar("a.tar", png_samples((96, 96))), peers=("jpeg_progressive",))
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    series = {one["name"]: one["points"] for one in told["series"]}
    single = [name for name in series if name.startswith("progressive JPEG q")]
    assert len(single) == 4
    assert len(series["progressive JPEG, cut"]) == sum(len(series[name]) for name in single)


def test_decoders_of_the_same_files_stand_together(run: Runner, model: str, tmp_path: Path) -> None:
    noisy = f"{model},quality=1,decoder=diffusion,seed=3,prefixes=no,label=noisy"
    run(run.tar("a.tar", png_samples((48, 48))), models=(model, noisy), peers=("jpeg",))
    text = (tmp_path / "report" / "results.md").read_text()
    rows = [
        line.split(" | ")[0]
        for line in text.split("### Decoders\n")[1].split("###")[0].splitlines()
        if line.startswith("| ")
    ]
    assert rows == ["| decoder", "| toy, quality 1", "| noisy, quality 1", "| JPEG"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("words alone", "no place for 'small'.*it has places for nothing"),
        ("<!-- small: plot beauty -->\n<!-- end -->\n", "plot METRIC"),
    ],
)
def test_documents_that_cannot_be_filled_are_refused_at_once(
    run: Runner, tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "doc.md"
    if text is not None:
        path.write_text(text)
    data = run.tar("a.tar", png_samples((24, 24)))
    with pytest.raises(DocumentError, match=words):
        run(data, peers=("png",), markdown=str(path), section="small")
    assert not (tmp_path / "report" / "records").exists()
    with pytest.raises(OptionError, match="--given PNG: that is measured here"):
        run(data, peers=("png",), given={"PNG": ((1, 30),)})


def test_the_command_line() -> None:
    parse = load_job("evaluate").parse
    given = parse(
        ["--data", "x/kodak.tar", "--output", "o", "--given", "a b=.2:29.4,.5:33", "c=1:2"]
    )
    assert given.given == {"a b": ((0.2, 29.4), (0.5, 33.0)), "c": ((1.0, 2.0),)}
    assert (given.markdown, given.section) == (None, "kodak")
    for text in ("a", "a=", "a=1", "a=0:30", "a=1:nan", "=1:30"):
        with pytest.raises(SystemExit):
            parse(["--data", "a.tar", "--output", "o", "--given", text])


def test_where_a_curve_is_above_another() -> None:
    line = [(0.1, 30.0), (1.0, 31.0)]
    assert above([(0.1, 29.0), (1.0, 32.0)], line) == [pytest.approx((math.sqrt(0.1), 1.0))]
    assert above([(0.1, 31.0), (1.0, 33.0)], line) == [pytest.approx((0.1, 1.0))]
    assert above([(0.1, 27.0), (1.0, 29.0)], line) == []
    assert above(line, line) == []
    assert above([(2.0, 27.0), (3.0, 29.0)], line) is None
    steps = [(0.1, 30.0), (0.2, 31.0), (0.4, 32.0), (0.8, 33.0)]
    other = [(0.1, 29.0), (0.2, 31.5), (0.4, 31.5001), (0.8, 35.0)]
    spans = above(steps, other)
    assert spans is not None
    assert [len(spans), spans[0][0]] == [2, pytest.approx(0.1)]
    assert spans[0][1] < 0.2 < spans[1][0] < 0.4 < spans[1][1] < 0.8


@pytest.mark.parametrize("section", ["kodak", "px64", "speed"])
def test_the_results_have_places_for_what_fills_them(section: str) -> None:
    Document(DOCS / "results.md", section).check()
    assert (
        f"--section {section}" in (DOCS / "results" / "make.sh").read_text() or section == "speed"
    )
