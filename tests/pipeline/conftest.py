"""A dataset made in this process, without Ray, by a codec that is quick and exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codec.images.files import MAX_PIXELS
from pipeline.compress import job as compress_job
from pipeline.compress.quality import target_quality
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset import layout, models
from pipeline.dataset.layout import PLAN_NAME
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.running import cluster
from pipeline.running import job as running_job
from pipeline.running.cluster import WorkerShape
from pipeline.running.tasks import Outcome, Task
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store
from tests.pipeline.makers import ToyCodec

Make = Callable[..., Dataset]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyCodec:
    """The toy codec, which every ``load_codec`` of this process now gives."""
    path = tmp_path / "toy.safetensors"
    path.write_bytes(b"the toy model")
    codec = ToyCodec(path)
    monkeypatch.setattr(models, "load_codec", lambda *_, **__: codec)
    monkeypatch.setattr(compress_job, "load_codec", lambda *_, **__: codec)
    return codec


@pytest.fixture
def make_dataset(toy: ToyCodec, tmp_path: Path) -> Make:
    """``make_dataset(inputs, output=..., **settings)``: the whole job with one worker, in here."""

    def make(inputs: list[str], output: str | None = None, **changes: Any) -> Dataset:
        url = output or str(tmp_path / "dataset")
        settings: dict[str, Any] = {"layers": 4, **changes}
        plan = Plan(
            PLAN_NAME,
            {"format": 1, "model_id": toy.model_id, "codec": "uqdm", "max_pixels": MAX_PIXELS}
            | settings,
        )
        if target := settings.get("target_quality"):
            settings["target_quality"] = target_quality(target)
        store = Store(url)
        plan.establish(store)
        store.create_from(f"models/{toy.model_id}/model.safetensors", toy.model_path)
        compressor = ShardCompressor(
            CompressSettings(
                output=url, fingerprint=plan.fingerprint, model_id=toy.model_id, **settings
            )
        )
        for shard in expand_inputs(inputs):
            compressor.run(ShardJob(layout.shard_name(shard, plan.fingerprint), shard))
        done, _ = Ledger(store, plan.fingerprint).completed("data", ".parquet")
        publish_manifest(store, plan, done)
        return open_dataset(url)

    return make


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole jobs with one worker in this process."""

    def run_tasks(
        kind: type, settings: Any, tasks: list[Task], shape: object, policy: object, watcher: Any
    ) -> list[Outcome]:
        one = kind(settings)
        watcher.ready()
        outcomes = [Outcome(task, one.run(*task.arguments), attempts=1) for task in tasks]
        watcher.update(outcomes, [{"worker": 0, **one.status()}])
        return outcomes

    monkeypatch.setattr(cluster, "connect", lambda address: None)
    monkeypatch.setattr(cluster, "share", lambda *_: WorkerShape(1, 1.0, 0.0, "cpu"))
    monkeypatch.setattr(running_job, "run_tasks", run_tasks)
