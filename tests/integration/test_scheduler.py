"""The driver's loop on a real Ray: every task ends in one outcome, whatever its worker does."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.running.cluster import ClusterError, WorkerShape
from pipeline.running.scheduler import run_tasks
from pipeline.running.tasks import Outcome, Policy, Task
from tests.integration.fakes import (
    FakeWorker,
    LateWorker,
    SearchableWorker,
    SlowOpeningWorker,
    SteadyWorker,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


class Recorder:
    """A watcher that remembers what it heard, and asks to stop after some outcomes."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.seen: list[Outcome] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.slots: set[int] = set()
        self.readied = 0

    def ready(self) -> None:
        self.readied += 1

    def event(self, kind: str, **facts: Any) -> None:
        self.events.append((kind, facts))

    def update(self, new: list[Outcome], workers: list[dict[str, Any]]) -> str:
        self.seen += new
        self.slots.update(worker["worker"] for worker in workers)
        enough = self.stop_after is not None and len(self.seen) >= self.stop_after
        return "enough" if enough else ""

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def run(
    folder: Path,
    behaviours: dict[str, str],
    worker: type = FakeWorker,
    recorder: Recorder | None = None,
    workers: int = 2,
    **policy: Any,
) -> dict[str, Outcome]:
    tasks = [Task(name, (name, behaviour)) for name, behaviour in behaviours.items()]
    shape = WorkerShape(workers=workers, cpus=1.0, gpus=0.0, device="cpu")
    recorder = recorder or Recorder()
    outcomes = list(run_tasks(worker, str(folder), tasks, shape, Policy(**policy), recorder))
    names = sorted(outcome.task.name for outcome in outcomes)
    if recorder.stop_after is None:
        assert names == sorted(behaviours)
    assert recorder.seen == outcomes
    assert recorder.slots <= set(range(workers))
    assert recorder.readied == 1
    return {outcome.task.name: outcome for outcome in outcomes}


def calls(folder: Path, name: str) -> int:
    return (folder / name).stat().st_size


def test_faults_are_retried_and_counted(tmp_path: Path) -> None:
    behaviours = {f"good{n}": "" for n in range(5)}
    behaviours |= {"damaged": "permanent", "hopeless": "always", "passing": "once"}
    behaviours |= {"store": "store once"}
    recorder = Recorder()
    outcomes = run(tmp_path, behaviours, recorder=recorder)
    for name in (*(f"good{n}" for n in range(5)), "passing", "store"):
        assert outcomes[name].result == {"name": name, "omp": "1", "skip": {}}
    for name in ("passing", "store"):
        assert outcomes[name].attempts == calls(tmp_path, name) == 2
    assert outcomes["damaged"].attempts == calls(tmp_path, "damaged") == 1
    assert outcomes["damaged"].error == "StrataError: damaged is damaged"
    assert outcomes["hopeless"].attempts == calls(tmp_path, "hopeless") == 3
    assert outcomes["hopeless"].error == "ValueError: again and again"
    assert not outcomes["hopeless"].crashed
    assert recorder.kinds().count("attempt_failed") == 4


def test_a_task_that_kills_its_worker_does_not_stop_the_others(tmp_path: Path) -> None:
    behaviours = {"killer": "die", "unlucky": "die once", "good1": "", "good2": "", "good3": ""}
    recorder = Recorder()
    outcomes = run(tmp_path, behaviours, recorder=recorder, attempts=2)
    killer = outcomes.pop("killer")
    assert killer.crashed
    # two deaths alone, and at most one in company, which nobody can be blamed for: then another's
    # death may come before this task has begun
    assert 2 <= calls(tmp_path, "killer") <= killer.attempts <= 3
    assert "worker died near sample 'the-last-key'" in killer.error
    for name, outcome in outcomes.items():
        assert outcome.result is not None, name
        assert outcome.attempts <= 3
    assert "worker_died" in recorder.kinds()


def test_a_worker_that_dies_for_lack_of_memory_says_so(tmp_path: Path) -> None:
    outcomes = run(tmp_path, {"large": "starve", "good": ""}, attempts=1)
    assert "for lack of memory (it held 5.37 GB)" in outcomes["large"].error
    assert "--batch-size" in outcomes["large"].error


def test_the_sample_that_kills_is_found_and_left_out(tmp_path: Path) -> None:
    behaviours = {"bad": "poison 4 11", "good": "", "other": "poison 12", "rest": "slow"}
    recorder = Recorder()
    outcomes = run(tmp_path, behaviours, SearchableWorker, recorder, attempts=1)
    found = {name: outcome.result["skip"] for name, outcome in outcomes.items() if outcome.result}
    assert set(found["bad"]) == {4, 11}
    assert set(found["other"]) == {12}
    assert found["good"] == found["rest"] == {}
    assert found["bad"][4].startswith("kills its worker: its worker died")
    samples = [facts["sample"] for kind, facts in recorder.events if kind == "deadly_sample_found"]
    assert sorted(samples) == [4, 11, 12]
    assert calls(tmp_path, "bad.probes") <= 2 * (1 + 4 + 2)  # halving, not one by one


def test_a_sample_that_hangs_is_found_too(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path, {"bad": "poison-hang 12"}, SearchableWorker, attempts=1, timeout=3, workers=1
    )
    assert outcomes["bad"].result is not None
    assert set(outcomes["bad"].result["skip"]) == {12}
    assert "no sample for 3 s" in outcomes["bad"].result["skip"][12]


def test_a_search_allows_for_slow_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that takes long to fetch does so for every probe, however few samples it tries."""
    monkeypatch.setattr("pipeline.running.scheduler.PROBE_SECONDS", 0.5)
    outcomes = run(
        tmp_path, {"bad": "poison 12"}, SlowOpeningWorker, attempts=1, timeout=6, workers=1
    )
    assert outcomes["bad"].result is not None
    assert set(outcomes["bad"].result["skip"]) == {12}


def test_a_search_without_a_culprit_ends(tmp_path: Path) -> None:
    outcomes = run(tmp_path, {"killer": "die", "good": ""}, SearchableWorker, attempts=1)
    assert outcomes["killer"].result is None
    assert "opening the shard already kills it" in outcomes["killer"].error
    assert outcomes["good"].result is not None


def test_timeouts(tmp_path: Path) -> None:
    started = time.monotonic()
    behaviours = {"slow": "hang", "stuck": "hang once", "good": "", "fine": "slow"}
    outcomes = run(tmp_path, behaviours, attempts=2, timeout=4)
    assert time.monotonic() - started < 250
    assert "no sample for 4 s" in outcomes["slow"].error
    assert outcomes["slow"].attempts == 2
    assert outcomes["stuck"].attempts == 2
    for name in ("stuck", "good", "fine"):
        assert outcomes[name].result is not None


def test_a_task_that_hangs_beside_others_is_late_too(tmp_path: Path) -> None:
    """The others go on, so its worker is never without progress."""
    behaviours = {"stuck": "hang aside", **{f"good{n}": "short" for n in range(100)}}
    recorder = Recorder()
    outcomes = run(tmp_path, behaviours, recorder=recorder, workers=1, attempts=1, timeout=4)
    late = [facts for kind, facts in recorder.events if kind == "worker_died"]
    assert "no sample for 4 s" in outcomes.pop("stuck").error
    assert len(late[0]["shards"]) > 1  # it was not the last one left
    assert all(outcome.result is not None for outcome in outcomes.values())


def test_waiting_behind_a_slow_task_is_not_being_late(tmp_path: Path) -> None:
    behaviours = {f"slow{n}": "slow" for n in range(4)}  # 8 s for one worker
    outcomes = run(tmp_path, behaviours, workers=1, attempts=1, timeout=7)
    assert all(outcome.result is not None for outcome in outcomes.values())


def test_a_task_that_gets_on_is_not_late(tmp_path: Path) -> None:
    """However long it takes in all, and however long another one waits for its turn."""
    behaviours = {"long": "steady", "next": "steady"}  # 2 x 8 s
    outcomes = run(tmp_path, behaviours, SteadyWorker, workers=1, attempts=1, timeout=4)
    assert all(outcome.result is not None for outcome in outcomes.values())


def test_stopping_lets_workers_save_what_they_have(tmp_path: Path) -> None:
    recorder = Recorder(stop_after=1)
    behaviours = {"good": "", "long": "for ever", "other": "for ever"}
    outcomes = run(tmp_path, behaviours, SteadyWorker, recorder, workers=1, drain=20)
    assert list(outcomes) == ["good"]  # what was paused has neither failed nor succeeded
    assert (tmp_path / "saved").read_text() in ("long", "other")
    assert recorder.kinds() == ["draining"]


def test_stopping_finishes_what_is_under_way(tmp_path: Path) -> None:
    recorder = Recorder(stop_after=1)
    behaviours = {f"slow{n}": "slow" for n in range(12)}
    outcomes = run(tmp_path, behaviours, recorder=recorder, workers=1, drain=30)
    assert 1 < len(outcomes) <= 4  # three were in flight, and nothing was begun after that
    assert all(outcome.result is not None for outcome in outcomes.values())
    assert recorder.kinds() == ["draining"]


def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    recorder = Recorder(stop_after=1)
    started = time.monotonic()
    outcomes = run(
        tmp_path, {"good": "", "stuck": "hang later"}, recorder=recorder, workers=1, drain=2
    )
    assert list(outcomes) == ["good"]
    assert time.monotonic() - started < 250


def test_workers_that_cannot_start_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "cannot-start").touch()
    with pytest.raises(ClusterError, match="the model is gone"):
        run(tmp_path, {"a": "", "b": ""})


def test_a_broken_worker_does_not_take_all_tasks_down(tmp_path: Path) -> None:
    outcomes = run(tmp_path, {f"t{n}": "not here" for n in range(20)})
    assert [name for name, outcome in outcomes.items() if outcome.result is None] == []


def test_a_worker_whose_start_fails_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "store-is-away").touch()
    recorder = Recorder()
    outcomes = run(tmp_path, {"a": "", "b": ""}, recorder=recorder, workers=1)
    assert all(outcome.result is not None for outcome in outcomes.values())
    assert recorder.kinds() == ["worker_cannot_start"]


def test_a_worker_that_leaves_is_replaced(tmp_path: Path) -> None:
    outcomes = run(tmp_path, {"leaves": "exit once", "good": ""}, workers=1)
    assert all(outcome.result is not None for outcome in outcomes.values())


def test_the_first_worker_leaves_work_for_those_that_start(tmp_path: Path) -> None:
    outcomes = run(tmp_path, {"a": "", "b": ""}, worker=LateWorker)
    assert len({outcome.result["pid"] for outcome in outcomes.values() if outcome.result}) == 2


def test_an_error_that_cannot_be_read_is_no_death(tmp_path: Path) -> None:
    recorder = Recorder()
    outcomes = run(tmp_path, {"odd": "odd", "good": "slow"}, recorder=recorder, attempts=2)
    assert outcomes["odd"].result is None
    assert outcomes["good"].attempts == 1
    assert "worker_died" not in recorder.kinds()
