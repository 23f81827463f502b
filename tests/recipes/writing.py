"""A dataset written in this process, as the job does it but without Ray."""

from collections.abc import Sequence
from typing import Any

from codec import Codec
from codec.images import MAX_PIXELS
from codec.zoo import MODEL_FILE
from pipeline import commit
from pipeline.commit import Ledger, Plan
from pipeline.encoding import CompressSettings
from pipeline.retrieval.dataset import PLAN_NAME, Dataset, open_dataset
from pipeline.shards import expand_inputs
from pipeline.storage import Store
from pipeline.worker import ShardCompressor, ShardJob


def write_dataset(
    inputs: Sequence[str],
    url: str,
    codec: Codec,
    layers: int,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Dataset:
    """Compress tars with a codec's model; ``options`` are the storage options of both sides."""
    chosen: dict[str, Any] = {"layers": layers, "fit": False, **settings}
    about = {"model_id": codec.model_id, "codec": codec.codec, "max_pixels": MAX_PIXELS}
    plan = Plan(PLAN_NAME, {"format": commit.FORMAT_VERSION, **about, **chosen})
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
        compressor.run(ShardJob(commit.shard_name(shard, plan.fingerprint), shard))
    done, _ = Ledger(store, plan.fingerprint).completed("data", ".parquet")
    commit.publish_manifest(store, plan, done)
    return open_dataset(url, options)
