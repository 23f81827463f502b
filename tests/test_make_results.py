"""docs/make_results.py: marked places of documents are filled from reports, other text stays."""

import json
import tarfile
from pathlib import Path

import pytest

from docs import make_results
from docs.make_results import DOCUMENTS, EVERY, fill, fill_from, headed, thin
from tests.pipeline.makers import write_tar

DOCUMENT = """# Ours

Words of people.

<!-- small: toy: verdict -->
old
<!-- end -->

Between.

<!-- small: plot psnr -->
<!-- end -->

<!-- small: toy: PSNR (table) -->
<!-- end -->

<!-- small: about -->
<!-- end -->

<!-- large: about -->
of another evaluation
<!-- end -->

<!-- small: no such table -->
stays
<!-- end -->
"""


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "doc.md"
    path.write_text(DOCUMENT)
    monkeypatch.setattr(make_results, "DOCUMENTS", (path,))
    monkeypatch.setattr(make_results, "RESULTS", tmp_path / "results")
    report = tmp_path / "report"
    report.mkdir()
    (report / "results.md").write_text(
        "### toy: verdict\n\n- It wins.\n\n### toy: PSNR\n\nWords.\n\n| a |\n\n"
        "### about\n\n- data: /home/me/a.tar\n- made: now\n"
    )
    (report / "report.json").write_text('{"series": [], "data": ["/home/me/a.tar"]}')
    (report / "psnr.svg").write_text("<svg/>")
    return path


def test_places_are_filled_and_words_stay(document: Path, tmp_path: Path) -> None:
    left = fill_from(tmp_path / "report", "small")
    text = document.read_text()
    assert "<!-- small: toy: verdict -->\n- It wins.\n<!-- end -->\n\nBetween." in text
    assert "(results/small-psnr.svg)" in text
    assert "(table) -->\n| a |\n<!-- end -->" in text
    assert (tmp_path / "results" / "small-psnr.svg").read_text() == "<svg/>"
    assert json.loads((tmp_path / "results" / "small.json").read_text()) == {"series": []}
    assert "<!-- small: about -->\n- made: now\n<!-- end -->" in text
    assert "of another evaluation" in text
    assert "-->\nstays\n<!-- end -->" in text
    assert left == ["doc.md: small: no such table: nothing to show, left as it was"]
    fill_from(tmp_path / "report", "small")
    assert document.read_text() == text


def test_parts_have_headings() -> None:
    assert headed("before\n### a: b\n\n| x |\n### c\nd\n") == {"a: b": "\n| x |\n", "c": "d\n"}


def test_every_nth_picture(tmp_path: Path) -> None:
    files = [(f"{n}.{end}", b"x") for n in range(5) for end in ("json", "png")]
    thin(write_tar(tmp_path / "a.tar", files), tmp_path / "b.tar", 2)
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert tar.getnames() == ["0.png", "2.png", "4.png"]


def test_our_documents_have_places_for_every_set() -> None:
    for name in EVERY:
        asked: list[str] = []
        for document in DOCUMENTS:
            copy = document.read_text()
            fill(document, name, lambda what, asked=asked: asked.append(what) or "")
            assert document.read_text() == copy
        assert "uqdm: verdict" in asked
