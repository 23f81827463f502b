"""The order of an epoch: which rows of a dataset each reader gets, and in which order.

    pieces     data files, or row groups if there are few files; in a new order each epoch
    cut        the part of one reader: consecutive rows of the pieces, the same number for all
    units      the row groups in this part; those of some neighbouring files are shuffled
    refs       the rows of each unit, shuffled within it and then through a buffer

No rows are read here, so a reader that resumes counts to its position without reading. All random
numbers come from ``random.Random.random``, which Python promises not to change, so the order does
not depend on versions.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..dataset.data_file import DataFile
from ..reader.dataset import Dataset

T = TypeVar("T")

# Up to this number of files, all footers are read first (14 KB each), and row groups are shuffled.
# Otherwise each reader would get the same part of a single large file in every epoch.
FEW_FILES = 64
MIXED_FILES = 16  # with more files, the row groups of so many neighbouring files are shuffled
_FOOTERS_AT_ONCE = 8


@dataclass(frozen=True)
class Epoch:
    """What the order depends on, besides the dataset. ``buffer`` is 0 for no shuffling."""

    seed: int
    number: int
    buffer: int

    def random(self, *purpose: object) -> random.Random:
        """A random generator for one purpose; it always gives the same numbers."""
        return random.Random("/".join(map(str, (self.seed, self.number, *purpose))))


@dataclass(frozen=True)
class Reader:
    """Reader ``number`` of ``of`` readers; each is a worker of a rank."""

    number: int
    of: int


@dataclass(frozen=True, eq=False)
class Unit:
    """Rows ``start`` to ``stop`` of a row group. Equal only to itself."""

    file: DataFile
    group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Ref(NamedTuple):
    """A row of a unit's row group."""

    unit: Unit
    row: int


class _Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a file or, if one is named, of a row group.

    ``file`` is its place in the dataset: all data files themselves may not fit into memory.
    """

    file: int
    group: int | None
    start: int
    stop: int


def refs(dataset: Dataset, epoch: Epoch, reader: Reader) -> Iterator[Ref]:
    """The rows of ``reader`` in order, bad and filtered samples included.

    Each row belongs to one reader. Reads footers, some files ahead.
    """
    units = _units(dataset, epoch, reader)
    if not epoch.buffer:
        return (Ref(unit, row) for unit in units for row in range(unit.start, unit.stop))
    return _mixed(units, epoch.buffer, epoch.random("rows", reader.number, reader.of))


def _units(dataset: Dataset, epoch: Epoch, reader: Reader) -> Iterator[Unit]:
    pieces = [_Piece(file.number, None, 0, file.rows) for file in dataset.files if file.ok]
    by_groups = bool(epoch.buffer) and len(pieces) <= FEW_FILES
    if by_groups:
        pieces = [
            _Piece(piece.file, group, 0, rows)
            for piece, groups in zip(pieces, _group_rows(dataset, pieces), strict=True)
            for group, rows in enumerate(groups)
        ]
    if epoch.buffer:
        pieces = shuffled(pieces, epoch.random("pieces"))
    mine = list(_cut(pieces, reader))
    if by_groups:
        for file, group, start, stop in mine:
            assert group is not None
            yield Unit(dataset.files[file], group, start, stop)
        return
    step = MIXED_FILES if epoch.buffer else 1
    for first in range(0, len(mine), step):
        units = list(_of_files(dataset, mine[first : first + step]))
        if epoch.buffer:
            units = shuffled(units, epoch.random("groups", reader.number, reader.of, first))
        yield from units


def _cut(pieces: Iterable[_Piece], reader: Reader) -> Iterator[_Piece]:
    """The reader's part of the pieces. The parts of readers differ by at most one row."""
    pieces = list(pieces)
    total = sum(piece.stop for piece in pieces)
    first, last = (total * n // reader.of for n in (reader.number, reader.number + 1))
    at = 0
    for piece in pieces:
        start, stop = max(first - at, 0), min(last - at, piece.stop)
        if start < stop:
            yield piece._replace(start=start, stop=stop)
        at += piece.stop


def _of_files(dataset: Dataset, pieces: Sequence[_Piece]) -> Iterator[Unit]:
    """The row groups of these parts of files."""
    for piece, groups in zip(pieces, _group_rows(dataset, pieces), strict=True):
        at = 0
        for group, rows in enumerate(groups):
            start, stop = max(piece.start - at, 0), min(piece.stop - at, rows)
            if start < stop:
                yield Unit(dataset.files[piece.file], group, start, stop)
            at += rows


def _group_rows(dataset: Dataset, pieces: Sequence[_Piece]) -> list[list[int]]:
    """The number of rows in each row group of the file of each piece."""

    def read(piece: _Piece) -> list[int]:
        with dataset.open(dataset.files[piece.file]) as opened:
            footer = opened.metadata
            return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    if len(pieces) == 1:
        return [read(pieces[0])]
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(read, pieces))


def _mixed(units: Iterable[Unit], size: int, rng: random.Random) -> Iterator[Ref]:
    held: list[Ref] = []
    for unit in units:
        for row in shuffled(range(unit.start, unit.stop), rng):
            ref = Ref(unit, row)
            if len(held) < size:
                held.append(ref)
                continue
            chosen = int(rng.random() * size)
            held[chosen], ref = ref, held[chosen]
            yield ref
    yield from shuffled(held, rng)


def shuffled(items: Iterable[T], rng: random.Random) -> list[T]:
    """The items in a random order."""
    return [item for _, _, item in sorted((rng.random(), n, item) for n, item in enumerate(items))]
