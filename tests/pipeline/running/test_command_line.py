"""What the jobs' command lines share: signals and exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codec.errors import StrataError
from pipeline.running import command_line
from pipeline.running.command_line import run_job, stop_reason
from pipeline.running.progress.summary import Problem, Summary

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> object:
    """The handlers of this process come back, and no Ray is touched."""
    monkeypatch.setattr(command_line.cluster, "disconnect", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    command_line.draining.clear()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_job_ends_as_it_likes(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line.draining.set()  # of an earlier job

    def job() -> Summary:
        assert stop_reason() == ""
        os.kill(os.getpid(), number)
        assert stop_reason()
        return Summary("compressed", ok=3, stopped=stop_reason())

    assert run_job(job) == 130
    shown = capsys.readouterr()
    assert "compressed 3 pictures" in shown.out
    assert "stopping: finishing or saving the running shards" in shown.err
    assert "interrupted: what is committed stays" in shown.err


def test_the_second_signal_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> Summary:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    assert run_job(job) == 130
    shown = capsys.readouterr()
    assert "run the same command to go on from there" in shown.err
    assert shown.out == ""


HANGING = """
import subprocess, sys, time
from pipeline.running.command_line import run_job, stop_reason

def job():
    child = subprocess.Popen(["bash", "-c", "sleep 600; :"], start_new_session=True)
    print("begun", child.pid, flush=True)
    try:
        while True:
            time.sleep(0.05)
    finally:
        time.sleep(600)  # as Ray may, where there is more to do than processors

sys.exit(run_job(job))
"""


def test_the_second_signal_ends_it_within_seconds_whatever_waits() -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", HANGING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    assert job.stderr is not None
    child = int(job.stdout.readline().split()[1])
    job.send_signal(signal.SIGINT)
    while not job.stderr.readline().startswith("stopping"):
        pass
    job.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = job.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert job.returncode == 130
    assert said.count("run the same command to go on from there") == 1
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()


def test_a_job_that_was_done_in_time_is_no_failure() -> None:
    def job() -> Summary:
        os.kill(os.getpid(), signal.SIGTERM)
        return Summary("compressed", ok=3)

    assert run_job(job) == 0


def test_a_job_that_stops_by_itself_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(lambda: Summary("compressed", stopped="too much is bad")) == 1
    shown = capsys.readouterr()
    assert "stopped: too much is bad" in shown.out
    assert "interrupted" not in shown.err


def test_other_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> Summary:
        raise StrataError("no such input")

    assert run_job(wrong) == 2
    assert capsys.readouterr().err == f"{command_line.STARTING}\nerror: no such input\n"
    assert run_job(lambda: Summary("compressed")) == 0
    failed = Summary("compressed", failed_shards=[Problem("a.tar", "", "cut")])
    assert run_job(lambda: failed) == 1


PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from pipeline.running import cluster
from pipeline.running.command_line import run_job, stop_reason
from pipeline.running.progress.summary import Summary

def job():
    cluster.connect(None)
    print("connected", flush=True)
    for _ in range(600):
        if stop_reason():
            return Summary("compressed", stopped=stop_reason())
        time.sleep(0.05)

sys.exit(run_job(job))
"""


@pytest.mark.integration
@pytest.mark.slow
def test_ray_leaves_the_signals_to_the_job(tmp_path: Path) -> None:
    """As Ctrl-C at a terminal does, the signal goes to every process of the group.

    A SIGTERM to the job alone is in tests/integration/test_commands.py.
    """
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    job = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert job.stdout is not None
        assert "connected" in job.stdout.readline()
        os.killpg(job.pid, signal.SIGINT)
        out, err = job.communicate(timeout=200)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 130, err
    assert "stopped: " in out
    assert "stopping: " in err
    assert "Traceback" not in err
    time.sleep(0.5)
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(job.pid, 0)
