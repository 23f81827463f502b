"""Datasets whose streams are random bytes, so that making them takes no codec."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codec import EncodedImage
from codec.stream.bitstream import StreamHeader, pack_header
from pipeline.dataset.facts import inspect_file
from pipeline.dataset.index_writer import index_table, publish_index
from pipeline.dataset.layout import FORMAT_VERSION, PLAN_NAME
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.rows import Row, RowWriter
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.stores.store import Store

MODEL = "0" * 64
SIZES = (300, 900, 2500, 7000, 30000)  # bytes of the layers of a picture of 768x512, about


def rows(
    keys: Iterable[str], sizes: Sequence[int] = SIZES, seed: int = 0, **more: Any
) -> Iterable[Row]:
    """Pictures with layers of about these sizes."""
    random = np.random.default_rng(seed)
    for index, key in enumerate(keys):
        width = int(random.integers(64, 2000))
        header = pack_header(StreamHeader("uqdm", width, 512, MODEL[:8]))
        layers = tuple(random.bytes(int(size * random.uniform(0.7, 1.3))) for size in sizes)
        yield Row(key, index, encoded=EncodedImage(header, layers), source_bytes=50_000, **more)


def write_dataset(
    url: str,
    shards: Sequence[Iterable[Row]],
    layers: int = len(SIZES),
    *,
    indexed: bool = True,
    options: dict[str, Any] | None = None,
) -> Dataset:
    """A dataset of these rows, one data file for each shard, as the compressing job leaves it."""
    store = Store(url, options)
    parameters = {"format": FORMAT_VERSION, "model_id": MODEL, "layers": layers, "max_pixels": 0}
    plan = Plan(PLAN_NAME, parameters)
    plan.establish(store)
    ledger = Ledger(store, plan.fingerprint)
    for number, shard in enumerate(shards):
        name = f"{number:03d}-{number:012x}"
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "data.parquet"
            source = {"url": f"{number:03d}.tar", "size": 1, "etag": ""}
            told = {"fingerprint": plan.fingerprint, "model_id": MODEL, "source": source}
            writer = RowWriter(local, layers, told)
            for row in shard:
                writer.append(row)
            writer.close()
            record: dict[str, Any] = inspect_file(local, layers).to_json() | told
            store.create_from(f"data/{name}.parquet", local)
            if indexed:
                table = index_table(local, layers)
                record["index"] = publish_index(store, name, table, Path(folder))
            ledger.commit(name, record)
    done, _ = ledger.completed("data", ".parquet")
    publish_manifest(store, plan, done)
    return open_dataset(url, options)
