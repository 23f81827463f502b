"""Reads the selected rows of a data file, with the layers that they need."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..dataset.data_file import OpenFile, within
from ..dataset.rows import STREAM_COLUMNS, column_bytes, stream_columns
from ..reader.dataset import Dataset
from ..reader.fetch import SIDE_COLUMNS
from ..reader.originals import ORIGINAL, PACKING
from ..reader.rows import RowFilter, take_rows
from ..running.stages import StageClock
from . import sparse
from .filter_language import parse_condition
from .layer_rule import LayerChoice, LayerRule

OnRead = Callable[[int], None]  # called with the number of bytes read
_STORED = [ORIGINAL, PACKING]  # the columns of an original


@dataclass(frozen=True)
class Chosen:
    """A row, and the layers to take of it (none if it is bad or filtered)."""

    row: Mapping[str, Any]
    take: LayerChoice

    @property
    def is_picture(self) -> bool:
        return bool(self.row["status"] == "ok")

    @property
    def by_original(self) -> bool:
        """Whether the original replaces layers that are not stored."""
        return self.take.original and self.row.get(ORIGINAL) is not None


class Selection:
    """Selects rows and layers of a dataset's files.

    Args:
        rule: how many layers of each picture.
        columns: further columns to read.
        condition: a ``--filter`` (``filter_language.py``), empty for none.
        originals: whether to read originals that replace layers.
    """

    def __init__(
        self,
        dataset: Dataset,
        rule: LayerRule,
        columns: Sequence[str],
        condition: str = "",
        *,
        originals: bool = True,
    ) -> None:
        self.rule = rule
        self._originals = originals
        self._lookup = dataset.lookup
        self._columns = list(dict.fromkeys([*columns, "status", "layers", *rule.columns]))
        expression = parse_condition(condition).expression if condition else None
        self._where = RowFilter.of(expression, dataset.url)

    def rows(
        self, opened: OpenFile, keys: Sequence[str] | None = None, on_read: OnRead = lambda _: None
    ) -> Iterator[Chosen]:
        """The rows, in the file's order, with one row group in memory at a time.

        With ``keys``, only rows with one of these keys. The columns that the selection depends on
        are read first; the others only if the row group has a selected row. ``on_read`` is called
        with the number of bytes read. Raises DamagedDataError.
        """
        on_read(opened.file.footer_bytes)
        for group, bounds in enumerate(opened.group_bounds()):
            if keys is None or within(keys, bounds):
                rows = self._of_group(opened, group, keys, on_read)
                while rows:
                    yield rows.popleft()  # frees its memory as soon as the caller drops it

    def _of_group(
        self, opened: OpenFile, group: int, keys: Sequence[str] | None, on_read: OnRead
    ) -> deque[Chosen]:
        places, layers = None, self.rule.most
        kept = [*self._columns]
        selecting = [
            *self._where.columns,
            *(["key"] if keys is not None else []),
            *self.rule.columns,
        ]
        if selecting:
            names = list(dict.fromkeys(selecting))
            small = _read(opened, group, names, on_read)
            places = self._where.numbers(small, keys)
            if not len(places):
                return deque()
            if self.rule.columns:
                layers, with_original = self._needs(small.take(places))
                kept += _STORED if with_original and self._originals else []
        if places is not None and sparse.are_few(
            opened, group, len(places), [*kept, *stream_columns(layers)]
        ):
            few = self._few(opened, group, places, kept, on_read)
            if few is not None:
                return few
        names = [*dict.fromkeys([*kept, *stream_columns(layers)])]
        rows = to_rows(take_rows(_read(opened, group, names, on_read), places))
        takes = [self._take(row) for row in rows]
        wanted = self._originals and any(take.original for take in takes)
        if wanted and ORIGINAL not in kept:
            originals = take_rows(_read(opened, group, _STORED, on_read), places)
            rows = [row | one for row, one in zip(rows, to_rows(originals), strict=True)]
        return deque(map(Chosen, rows, takes))

    def _few(
        self, opened: OpenFile, group: int, places: pa.Array, columns: list[str], on_read: OnRead
    ) -> deque[Chosen] | None:
        """``_of_group``, reading only the streams of these rows; None if the index is no help."""
        side = [name for name in SIDE_COLUMNS if name in columns]
        names = [name for name in dict.fromkeys([*columns, *STREAM_COLUMNS]) if name not in side]
        rows = to_rows(_read(opened, group, names, on_read).take(places))
        takes = [self._take(row) for row in rows]
        if self._originals and ORIGINAL not in side and any(take.original for take in takes):
            side.append(ORIGINAL)
        found = sparse.with_streams(
            self._lookup, opened, group, places.to_pylist(), rows, takes, side
        )
        if found is None:
            return None
        complete, nbytes = found
        on_read(nbytes)
        return deque(map(Chosen, complete, takes))

    def _needs(self, small: pa.Table) -> tuple[int, bool]:
        """The most layers that one of these rows needs, and whether one needs its original."""
        takes = [self._take(row) for row in small.to_pylist()]
        layers = max((take.layers for take in takes), default=0)
        return layers, any(take.original for take in takes)

    def _take(self, row: Mapping[str, Any]) -> LayerChoice:
        return self.rule.choose(row) if row["status"] == "ok" else LayerChoice(0)


def timed(rows: Iterator[Chosen], clock: StageClock) -> Iterator[Chosen]:
    """The rows. Counts the time of reading them as the stage ``download``."""
    while True:
        with clock.timed("download"):
            row = next(rows, None)
        if row is None:
            return
        yield row


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    return list(table.to_pylist())


def _read(opened: OpenFile, group: int, columns: list[str], on_read: OnRead) -> pa.Table:
    stored = column_bytes(opened.metadata, [group])
    on_read(sum(size for name, size in stored.items() if name in columns))
    return opened.read(group, columns)
