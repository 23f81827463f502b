"""Which folder may import which: arrows go down, and nothing goes round in a circle.

A room is a folder, or a single module where files of one folder lie on different floors. A room may
import what lies on lower floors. Rooms of one floor do not know each other.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLOORS = (
    ("codec.errors",),
    ("codec.images", "codec.numerics", "codec.stream"),
    ("codec.arguments", "codec.base", "codec.batches", "codec.scheme"),
    ("codec.coder_process",),
    ("codec.layered", "codec.models"),
    ("codec.perception", "codec.training"),
    ("codec.cdc.latents", "codec.uqdm.scheme"),
    ("codec.cdc.networks", "codec.uqdm.nested", "codec.uqdm.paper"),
    ("codec.cdc", "codec.uqdm"),
    ("codec",),  # the face of the package, and the command line
    ("pipeline.stores",),
    ("pipeline.running.progress",),
    ("pipeline.running", "pipeline.sources"),
    ("pipeline.dataset", "pipeline.training"),
    ("pipeline.compress", "pipeline.reader"),
    (
        "pipeline.decode",
        "pipeline.evaluate",
        "pipeline.loading",
        "pipeline.serving",
        "pipeline.verify",
    ),
    ("pipeline.manage",),
    ("pipeline",),  # the face of the package
    ("jobs",),
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# What turns pictures into streams needs no cluster, no store and no table.
NOT_IN_CODEC = {"fsspec", "pyarrow", "ray", "s3fs", "webdataset"}


@cache
def modules() -> dict[str, Path]:
    """The files of the packages, by the names of their modules."""
    found = {}
    for package in ("codec", "pipeline", "jobs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports anywhere in it: modules of ours by their names, others by theirs."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parts if node.level else []), *([node.module] * bool(node.module))])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in modules() else base)
    return frozenset(found - {module})


def room_of(module: str) -> str:
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next(name for name in names if name in LEVELS)


def arrows() -> Iterator[tuple[str, str]]:
    for module in modules():
        for target in imports(module):
            if target in modules():
                yield module, target


@pytest.mark.parametrize("package", ["codec", "pipeline"])
def test_every_folder_has_a_floor(package: str) -> None:
    """A new folder is put on a floor, rather than into the room above it."""
    folders = {".".join(path.relative_to(ROOT).parent.parts) for path in modules().values()}
    unknown = {name for name in folders if name.startswith(f"{package}.") and name not in LEVELS}
    assert not unknown - {"codec.weights"}, "no floor in FLOORS"
    assert LEVELS.keys() <= {"jobs", *modules()}, "a room that is gone"


def test_imports_go_down() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in arrows()
        if (room := room_of(module)) != (other := room_of(target)) and LEVELS[other] >= LEVELS[room]
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports(module) & modules().keys() for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


def test_the_codec_needs_no_cluster_and_no_store() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        if module.partition(".")[0] == "codec"
        for name in imports(module)
        if name.partition(".")[0] in NOT_IN_CODEC
    ]
    assert not wrong
