"""A dataset written in this process, like the job does it but without Ray."""

from collections.abc import Sequence
from typing import Any

from codec import Codec
from codec.images.files import MAX_PIXELS
from codec.models.zoo import MODEL_FILE
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset import layout
from pipeline.dataset.layout import FORMAT_VERSION, PLAN_NAME
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store


def write_dataset(
    inputs: Sequence[str],
    url: str,
    codec: Codec,
    layers: int,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Dataset:
    """Compress tars with a codec's model; ``options`` are the storage options of both sides."""
    chosen: dict[str, Any] = {"layers": layers, **settings}
    about = {"model_id": codec.model_id, "codec": codec.codec, "max_pixels": MAX_PIXELS}
    plan = Plan(PLAN_NAME, {"format": FORMAT_VERSION, **about, **chosen})
    store = Store(url, options)
    plan.establish(store)
    store.create_from(f"models/{codec.model_id}/{MODEL_FILE}", codec.model_path)
    compressor = ShardCompressor(
        CompressSettings(
            output=url,
            fingerprint=plan.fingerprint,
            model_id=codec.model_id,
            input_options=options or {},
            output_options=options or {},
            **chosen,
        )
    )
    for shard in expand_inputs(list(inputs), options):
        compressor.run(ShardJob(layout.shard_name(shard, plan.fingerprint), shard))
    done, _ = Ledger(store, plan.fingerprint).completed("data", ".parquet")
    publish_manifest(store, plan, done)
    return open_dataset(url, options)
