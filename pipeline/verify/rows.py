"""Checks the rows of a data file for contradictions, without decoding pictures."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from codec.errors import CorruptStreamError, StrataError
from codec.images.alpha import unpack_alpha
from codec.stream.bitstream import MAX_PIXELS, unpack_header, unpack_layer

from ..dataset.parquet import ParquetFile
from ..dataset.rows import layer_column, original_file

STATUSES = ("ok", "bad", "filtered")


def read_group(
    checked: ParquetFile,
    unchecked: ParquetFile,
    group: int,
    names: list[str],
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], set[str]]:
    """A row group's rows, and the columns in it that cannot be read (their values are None).

    ``report`` is called for every damaged column. A column whose pages fail their checksum but can
    still be parsed is not lost: its values show which rows are damaged.
    """
    try:
        table = checked.read_row_group(group, columns=names)
        # pyarrow leaves out columns that the footer does not have.
        if table.num_columns == len(names):
            return table.to_pylist(), set()
    except Exception as error:
        reraise_passing(error)
    count = checked.metadata.row_group(group).num_rows
    columns: dict[str, list[Any]] = {}
    lost = set()
    for name in names:
        try:
            values = _column(checked, group, name, count)
        except Exception as error:
            reraise_passing(error)
            report(f"row group {group}, column {name}: {first_line(error)}")
            try:
                values = _column(unchecked, group, name, count)
            except Exception as second:
                reraise_passing(second)
                lost.add(name)
                values = [None] * count
        columns[name] = values
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ], lost


def _column(file: ParquetFile, group: int, name: str, count: int) -> list[Any]:
    values: list[Any] = file.read_row_group(group, columns=[name]).column(name).to_pylist()
    if len(values) != count:
        raise ValueError(f"has {len(values)} of {count} values")
    return values


def row_problems(
    row: Mapping[str, Any], position: int, lost: set[str], model_id: str, layers: int
) -> Iterator[str]:
    """The problems of a row, found without decoding its stream. Ignores ``lost`` columns."""
    if "index" not in lost and row["index"] != position:
        yield f"its index is {row['index']}, but it is row {position}"
    if "status" not in lost and row["status"] not in STATUSES:
        yield f"its status is {row['status']!r}"
    if not lost & {"original", "original_packing", "source_bytes", "source_sha256"}:
        yield from _original_problems(row)
    if row["alpha"] is not None:
        try:
            shape = unpack_alpha(row["alpha"], max_pixels=MAX_PIXELS).shape
            if not lost & {"width", "height"} and shape != (row["height"], row["width"]):
                yield f"its alpha channel has the size {shape[1]}x{shape[0]}"
        except StrataError as error:
            yield str(error)
    if "header" in lost:
        return
    if row["header"] is not None:
        yield from _stream_problems(row, lost, model_id, layers)
    elif row["status"] == "ok":
        yield "has no stream"


def _original_problems(row: Mapping[str, Any]) -> Iterator[str]:
    try:
        file = original_file(row)
    except CorruptStreamError as error:
        yield str(error)
        return
    if file is None:
        if row["original_packing"] is not None:
            yield f"its original has a packing ({row['original_packing']!r}) but no bytes"
        return
    same = hashlib.sha256(file).digest() == row["source_sha256"]
    if not same or len(file) != row["source_bytes"]:
        yield "its original has another size or sha256 than its row says"


def _stream_problems(
    row: Mapping[str, Any], lost: set[str], model_id: str, layers: int
) -> Iterator[str]:
    header = row["header"]
    try:
        info = unpack_header(header)
    except StrataError as error:
        yield str(error)
        return
    if not lost & {"width", "height"} and (info.width, info.height) != (
        row["width"],
        row["height"],
    ):
        yield f"its header says {info.width}x{info.height}, its row {row['width']}x{row['height']}"
    if info.model != model_id[:8]:
        yield f"its stream was written with another model, {info.model}..."
    names = [layer_column(number) for number in range(layers)]
    for number, name in enumerate(names):
        if row[name] is not None:
            try:
                unpack_layer(model_id, header, number, row[name])
            except StrataError as error:
                yield str(error)
    if lost & {"layers", *names}:
        return
    stored = [number for number, name in enumerate(names) if row[name] is not None]
    if stored != list(range(row["layers"] or 0)):
        yield f"it stores the layers {stored}, but its row says {row['layers']}"
        return
    sizes = accumulate((len(row[name]) for name in names[: len(stored)]), initial=len(header))
    if "cumulative_bytes" not in lost and row["cumulative_bytes"] != list(sizes)[1:]:
        yield "its layers have other sizes than its row says"


def reraise_passing(error: Exception) -> None:
    """Raise errors that are no damage: lack of memory, and errors of the device."""
    if isinstance(error, NotImplementedError):  # Arrow's error for an encoding that does not exist
        return
    if isinstance(error, MemoryError | RuntimeError):
        raise error


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
