"""When a job stops early, and when it does not."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.compress.job
import pipeline.dataset.job
from pipeline.compress.job import CompressOptions, compress
from pipeline.reader.dataset import DatasetError, open_dataset
from pipeline.running.job import JobWatcher
from pipeline.running.progress.progress import Progress
from pipeline.running.progress.summary import Summary
from pipeline.running.tasks import Outcome, Task
from pipeline.stores.store import StorageError, Store
from tests.pipeline.makers import ToyCodec, png, samples, write_tar


def outcome(number: int, ok: int, bad: int, reason: str = "broken") -> Outcome:
    record: dict[str, Any] = {"rows": ok + bad, "ok": ok, "bad": bad, "reasons": {reason: bad}}
    return Outcome(Task(f"s{number}", ()), record if ok + bad else None)


def watcher(fraction: float, **options: Any) -> JobWatcher:
    sizes = {f"s{n}": 1 for n in range(99)}
    return JobWatcher(
        Progress("testing", sizes, out=io.StringIO()), max_bad_fraction=fraction, **options
    )


def test_a_job_in_which_most_samples_fail_stops() -> None:
    watching = watcher(0.25)
    assert watching.update([outcome(0, 5, 100)], []) == ""  # too few to judge by
    assert watching.update([outcome(1, 300, 0)], []) == ""  # 100 of 405
    reason = watching.update([outcome(2, 0, 10, "no such codec")], [])
    assert reason == (
        "110 of 415 samples failed, more than --max-bad-fraction 0.25 "
        "(most often: broken, no such codec)"
    )
    assert watching.update([outcome(3, 5000, 0)], []) == reason  # it stays stopped


def test_a_job_in_which_most_shards_fail_stops() -> None:
    watching = watcher(0.5)
    assert watching.update([outcome(n, 0, 0) for n in range(9)], []) == ""
    assert "10 of 10 shards failed" in watching.update([outcome(9, 0, 0)], [])


def test_a_fraction_of_one_never_stops() -> None:
    assert watcher(1.0).update([outcome(n, 0, 100) for n in range(20)], []) == ""


def test_somebody_else_may_stop_a_job() -> None:
    wishes = iter(["", "", "enough"])
    watching = watcher(1.0, stop=lambda: next(wishes, ""))
    assert [watching.update([], []) for _ in range(4)] == ["", "", "enough", "enough"]


@pytest.fixture
def hopeless(tmp_path: Path) -> str:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        broken = [(f"x{n}.png", png(n)[:40]) for n in range(150)]
        write_tar(folder / f"{number}.tar", [*samples(10), *broken])
    return str(folder)


def run(toy: ToyCodec, inputs: str, output: Path, **options: Any) -> Summary:
    return compress(
        CompressOptions((inputs,), str(output), str(toy.model_path), store_layers=4, **options)
    )


def test_what_was_committed_before_a_stop_stays(
    toy: ToyCodec, hopeless: str, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops_at_once(
        kind: type, settings: Any, tasks: list[Task], shape: Any, policy: Any, watching: Any
    ) -> list[Outcome]:
        one, outcomes = kind(settings), []
        for task in tasks:
            outcomes.append(Outcome(task, one.run(*task.arguments), attempts=1))
            if watching.update(outcomes[-1:], []):
                break
        return outcomes

    monkeypatch.setattr("pipeline.running.job.run_tasks", stops_at_once)
    summary = run(toy, hopeless, tmp_path / "set")
    assert summary.exit_code == 1
    assert "300 of 320 samples failed" in summary.stopped
    assert "stopped: 300 of 320" in "\n".join(summary.lines())
    assert (summary.ok, summary.bad) == (20, 300)
    with pytest.raises(DatasetError, match="run it again to resume"):
        open_dataset(str(tmp_path / "set"))
    more = run(toy, hopeless, tmp_path / "set", max_bad_fraction=1.0)
    assert (more.resumed, more.stopped, more.ok, more.bad) == (2, "", 30, 450)
    assert len(open_dataset(str(tmp_path / "set"))) == 30


def test_being_told_to_stop_when_all_is_done(
    toy: ToyCodec, tmp_path: Path, without_ray: None
) -> None:
    tar = str(write_tar(tmp_path / "a.tar", samples(3)))
    options = CompressOptions((tar,), str(tmp_path / "set"), str(toy.model_path), store_layers=4)
    summary = compress(options, lambda: "a signal asked for it")
    assert (summary.stopped, summary.exit_code) == ("", 0)
    assert len(open_dataset(str(tmp_path / "set"))) == 3


def test_retrying_what_was_bad(
    toy: ToyCodec, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*samples(3), ("unlucky.png", png(5, 24, 13)), ("unhappy.png", png(6, 26, 13))]
    tar = str(write_tar(tmp_path / "a.tar", files))
    write_tar(tmp_path / "b.tar", samples(2, 10))
    inputs, output = str(tmp_path / "*.tar"), tmp_path / "set"
    assert run(toy, inputs, output).bad == 2
    still = run(toy, inputs, output, retry="bad")
    assert (still.bad, still.resumed, still.exit_code) == (2, 1, 1)
    assert len(list((output / "data").iterdir())) == 2  # nothing was better, so nothing is new

    for height, ok in ((24, 6), (26, 7)):  # the codec learns one size after the other
        learned = toy.encode

        def encode(images: Any, _height: int = height, _old: Any = learned, **options: Any) -> Any:
            if len(images) == 1 and images[0].shape[0] == _height:
                return [toy._encode(images[0], options["layers"])]
            return _old(images, **options)

        monkeypatch.setattr(toy, "encode", encode)
        assert run(toy, inputs, output).ok == ok - 1  # not asked for
        better = run(toy, inputs, output, retry="bad")
        assert (better.ok, better.bad) == (ok, 7 - ok)
    dataset = open_dataset(str(output))
    keys = sorted(dataset.keys())
    assert keys == ["s0000", "s0001", "s0002", "s0010", "s0011", "unhappy", "unlucky"]
    assert [file.record["generation"] for file in dataset.files] == [2, 0]
    assert dataset.files[0].record["source"]["url"] == tar
    assert run(toy, inputs, output, retry="bad").resumed == 2


def test_jobs_that_end_together_list_each_others_files(
    toy: ToyCodec, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job has read the records and not published yet when another one publishes."""
    ours = str(write_tar(tmp_path / "a.tar", samples(3)))
    theirs = str(write_tar(tmp_path / "b.tar", samples(2, 10)))
    output = tmp_path / "set"
    publish = pipeline.dataset.job.publish_manifest

    def late(*arguments: Any, **options: Any) -> int:
        monkeypatch.setattr(pipeline.dataset.job, "publish_manifest", publish)
        assert run(toy, theirs, output).ok == 2
        return publish(*arguments, **options)

    monkeypatch.setattr(pipeline.dataset.job, "publish_manifest", late)
    summary = run(toy, ours, output)
    assert (summary.ok, summary.exit_code) == (3, 0)
    assert len(open_dataset(str(output))) == 5
    monkeypatch.setattr(pipeline.dataset.job, "publish_manifest", late)
    assert run(toy, ours, output).resumed == 1  # with nothing to do it is no different
    assert len(open_dataset(str(output))) == 5


def at_the_end(monkeypatch: pytest.MonkeyPatch, then: Callable[[], Any]) -> None:
    """Have something happen between the last shard and the manifest of each job."""
    run_shards = pipeline.compress.job.run_shards

    def and_then(*arguments: Any, **options: Any) -> Any:
        outcomes = run_shards(*arguments, **options)
        then()
        return outcomes

    monkeypatch.setattr(pipeline.compress.job, "run_shards", and_then)


def test_a_shard_that_is_lost_after_all_is_reported(
    toy: ToyCodec, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", samples(3, ord(name)))
    inputs, output = str(tmp_path / "*.tar"), tmp_path / "set"
    with monkeypatch.context() as patched:
        at_the_end(patched, lambda: next(output.glob("data/a-*")).unlink())
        summary = run(toy, inputs, output)
    (lost,) = summary.failed_shards
    assert (lost.shard, summary.exit_code) == (str(tmp_path / "a.tar"), 1)
    assert "run the job again" in lost.reason
    assert open_dataset(str(output)).failed[0]["url"] == lost.shard
    again = run(toy, inputs, output)
    assert (again.ok, again.resumed, again.exit_code) == (6, 1, 0)
    assert len(open_dataset(str(output))) == 6


def test_a_store_that_fails_at_the_end_is_no_traceback(
    toy: ToyCodec, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar, output = str(write_tar(tmp_path / "a.tar", samples(3))), tmp_path / "set"

    def fails(*_: Any) -> None:
        raise OSError("503 SlowDown")

    with monkeypatch.context() as patched:
        at_the_end(patched, lambda: patched.setattr(Store, "read_many", fails))
        with pytest.raises(StorageError, match=r"set: .*what is committed stays.*503 SlowDown"):
            run(toy, tar, output)
    summary = run(toy, tar, output)
    assert (summary.ok, summary.resumed, summary.exit_code) == (3, 1, 0)
