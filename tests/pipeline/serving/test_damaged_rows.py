"""Rows that contradict themselves give 404 with a message, not an internal error."""

import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import open_dataset
from pipeline.dataset.rows import DICTIONARY_COLUMNS
from pipeline.reader.dataset import Dataset
from tests.pipeline.serving.conftest import Client

ROWS = [
    ("width", None),
    ("width", 0),
    ("width", -5),
    ("height", None),
    ("height", 0),
    ("psnr", [None]),
    ("psnr", [float("nan"), None]),
    ("cumulative_bytes", [None]),
    ("cumulative_bytes", None),
    ("header", b""),
    ("key", None),
    ("source_format", "exe"),
]


def forge(dataset: Dataset, name: str, value: Any) -> Dataset:
    """Every row of the first file has this value; there is no index."""
    root = Path(dataset.url)
    manifest = max(root.glob("manifest-*.json"))
    content = json.loads(manifest.read_text())
    entry = content["files"][0]
    path = root / entry["path"]
    table = pq.read_table(path)
    column = pa.array([value] * len(table), table.schema.field(name).type)
    table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path, use_dictionary=list(DICTIONARY_COLUMNS))
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    entry |= {
        "bytes": len(data),
        "footer_bytes": footer,
        "footer_crc32": zlib.crc32(data[-footer:]),
        "index": None,
    }
    manifest.write_text(json.dumps(content))
    return open_dataset(dataset.url)


@pytest.mark.parametrize(("name", "value"), ROWS)
def test_damaged_rows(dataset: Dataset, connect: Client, name: str, value: Any) -> None:
    client = connect(forge(dataset, name, value))
    for path in ("images/s0000", "images/s0000/info", "originals/s0000", "images/s0000?layers=1"):
        answer = client.get(f"/v1/{path}")
        assert answer.status_code in (200, 404, 422), (path, answer.text)
    for query in ("", "?search=s", "?min_width=1", "?format=exe"):
        answer = client.get(f"/v1/images{query}")
        assert answer.status_code == 200, (query, answer.text)
        shown = [item for item in answer.json()["items"] if item["key"] == "s0000"]
        assert all(item["width"] > 0 and item["height"] > 0 for item in shown)
