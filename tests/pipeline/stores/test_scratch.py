"""Scratch folders: what the dead leave is removed on their own machine, what the living use stays.

Owners are processes that are really killed. Another machine is one of another name.
"""

import argparse
import errno
import fcntl
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from pipeline.running.arguments import add_running_options, running_options
from pipeline.running.cluster import WorkerShape
from pipeline.running.job import RunningOptions, run_job_tasks
from pipeline.running.progress.events import EventLog
from pipeline.running.progress.summary import Summary
from pipeline.running.tasks import Outcome, Task
from pipeline.running.worker import WorkerSettings
from pipeline.stores import scratch as scratch_module
from pipeline.stores.scratch import LOCK, SCRATCH, clear_scratch, scratch_folder

# All owners come from one process that has imported everything: that takes seconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def own(parent: str, machine: str, told: Connection) -> None:
    if machine:
        scratch_module._machine = lambda: frozenset({machine})  # type: ignore[assignment]
    with scratch_folder(parent) as folder:
        (folder / "much").mkdir()
        (folder / "much" / "shard").write_bytes(b"x" * 1000)
        told.send(folder)
        told.recv()


@contextmanager
def owner(parent: Path, machine: str = "") -> Iterator[tuple[Path, Callable[[], None]]]:
    """A process that uses scratch: its folder, and what kills it."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=own, args=(str(parent), machine, theirs))
    process.start()

    def kill() -> None:
        process.kill()
        process.join()

    try:
        assert ours.poll(60)
        yield ours.recv(), kill
        if process.is_alive():
            ours.send("end")
            process.join(30)
    finally:
        process.kill()
        process.join()


def test_the_dead_are_removed_and_the_living_stay(tmp_path: Path) -> None:
    with ExitStack() as stack:
        dead, kill = stack.enter_context(owner(tmp_path))
        living, _ = stack.enter_context(owner(tmp_path))
        assert {dead.parent, living.parent} == {tmp_path}  # nobody's life depends on a driver's
        kill()
        assert (dead / "much" / "shard").exists()
        with scratch_folder(str(tmp_path)) as mine:
            assert not dead.exists()
            assert (living / "much" / "shard").exists()
            assert mine.exists()
    assert list(tmp_path.iterdir()) == []


def test_another_machine_removes_nothing(tmp_path: Path) -> None:
    """Its locks may be invisible here, though the folder is shared."""
    with owner(tmp_path, "another-machine") as (folder, kill):
        kill()
        clear_scratch(str(tmp_path))
        assert (folder / "much" / "shard").exists()
        with owner(tmp_path, "another-machine"):
            assert not folder.exists()  # a later process there does


def test_a_machine_is_the_same_by_name_or_by_its_running_kernel(tmp_path: Path) -> None:
    """A container has another name each time; a machine that was started again another number."""
    known = scratch_module._machine()
    assert len(known) == 2 or not Path("/proc/sys/kernel/random/boot_id").exists()
    for machine in known:
        with owner(tmp_path, machine) as (folder, kill):
            kill()
            clear_scratch(str(tmp_path))
            assert not folder.exists()


def test_without_locks_nothing_is_removed_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with owner(tmp_path) as (dead, kill):
        kill()

        def no_locks(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        with scratch_folder(str(tmp_path)) as first, scratch_folder(str(tmp_path)) as second:
            assert first.exists()
            assert second.exists()
            assert dead.exists()
            monkeypatch.undo()
            clear_scratch(str(tmp_path))  # by somebody for whom locks work
            assert first.exists()
            assert second.exists()
        assert not first.exists()
    said = capsys.readouterr().err
    assert said.count("has no locks (No locks available)") == 1
    assert str(tmp_path) in said


def test_who_is_killed_while_removing_leaves_the_rest_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owner(tmp_path) as (dead, kill):
        kill()
        for number in range(20):
            (dead / f"{number}").touch()
        unlink = Path.unlink

        def killed(path: Path, missing_ok: bool = False) -> None:
            if len(list(dead.iterdir())) < 8:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            clear_scratch(str(tmp_path))
        assert (dead / LOCK).exists()
        monkeypatch.undo()
        clear_scratch(str(tmp_path))
        assert not dead.exists()


def test_a_job_ends_with_its_killed_workers_scratch_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a worker which dies just after the job has told it to."""
    folders = []
    with ExitStack() as stack:

        def run_tasks(kind: Any, settings: Any, tasks: list[Task], *_: Any) -> list[Outcome]:
            folder, kill = stack.enter_context(owner(Path(settings.scratch)))
            folders.append(folder)
            monkeypatch.setattr(time, "sleep", lambda _: kill())
            raise KeyboardInterrupt

        monkeypatch.setattr("pipeline.running.cluster.connect", lambda address: None)
        monkeypatch.setattr(
            "pipeline.running.cluster.share", lambda *_: WorkerShape(1, 1.0, 0.0, "cpu")
        )
        monkeypatch.setattr("pipeline.running.job.run_tasks", run_tasks)
        options = RunningOptions(scratch=str(tmp_path / "scratch"))
        with pytest.raises(KeyboardInterrupt):
            run_job_tasks(
                "testing",
                object,
                WorkerSettings(),
                {Task("a", ()): 1},
                options,
                Summary("tested"),
                EventLog(None),
            )
        assert folders[0].name.startswith(SCRATCH)
        assert not folders[0].exists()


def test_workers_in_other_folders_get_the_same_scratch() -> None:
    parser = argparse.ArgumentParser()
    add_running_options(parser)
    assert running_options(parser.parse_args([]))["scratch"] is None
    given = running_options(parser.parse_args(["--scratch", "tmp"]))
    assert given["scratch"] == os.path.abspath("tmp")
