"""The quick check: what it finds from footers and records of data files."""

import shutil

import pytest

from pipeline.verify.footers import FileChecker
from tests.pipeline.verify.archives import FULL, Archive, Harm, flip, truncated


def in_the_footer(archive: Archive) -> None:
    """A column's name, behind all pages."""
    flip(archive.file(), archive.file().read_bytes().rindex(b"layer_02") + 7)


def in_the_magic_number(archive: Archive) -> None:
    flip(archive.file(), archive.file().stat().st_size - 6)


def replaced(archive: Archive) -> None:
    shutil.copy(archive.file("b"), archive.file())


def replaced_by_one_of_its_size(archive: Archive) -> None:
    archive.file().write_bytes(bytes(archive.file().stat().st_size))


def missing(archive: Archive) -> None:
    archive.file().unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (in_the_footer, "its footer is damaged"),
        (in_the_magic_number, "footer"),
        (truncated, "bytes, and had"),
        (replaced, "bytes, and had"),
        (replaced_by_one_of_its_size, "footer"),
        (missing, "is gone"),
    ],
)
def test_what_a_quick_check_finds_in_a_data_file(archive: Archive, harm: Harm, words: str) -> None:
    path, source = archive.file(), archive.root.parent / "a.tar"
    harm(archive)
    report = archive.verify()
    (damage,) = report.damaged
    assert (damage.kind, damage.path) == ("data", f"data/{path.name}")
    assert damage.source == str(source)
    assert words in damage.problems[0]
    assert report.exit_code == 1
    assert damage.path in "\n".join(report.lines())
    left = path.read_bytes() if path.exists() else None

    repaired = archive.verify(repair=True)
    assert [d.repaired for d in repaired.damaged] == [True]
    assert (repaired.exit_code, repaired.new_manifest) == (0, 2)
    assert archive.file().name == f"{path.stem}.1.parquet"
    assert (path.read_bytes() if path.exists() else None) == left  # nothing is overwritten
    archive.check_whole()


def test_a_sound_dataset(archive: Archive) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.root.rglob("*")}
    quick = archive.verify()
    assert (quick.exit_code, quick.damaged, quick.files, quick.files_read) == (0, [], 2, 0)
    assert "nothing is damaged" in quick.lines()
    size = sum(path.stat().st_size for path in (archive.root / "data").iterdir())
    assert quick.bytes_read < size / 2 + 1000  # footers, not pictures
    archive.check_whole()
    assert archive.verify(read=FULL, repair=True, collect_garbage=True, older_than=0).removed == []
    assert {path: path.stat().st_mtime_ns for path in archive.root.rglob("*")} == before


def test_damaged_footers_do_no_harm(archive: Archive) -> None:
    """Neither an exception nor (as with pyarrow left to itself) the end of the process."""
    (file,) = (f for f in archive.dataset.files if f.name.startswith("a-"))
    checker, path = FileChecker(archive.dataset), archive.file()
    whole = path.read_bytes()
    found = 0
    places = range(len(whole) - file.footer_bytes, len(whole), 3)
    for place in places:
        path.write_bytes(whole)
        flip(path, place)
        checked = checker.check(file)
        assert checked.error == ""
        found += bool(checked.damage)
    assert found > len(places) / 2  # others are in what nobody needs, and change the sha256
