"""Datasets of a shipped model made in this process, without Ray, for servers and benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codec import load_codec
from codec.images.files import MAX_PIXELS
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset import layout
from pipeline.dataset.layout import PLAN_NAME
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store


def write_dataset(
    url: str, inputs: Sequence[str | Path], model: str = "uqdm", **changes: Any
) -> Dataset:
    """Compress tar shards as the job does; ``changes`` are fields of ``CompressSettings``."""
    codec = load_codec(model)
    settings: dict[str, Any] = {"layers": codec.archive_layers, **changes}
    parameters = {"format": 1, "model_id": codec.model_id, "codec": codec.codec}
    plan = Plan(PLAN_NAME, parameters | {"max_pixels": MAX_PIXELS} | settings)
    store = Store(url)
    plan.establish(store)
    store.create_from(f"models/{codec.model_id}/model.safetensors", codec.model_path)
    compressor = ShardCompressor(
        CompressSettings(
            output=url, fingerprint=plan.fingerprint, model_id=codec.model_id, **settings
        )
    )
    for shard in expand_inputs([str(path) for path in inputs]):
        compressor.run(ShardJob(layout.shard_name(shard, plan.fingerprint), shard))
    done, _ = Ledger(store, plan.fingerprint).completed("data", ".parquet")
    publish_manifest(store, plan, done)
    return open_dataset(url)
