"""Checks of plans, manifests, records and indexes before they are used.

They come from a store that others may write to; names in them become paths, and numbers become
requests and memory. All functions raise ValueError, or LookupError and TypeError for missing
values. The message continues the name of the file, which callers put before it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from codec.stream import bitstream

from .layout import MANIFEST_PART, data_path, index_path
from .parquet import MAX_FOOTER_BYTES
from .rows import SCHEMA_VERSION
from .totals import COUNTS, TALLIES

MAX_INDEX_BYTES = 1 << 32
MAX_FILE_BYTES = 1 << 50
# Of files of JSON, which can take thirty times more in memory. An entry of a manifest has about a
# kilobyte; a part of one has at most 8,192 of them, packed or not.
MAX_PLAN_BYTES, MAX_RECORD_BYTES, MAX_MANIFEST_BYTES = 1 << 20, 1 << 20, 1 << 28
MAX_PART_BYTES = 1 << 26
MAX_ROWS = (1 << 31) - 1  # of a data file: an index has them as int32
INDEX_FORMAT = 1  # of index files; those that name no format have format 1
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_MODEL_ID = re.compile(r"[0-9a-f]{64}")


def parse_json(data: bytes | str) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for anything else."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("is JSON, but no object")
    return value


def check_plan(parameters: Mapping[str, Any]) -> None:
    schema = parameters.get("schema", SCHEMA_VERSION)
    if schema != SCHEMA_VERSION:
        raise ValueError(f"has schema {schema!r}, this release reads {SCHEMA_VERSION}")
    _check_number("layers", parameters["layers"], bitstream.MAX_LAYERS)
    if not parameters["layers"]:
        raise ValueError("says that there are no layers")
    if "max_pixels" in parameters:
        _check_number("max_pixels", parameters["max_pixels"], 1 << 62)
    if not isinstance(parameters["model_id"], str) or not _MODEL_ID.fullmatch(
        parameters["model_id"]
    ):
        raise ValueError("names a model that is no sha256")


def check_part(told: Mapping[str, Any]) -> None:
    """What a manifest says of a part of it."""
    if not isinstance(told["path"], str) or not MANIFEST_PART.fullmatch(told["path"]):
        raise ValueError(f"names a part {told['path']!r:.80}")
    _check_number(f"{told['path']}: files", told["files"], MAX_PART_BYTES)
    _check_number(f"{told['path']}: ok", told["ok"], MAX_PART_BYTES * MAX_ROWS)
    bounds = [told[key] for key in ("key_min", "key_max") if key in told]
    if len(bounds) == 1 or not all(isinstance(bound, str) for bound in bounds):
        raise ValueError(f"says that {told['path']} has the keys {bounds!r:.80}")


def check_data_file(entry: Mapping[str, Any]) -> None:
    """An entry of a manifest's files."""
    name = entry["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"names a data file {name!r:.80}")
    if entry["path"] != data_path(name):
        raise ValueError(f"says that {name} is at {entry['path']!r:.80}")
    for key in ("rows", "ok", "bad", "filtered"):
        _check_number(f"{name}: {key}", entry.get(key, 0), MAX_ROWS)
    if entry["ok"] > entry["rows"]:
        raise ValueError(f"says that {name} has more pictures than rows")
    _check_file(name, entry, MAX_FILE_BYTES)
    index = entry.get("index")
    if index is not None:
        if not isinstance(index, Mapping):
            raise ValueError(f"says that the index of {name} is {index!r:.80}")
        if index["path"] != index_path(name):
            raise ValueError(f"says that the index of {name} is at {index['path']!r:.80}")
        if not isinstance(index["key_min"], str) or not isinstance(index["key_max"], str):
            raise ValueError(f"says that {name} has keys that are not text")
        _check_file(f"the index of {name}", index, MAX_INDEX_BYTES)
        _check_number(f"the index of {name}: footer_crc32", index["footer_crc32"], (1 << 32) - 1)


def check_record(record: Mapping[str, Any]) -> None:
    """A commit record, or an entry of a manifest with all that a check or a repair needs."""
    check_data_file({"path": data_path(record["name"]), **record})
    source = record["source"]
    texts = (record["sha256"], record["model_id"], source["url"], source["etag"])
    if not all(isinstance(text, str) for text in texts) or type(source["size"]) is not int:
        raise ValueError(f"does not name sha256, model and source of {record['name']}")
    for key in (*TALLIES, "quality"):
        tally = record.get(key, {})
        kinds = (list,) if key == "quality" else (int,)
        if not isinstance(tally, Mapping) or any(type(one) not in kinds for one in tally.values()):
            raise ValueError(f"says that {record['name']} has the {key} {tally!r:.80}")
    figures = (one for values in record.get("quality", {}).values() for one in values)
    if not all(one is None or type(one) in (int, float) for one in figures):
        raise ValueError(f"says what the quality of {record['name']} is, but not in numbers")
    for key in COUNTS:
        _check_number(f"{record['name']}: {key}", record.get(key, 0), 1 << 62)
    if record["ok"] + record["bad"] + record["filtered"] != record["rows"]:
        raise ValueError(f"says that {record['name']} has row counts that do not add up")


def check_index_row(
    row: Mapping[str, Any], file_bytes: int, file_rows: int, spans: Sequence[Mapping[str, Any]]
) -> None:
    """A row of an index, which must lie in its data file. ``spans`` are those of side columns."""
    if not 0 <= row["row_group"] <= row["row"] < file_rows:
        raise ValueError(f"names row {row['row']} of {file_rows}")
    places = [row[name] for name in ("offsets", "lengths", "crc32s")]
    if len({len(place) for place in places}) != 1 or len(places[0]) > bitstream.MAX_LAYERS:
        raise ValueError("does not tell offset, length and checksum of each layer")
    ranges = [*zip(*places[:2], strict=True), *((one["offset"], one["length"]) for one in spans)]
    for offset, length in ranges:
        if not (offset >= 0 and length >= 0 and offset + length <= file_bytes):
            raise ValueError(f"names {length} bytes at {offset} of a file of {file_bytes}")
    check_size(row)


def check_size(row: Mapping[str, Any]) -> None:
    """Width and height of a picture, which its header says too. May raise CorruptStreamError."""
    header = bitstream.unpack_header(row["header"])
    if (header.width, header.height) != (row["width"], row["height"]):
        raise ValueError("says another size than its header")


def check_index_format(metadata: Mapping[bytes, bytes] | None) -> None:
    """The key-value metadata of an index file."""
    version = (metadata or {}).get(b"strata_index", b"%d" % INDEX_FORMAT)
    if version != b"%d" % INDEX_FORMAT:
        found = version.decode(errors="replace")
        raise ValueError(f"has format {found}, this release reads {INDEX_FORMAT}")


def _check_file(name: str, entry: Mapping[str, Any], most: int) -> None:
    _check_number(f"{name}: bytes", entry["bytes"], most)
    _check_number(f"{name}: footer_bytes", entry["footer_bytes"], MAX_FOOTER_BYTES)
    if not 8 < entry["footer_bytes"] <= entry["bytes"]:
        raise ValueError(f"says that {name} has a footer of {entry['footer_bytes']} bytes")
    _check_number(f"{name}: footer_crc32", entry.get("footer_crc32", 0), (1 << 32) - 1)


def _check_number(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"says {name} {value!r:.80}, not a number from 0 to {most}")
