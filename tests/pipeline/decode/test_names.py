"""Names in decoded tars and folders: exact if they are harmless, and never another file's."""

import tarfile
from pathlib import Path

import pytest

from pipeline.decode.targets import FileTarget, TarTarget, UnwritableNameError, safe_path
from pipeline.stores.store import Store

HARMLESS = [
    "a.png",
    "folder/deep/er/x.png",
    "100%.png",
    "ab:c*?<>|.png",
    "./folder/x.png",
    "a//b/./x.png",
    "ünï/çødé.png",
    "...x.png",
    "a..b/..c.png",
    "caf\udce9.png",  # a name that is not UTF-8
    "x" * 300 + ".png",
    " a b .png",
]
HARMFUL = [
    "../x.png",
    "a/../../x.png",
    "/etc/x.png",
    "//x.png",
    "..\\x.png",
    "\\\\host\\x.png",
    "c:x.png",
    "a\nb.png",
    "\x1b[31m.png",
    "\x7f.png",
    "a\x9bb.png",
]


def names_of(tmp_path: Path, names: list[str]) -> list[str]:
    target = TarTarget(tmp_path / "x.tar")
    for name in names:
        key, _, field = name.rpartition(".")
        target.write(key, [(field, b"1")])
    target.close()
    with tarfile.open(tmp_path / "x.tar", encoding="utf-8", errors="surrogateescape") as tar:
        return tar.getnames()


def test_harmless_names_are_given_back_exactly(tmp_path: Path) -> None:
    assert names_of(tmp_path, HARMLESS) == HARMLESS


def test_harmful_names_are_not(tmp_path: Path) -> None:
    found = names_of(tmp_path, HARMFUL)
    assert found == [safe_path(name) for name in HARMFUL]
    assert len({*found}) == len(HARMFUL)
    for name in found:
        assert name.isprintable()
        assert not {"", ".."} & {*name.replace("\\", "/").split("/")}
        assert ":" not in name
    unpacked = tmp_path / "out" / "in"
    unpacked.mkdir(parents=True)
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.extractall(unpacked, filter="data")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in"]
    assert sum(path.is_file() for path in unpacked.rglob("*")) == len(HARMFUL)


@pytest.mark.parametrize("kind", ["tar", "files"])
def test_two_samples_with_one_name_are_told(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path / "files"))
    path = tmp_path / "x.tar"
    target = TarTarget(path) if kind == "tar" else FileTarget(store, "x")
    target.write("a", [("b.png", b"first")])
    with pytest.raises(UnwritableNameError, match=r"'a\.b\.png' of 'a\.b' is another file's name"):
        target.write("a.b", [("json", b"{}"), ("png", b"second")])
    target.write("c", [("png", b"third")])
    target.close()
    if kind == "tar":
        with tarfile.open(path) as tar:
            assert tar.getnames() == ["a.b.png", "c.png"]
    else:
        assert store.read("x/a.b.png") == b"first"
        assert store.sizes("x").keys() == {"a.b.png", "c.png"}


def test_an_escape_that_is_another_name_is_told(tmp_path: Path) -> None:
    target = TarTarget(tmp_path / "x.tar")
    target.write("../x", [("png", b"1")])
    with pytest.raises(UnwritableNameError):
        target.write("%2E%2E/x", [("png", b"2")])
    target.close()
