"""Compares the footers of data files with their records and with the manifest.

Each file takes two small requests: for its record and for its footer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from ..dataset.layout import DATA, INDEX, data_path, index_path, paths_in, record_path
from ..dataset.ledger import Ledger
from ..dataset.parquet import ROWS_PER_GROUP, read_footer
from ..dataset.plan import fingerprints_of
from ..dataset.records import entry_of
from ..dataset.rows import (
    METADATA_KEY,
    RecordError,
    column_bytes,
    footer_problem,
    schema,
)
from ..dataset.untrusted import parse_json
from ..reader.dataset import DataFile, Dataset
from ..stores.parquet_footer import described
from ..stores.reasons import describe
from .checks import Damage, read_record
from .rows import first_line


@dataclass(frozen=True)
class Checked:
    """The result of the quick check of one data file.

    ``file`` is described by the manifest; or by the record, if ``listing`` says what is wrong in
    the manifest. ``error`` says why the file could not be checked. It is ``disputed`` if manifest
    and record contradict each other in something that only a full check can decide.
    """

    file: DataFile
    damage: tuple[Damage, ...] = ()
    listing: str = ""
    error: str = ""
    disputed: bool = False
    bytes_read: int = 0


class FileChecker:
    """Compares listed data files with their records and footers; safe in threads."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.ledger = Ledger(dataset.store, dataset.fingerprint)
        self.sizes = paths_in(dataset.store, DATA, INDEX)
        self._schema = schema(dataset.num_layers)
        self._fingerprints = fingerprints_of(dataset.parameters, dataset.fingerprint)

    def check(self, file: DataFile) -> Checked:
        try:
            return self._check(file)
        except Exception as error:  # stores have exceptions of many kinds
            return Checked(file, error=describe(error))

    def _check(self, file: DataFile) -> Checked:
        name, record, missing = read_record(self.ledger, file.name)
        damage = []
        if missing:
            damage.append(_record_damage(file, missing))
        size = self.sizes.get(data_path(name))
        if size is None:
            return Checked(file, (_data_damage(file, ["is gone"]), *damage))
        descriptions = [file.record] if record is None else [file.record, record]
        description = next(
            (description for description in descriptions if description["bytes"] == size), None
        )
        if description is None:
            problem = f"has {size} bytes, and had {file.bytes} when it was written"
            return Checked(file, (_data_damage(file, [problem]), *damage))
        nbytes = int(description["footer_bytes"])
        try:
            checksums = {description.get("footer_crc32") for description in descriptions}
            found, problems = self._footer(file, size, nbytes, checksums)
        except RecordError as error:
            found, problems = {}, [str(error)]
        wrong = [_contradictions(found, description) for description in descriptions]
        if problems or all(wrong):
            damage.insert(0, _data_damage(file, [*problems, *wrong[0]]))
            return Checked(file, tuple(damage), bytes_read=nbytes)
        listing, disputed = "; ".join(wrong[0]), False
        if record is not None:
            if wrong[1]:
                text = f"does not fit its data file: {'; '.join(wrong[1])}"
                damage.append(_record_damage(file, text))
            elif listing:
                file = DataFile.of(entry_of(record))
            elif differing := _differences(file.record, record):
                text = f"it contradicts the manifest on {', '.join(differing)}"
                damage.append(_record_damage(file, text))
                disputed = True
        if file.index is not None:
            found_bytes = self.sizes.get(index_path(name))
            if found_bytes is None:
                damage.append(index_damage(file, "is gone"))
            elif found_bytes != file.index["bytes"]:
                had = file.index["bytes"]
                damage.append(index_damage(file, f"has {found_bytes} bytes, and had {had}"))
        return Checked(file, tuple(damage), listing, disputed=disputed, bytes_read=nbytes)

    def _footer(
        self, file: DataFile, size: int, nbytes: int, checksums: set[int | None]
    ) -> tuple[dict[str, Any], list[str]]:
        """The facts in the file's footer, and their problems.

        Raises RecordError for a footer that is damaged or not Strata's, and the store's errors.
        """
        store = self.dataset.store
        start = max(0, size - nbytes)
        tail = bytes(store.fs.cat_file(store.path(file.path), start=start, end=size))
        if problem := footer_problem(tail, nbytes, checksums):
            raise RecordError(problem)
        try:
            return self._read_footer(tail, start)
        except RecordError:
            raise
        except Exception as error:  # a damaged footer can hold anything
            raise RecordError(f"its footer cannot be read: {first_line(error)}") from error

    def _read_footer(self, tail: bytes, start: int) -> tuple[dict[str, Any], list[str]]:
        metadata = read_footer(tail)
        columns = described(metadata, start + len(tail))
        found = {"bytes": start + len(tail), "rows": metadata.num_rows, "footer_bytes": len(tail)}
        try:
            written = parse_json(metadata.metadata[METADATA_KEY])
            found |= {"source": written["source"], "model_id": written["model_id"]}
            ours = written["fingerprint"] in self._fingerprints
        except (TypeError, KeyError, ValueError):
            raise RecordError("another program wrote this Parquet file") from None
        problems = [] if ours else ["belongs to an archive with other parameters"]
        found["column_bytes"] = sizes = column_bytes(metadata)
        if not columns.equals(self._schema) or (sizes and sizes.keys() != {*self._schema.names}):
            problems.append("its columns are not those of this archive")
        return found, problems + _impossible_groups(metadata, start)


def _data_damage(file: DataFile, problems: list[str]) -> Damage:
    return Damage("data", file.path, problems, file.record["source"]["url"], file)


def _record_damage(file: DataFile, problem: str) -> Damage:
    path = record_path(file.name)
    return Damage("record", path, [problem], file.record["source"]["url"], file)


def index_damage(file: DataFile, problem: str) -> Damage:
    path = index_path(file.name)
    return Damage("index", path, [problem], file.record["source"]["url"], file)


def _contradictions(found: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """How the file differs from its record or manifest entry, in words."""
    different = [key for key in found if key in description and found[key] != description[key]]
    texts = []
    for key in different:
        if key == "column_bytes":
            names = sorted(
                name
                for name in {*found[key], *description[key]}
                if found[key].get(name) != description[key].get(name)
            )
            texts.append(f"its columns have other sizes: {', '.join(names)}")
        else:
            texts.append(f"its {key} is {found[key]}, not {description[key]}")
    return texts


def _differences(entry: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Keys in which a manifest's entry differs from the entry of its record."""
    made = entry_of(record)
    return sorted(key for key in {*entry, *made} if entry.get(key) != made.get(key))


def _impossible_groups(metadata: pq.FileMetaData, end: int) -> list[str]:
    """Row groups that Strata does not write, or that lie outside the file."""
    problems = []
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        if not 0 < group.num_rows <= ROWS_PER_GROUP:
            problems.append(f"row group {number} has {group.num_rows} rows")
        for column in map(group.column, range(group.num_columns)):
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset)
            if start < 4 or start + column.total_compressed_size > end:
                problems.append(f"row group {number}, {column.path_in_schema}: outside the file")
    if rows != metadata.num_rows:
        problems.append(f"its row groups have {rows} rows, its footer says {metadata.num_rows}")
    return problems
