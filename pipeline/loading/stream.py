"""Reads rows in a given order. Threads read their row groups ahead."""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from ..dataset.data_file import DamagedDataError
from ..reader.dataset import Dataset
from ..reader.rows import EVERY_ROW, ROW, RowFilter, read_pictures
from ..stores.filesystems import storage_errors
from .decoding import Sample, to_samples
from .order import Ref, Unit

AHEAD = 512  # rows whose row groups are read in advance
THREADS = 4


@dataclass(frozen=True)
class Wanted:
    """What to read: ``layers``, ``columns`` and side ``fields`` of rows that satisfy ``where``."""

    layers: int
    columns: Sequence[str] = ()
    where: RowFilter = EVERY_ROW
    fields: Sequence[str] = ()


class StreamedRow(NamedTuple):
    """A row's position in the order, and its sample or the error of reading it."""

    position: int
    sample: Sample | DamagedDataError


def stream(
    dataset: Dataset,
    refs: Iterator[Ref],
    wanted: Wanted,
    start: int = 0,
    waiting: Collection[int] = (),
) -> Iterator[StreamedRow]:
    """The pictures of ``refs`` at the positions ``waiting``, and from position ``start`` on.

    Other rows are not read. Holds the rows of each unfinished row group, and those of the next
    ``AHEAD`` rows. Raises StorageError if the store does not answer. Yields the error of a damaged
    row.
    """
    done: dict[Unit, list[int]] = {}  # rows that were yielded before, of unfinished units
    again: list[tuple[int, Ref]] = []
    for position, ref in enumerate(islice(refs, start)):
        if position in waiting:
            again.append((position, ref))
            continue
        rows = done.setdefault(ref.unit, [])
        rows.append(ref.row)
        if len(rows) == ref.unit.rows:
            del done[ref.unit]

    columns = [*wanted.columns]
    if wanted.fields and "fields" not in columns:
        columns.append("fields")

    def read(unit: Unit) -> dict[int, Sample] | DamagedDataError:
        due = np.setdiff1d(np.arange(unit.start, unit.stop), done.get(unit, []))
        with dataset.open(unit.file) as opened, storage_errors(opened.url, "cannot be read"):
            try:
                table = read_pictures(opened, unit.group, wanted.layers, columns, wanted.where, due)
                samples = to_samples(
                    table, wanted.layers, wanted.columns, opened.url, wanted.fields
                )
            except DamagedDataError as error:
                return error
        return dict(zip(table.column(ROW).to_pylist(), samples, strict=True))

    groups: dict[Unit, Future[dict[int, Sample] | DamagedDataError]] = {}
    left: Counter[Unit] = Counter()
    ahead: deque[tuple[int, Ref]] = deque()
    coming = chain(again, enumerate(refs, start))
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="strata-loading")

    try:
        while True:
            for position, ref in islice(coming, AHEAD - len(ahead)):
                ahead.append((position, ref))
                if ref.unit not in groups:
                    groups[ref.unit] = pool.submit(read, ref.unit)
                    left[ref.unit] = ref.unit.rows - len(done.get(ref.unit, []))
            if not ahead:
                return
            position, ref = ahead.popleft()
            found = groups[ref.unit].result()
            left[ref.unit] -= 1
            if not left[ref.unit]:
                del groups[ref.unit], left[ref.unit]
            if isinstance(found, DamagedDataError):
                yield StreamedRow(position, found)
            elif ref.row in found:
                yield StreamedRow(position, found.pop(ref.row))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
