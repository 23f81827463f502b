"""What the jobs' command lines share: signals, exit codes, options with secrets."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codec.errors import StrataError
from pipeline.running import command_line
from pipeline.running.command_line import (
    add_running_options,
    options_of,
    run_job,
    running_options,
    stop_reason,
)
from pipeline.running.job import RunningOptions
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


def parse(*arguments: str) -> RunningOptions:
    parser = argparse.ArgumentParser()
    add_running_options(parser)
    given = parser.parse_args(arguments)
    return options_of(RunningOptions, given, **running_options(given))


# -- signals --------------------------------------------------------------------------------------


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
    assert "stopping: finishing or saving the shards under way" in shown.err
    assert "interrupted: what is committed stays" in shown.err


def test_the_second_signal_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> Summary:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    assert run_job(job) == 130
    shown = capsys.readouterr()
    assert "the same command goes on from there" in shown.err
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
    assert said.count("the same command goes on from there") == 1
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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ray_leaves_the_signals_to_the_job(tmp_path: Path, number: signal.Signals) -> None:
    """As Ctrl-C at a terminal does, the signal goes to every process of the group."""
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
        if number == signal.SIGINT:
            os.killpg(job.pid, number)
        else:
            job.send_signal(number)
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


# -- options --------------------------------------------------------------------------------------


def test_running_options(tmp_path: Path) -> None:
    assert parse() == RunningOptions()
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"key": "k", "client_kwargs": {"endpoint_url": "http://x"}}))
    given = parse(
        *("--input-options", '{"anon": true}', "--output-options", f"@{secrets}"),
        *("--log", "log.jsonl", "--drain-seconds", "0", "--attempts", "5"),
    )
    assert given.input_options == {"anon": True}
    assert given.output_options == {"key": "k", "client_kwargs": {"endpoint_url": "http://x"}}
    assert given.log == "log.jsonl"
    assert (given.policy.drain, given.policy.attempts) == (0.0, 5)
    assert "client_kwargs" not in repr(given)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"secret": "hunter2"', "not JSON at line 1, column 21"),
        ("secret=hunter2", "not JSON at line 1, column 1"),
        ('["hunter2"]', "must be a JSON object, as '{\"anon\": true}' is, not a list"),
        ('"hunter2"', "not a string"),
        ("42", "not a number"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("@no-such-file", "no-such-file: cannot be read: No such file"),
    ],
)
def test_bad_storage_options_are_explained_and_never_repeated(
    value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--input-options", "--output-options"):
        with pytest.raises(SystemExit):
            parse(option, value)
        message = capsys.readouterr().err
        assert f"argument {option}: " in message
        assert words in message
        assert "hunter2" not in message


def test_a_file_of_options_is_not_repeated_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "options"
    for content in (b"key = hunter2", b"\xff hunter2"):
        path.write_bytes(content)
        with pytest.raises(SystemExit):
            parse("--input-options", f"@{path}")
        message = capsys.readouterr().err
        assert str(path) in message
        assert "hunter2" not in message


def test_a_log_in_a_submitted_job_needs_a_place_that_lasts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line.cluster, "inside_ray_job", lambda: True)
    with pytest.raises(SystemExit):
        parse("--log", "log.jsonl")
    assert "a relative path would be lost" in capsys.readouterr().err
    assert parse("--log", str(tmp_path / "log")).log == str(tmp_path / "log")


@pytest.mark.parametrize("value", ["-1", "inf", "nan", "soon"])
def test_impossible_drain_times(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--drain-seconds", value)
    assert "--drain-seconds" in capsys.readouterr().err
