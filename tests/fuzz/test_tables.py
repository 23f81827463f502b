"""Untrusted Parquet files with any bytes changed: samples or a clear error, nothing else."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.shards import Shard, open_shard
from pipeline.sources.tar_members import ShardError
from tests.pipeline.makers import png

TABLE = {
    "image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(6)],
    "caption": [f"caption {n}" for n in range(6)],
    "label": [1, 2, None, 3, 4, 5],
    "tags": [["a"], [], None, ["b", "c"], ["d"], ["e"]],
}
DELTAS = {"use_dictionary": False, "column_encoding": {"caption": "DELTA_BYTE_ARRAY"}}


def changed(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, most of them in the footer; now and then cut."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        end = len(out) if rng.random() < 0.4 else min(2500, len(out))
        at = len(out) - 1 - rng.randrange(end)
        out[at] = rng.choice([0, 255, out[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return bytes(out[: rng.randrange(len(out))] if rng.random() < 0.05 else out)


@pytest.mark.parametrize("options", [{}, DELTAS, {"data_page_version": "2.0"}], ids=str)
@pytest.mark.parametrize("compression", ["snappy", "zstd", "NONE"])
def test_changed_tables_are_refused_in_words(
    tmp_path: Path, compression: str, options: dict[str, Any]
) -> None:
    path, rng = tmp_path / "x.parquet", random.Random(f"{compression}{options}")
    pq.write_table(pa.table(TABLE), path, compression=compression, row_group_size=4, **options)
    whole, outcomes = path.read_bytes(), Counter[str]()
    for _ in range(40):
        path.write_bytes(changed(whole, rng))
        facts = os.stat(path)
        try:
            shard = Shard(str(path), facts.st_size, f"mtime {facts.st_mtime_ns}")
            with open_shard(shard, tmp_path) as opened:
                for sample in opened.samples:
                    assert all(
                        len(opened.read(member)) == member.size for _, member in sample.fields
                    )
            outcomes["read"] += 1
        except ShardError as error:
            outcomes["refused" if str(path) in str(error) else str(error)] += 1
    assert outcomes.keys() == {"read", "refused"}, outcomes
