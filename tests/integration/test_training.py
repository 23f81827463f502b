"""Training on two workers of Ray, one of which is killed: the result is the same."""

import json
import os
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.torch import load_file

from codec import load_codec
from codec.training.recipe import TRAINING_FILE
from codec.training.run_folder import checkpoint_step, newest_first
from pipeline.running import cluster
from pipeline.stores.store import Store
from tests.integration.processes import actors, kill
from tests.jobs.scripts import load_job
from tests.pipeline.makers import png, tar_bytes

PATIENCE = 200  # seconds, of which two cores that do nothing else need 30
STEPS = 8
pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """jobs/train.py in this process and on its Ray."""
    monkeypatch.setattr(cluster, "disconnect", lambda: None)
    return load_job("train")


@pytest.fixture
def shards(s3: str) -> str:
    """A folder of two tars of the same pictures, so that two workers draw as one does."""
    store = Store(f"{s3}/training-shards")
    members = [(f"{i}.png", png(i, 64, 64)) for i in range(6)]
    for shard in range(2):
        store.create(f"{shard}.tar", tar_bytes(members))
    return store.url


def checkpoints(store: Store) -> list[str]:
    return newest_first(list(store.sizes()))


def test_a_killed_worker_changes_nothing(
    ray_session: None,
    s3: str,
    train: ModuleType,
    shards: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = ["--config", "tiny", "--batch", "4", "--crop", "32", "--validate", f"{shards}/0.tar"]
    recipe += ["--warmup", "4", "--learning-rate", "0.001", "--checkpoint-minutes", "0"]
    recipe += ["--counted-crops", "4"]
    run = Store(f"{s3}/training-runs/{tmp_path.name}-{time.time_ns()}")
    again = [*recipe, "--data", shards, "--out", run.url]
    together = [*again, "--steps", str(STEPS), "--workers", "2", "--device", "cpu"]
    codes: list[int] = []
    job = threading.Thread(target=lambda: codes.append(train.main(together)), daemon=True)
    job.start()
    deadline = time.monotonic() + PATIENCE
    while not checkpoints(run) and job.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    victims = actors(os.getpid(), "RayTrainWorker")
    assert len(victims) == 2
    kill(victims[:1])
    assert job.is_alive()
    job.join(PATIENCE)
    assert codes == [0]
    said, deadline = "", time.monotonic() + PATIENCE
    wanted = {"starting again from the last checkpoint", "resumed"}
    # Ray brings what its processes print when it likes.
    while not all(words in said for words in wanted) and time.monotonic() < deadline:
        said += capsys.readouterr().out
        time.sleep(0.05)
    assert all(words in said for words in wanted)

    assert [checkpoint_step(name) for name in checkpoints(run)] == [STEPS, STEPS - 1]
    for name in run.sizes():
        run.fetch(name, tmp_path / name)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["workers"], card["pictures"]) == (2, {"?": 12})
    picture = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    codec = load_codec(tmp_path)
    np.testing.assert_array_equal(codec.decode(codec.encode([picture]))[0], picture)

    # One process alone that takes two batches for a step ends near: what it remembers of its
    # losses' sizes, and the order of additions, differ. What is exact is in
    # tests/codec/training/test_distributed.py.
    alone = [*recipe, "--data", f"{shards}/0.tar", "--accumulate", "2", "--out"]
    for steps in (1, STEPS):
        assert train.main([*alone, str(tmp_path / str(steps)), "--steps", str(steps)]) == 0
    folders = (tmp_path, tmp_path / str(STEPS), tmp_path / "1")
    ours, theirs, first = (load_file(folder / TRAINING_FILE) for folder in folders)
    off, way = (sum(float((x[n] - theirs[n]).square().sum()) for n in x) for x in (ours, first))
    assert off < 0.03 * way

    # Without Ray, and with one worker less, the same run goes on.
    capsys.readouterr()
    assert train.main([*again, "--steps", str(STEPS + 2)]) == 0
    assert f"at step {STEPS}" in capsys.readouterr().out
    lines = run.read("log.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [STEPS, STEPS + 2]
