"""The documents mention only what exists: relative links, headings, paths and names of the code."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

FOLDERS = ("codec", "docs", "infra", "jobs", "pipeline", "tests")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)
_FENCE = re.compile(r"^(```|~~~).*?^\1 *$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(\s*<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*<>{{}}-]*")
# `worker.py`, `compress/worker.py`: a file by the end of its path
_FILE = re.compile(r"(?<![\w./-])(?:[\w-]+/)*[\w-]+\.(?:py|js|css|sh|toml)(?![\w/])")
_NAME = re.compile(r"(?<![\w./-])(?:codec|pipeline)(?:\.(?!py\b)[A-Za-z_]\w*)+\b(?!\()")
# NAME, NUMBER, <name>, {name} and * stand for something else.
_PLACEHOLDER = re.compile(r"[*<>{}]|(?<![A-Za-z])[A-Z]{2,}(?![A-Za-z])")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def files() -> frozenset[str]:
    """Every file of the repository, by its path."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return frozenset(name_of(path) for path in [*found, *ROOT.iterdir()])


@cache
def endings() -> frozenset[str]:
    """What a document may call a file: the end of its path, from any folder on."""
    parts = [name.split("/") for name in files()]
    return frozenset("/".join(each[at:]) for each in parts for at in range(len(each)))


@cache
def anchors(document: Path) -> frozenset[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", document.read_text())):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        times = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one) is not None for one in found)
        found.append(f"{slug}-{times}" if times else slug)
    return frozenset(found)


def links(document: Path) -> Iterator[str]:
    """The targets of a document's links that lie in the repository."""
    prose = _CODE.sub("", _FENCE.sub("", document.read_text()))
    for target in _LINK.findall(prose):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield unquote(target)


def exists(path: str) -> bool:
    path = path.rstrip("./")
    return path in files() or any(name.startswith(f"{path}/") for name in files())


def defined(name: str) -> bool:
    """Whether ``codec.images.files.read_image`` leads to a module that has this name in it."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        base = "/".join(parts[:count])
        for path in (f"{base}.py", f"{base}/__init__.py"):
            if path in files():
                rest = parts[count : count + 1]
                text = (ROOT / path).read_text()
                return all(re.search(rf"\b{name}\b", text) for name in rest)
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    wrong = []
    for target in links(document):
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        lost = anchor and there.suffix == ".md" and anchor not in anchors(there)
        if not there.exists() or lost:
            wrong.append(target)
    assert not wrong, f"{name_of(document)}: correct these links"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_files_and_names_exist(document: Path) -> None:
    text = re.sub(r"https?://\S+", "", document.read_text())
    paths = {path for path in _PATH.findall(text) if not _PLACEHOLDER.search(path)}
    code = " ".join(_CODE.findall(_FENCE.sub("", text)))
    wrong = [path for path in paths if not exists(path)]
    wrong += [file for file in set(_FILE.findall(code)) - paths if file not in endings()]
    wrong += [name for name in set(_NAME.findall(code)) if not defined(name)]
    assert not wrong, f"{name_of(document)}: nothing in the repository has these names"


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs" / "index.md"
    named = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    wanted = {*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")} - {index}
    assert not {name_of(path) for path in wanted - named}, "docs/index.md does not mention these"
