"""The driver's loop on a real Ray: every task ends in one outcome, whatever its worker does."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import ClusterError, WorkerShape
from pipeline.scheduler import Outcome, Policy, Task, run_tasks
from tests.integration.fakes import FakeWorker

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


def run(folder: Path, behaviours: dict[str, str], **policy: Any) -> dict[str, Outcome]:
    tasks = [Task(name, (name, behaviour)) for name, behaviour in behaviours.items()]
    shape = WorkerShape(workers=2, cpus=1.0, gpus=0.0, device="cpu")
    seen: list[Outcome] = []
    under_way: set[str] = set()

    def on_progress(new: list[Outcome], progress: dict[str, dict[str, Any]]) -> None:
        seen.extend(new)
        under_way.update(progress)

    outcomes = run_tasks(FakeWorker, str(folder), tasks, shape, Policy(**policy), on_progress)
    assert sorted(outcome.task.name for outcome in outcomes) == sorted(behaviours)
    assert seen == outcomes
    assert under_way <= set(behaviours)
    return {outcome.task.name: outcome for outcome in outcomes}


def calls(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size


def test_faults_are_retried_and_counted(tmp_path: Path) -> None:
    behaviours = {f"good{n}": "" for n in range(5)}
    behaviours |= {"damaged": "permanent", "hopeless": "always", "passing": "once"}
    outcomes = run(tmp_path, behaviours)
    for name in (*(f"good{n}" for n in range(5)), "passing"):
        assert outcomes[name].result == {"name": name, "omp": "1"}
    assert outcomes["passing"].attempts == calls(tmp_path, "passing") == 2
    assert outcomes["damaged"].attempts == calls(tmp_path, "damaged") == 1
    assert outcomes["damaged"].error == "StrataError: damaged is damaged"
    assert outcomes["hopeless"].attempts == calls(tmp_path, "hopeless") == 3
    assert outcomes["hopeless"].error == "ValueError: again and again"
    assert not outcomes["hopeless"].crashed


def test_a_task_that_kills_its_worker_does_not_stop_the_others(tmp_path: Path) -> None:
    behaviours = {"killer": "die", "unlucky": "die once", "good1": "", "good2": ""}
    outcomes = run(tmp_path, behaviours, attempts=2)
    assert outcomes["killer"].crashed
    assert outcomes["killer"].attempts == calls(tmp_path, "killer") == 2
    assert "worker died near sample 'the-last-key'" in outcomes["killer"].error
    for name in ("unlucky", "good1", "good2"):
        assert outcomes[name].result is not None
    assert outcomes["unlucky"].attempts == 2


def test_deadlines(tmp_path: Path) -> None:
    started = time.monotonic()
    outcomes = run(
        tmp_path, {"slow": "hang", "stuck": "hang once", "good": ""}, attempts=2, deadline=4
    )
    assert time.monotonic() - started < 60
    assert "longer than 4 s" in outcomes["slow"].error
    assert outcomes["slow"].attempts == 2
    assert outcomes["stuck"].result is not None
    assert outcomes["good"].result is not None


def test_workers_that_cannot_start_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "cannot-start").touch()
    with pytest.raises(ClusterError, match="the model is gone"):
        run(tmp_path, {"a": "", "b": ""})
