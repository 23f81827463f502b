"""The event log: what programs may rely on, and what must never be in it."""

import dataclasses
import io
import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.running.progress import progress
from pipeline.running.progress.events import EventLog, EventLogError, job_log
from pipeline.running.progress.progress import Progress
from pipeline.running.progress.summary import Summary
from tests.pipeline.running.progress.reports import Clock, encoding, record, worker


@dataclass(frozen=True)
class Options:
    inputs: tuple[str, ...] = ("https://me:pass@host/a.tar?X-Signature=abc", "s3://b/*.tar")
    input_options: dict[str, Any] = field(default_factory=dict)
    output_options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.install(monkeypatch)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_job_from_start_to_end(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "log.jsonl"
    with job_log(str(path), "compress", Options()) as log:
        shown = Progress("compressing", {"a": 100, "b": 100}, events=log, out=io.StringIO())
        shown.start()
        for second in range(25):
            clock.now += 1
            report = worker(
                bytes_in=second * 1000,
                stage_seconds={"device": second * 0.5},
                shards={"a": encoding(second, of=100)},
            )
            shown.show([report | {"pid": 1 if second < 20 else 2}, {"worker": 1}])
        shown.event("attempt_failed", shard="a", error="E", attempt=1)
        source = {"url": "https://host/a.tar?token=t", "size": 77}
        stages = {"device": 1.5}
        shown.finish("a", record(9, bad=1, source=source, stage_seconds=stages, seconds=2.0), "", 2)
        shown.finish("b", None, "ShardError: cut", 3)
        shown.close()
        summary = Summary("compressed", ok=8, bad=1)
        shown.add_to(summary)
        log.finish(summary)
    events = read(path)
    assert [event["event"] for event in events] == [
        "job_started",
        "worker_ready",
        "progress",
        "progress",
        "worker_ready",
        "attempt_failed",
        "shard_done",
        "shard_failed",
        "job_finished",
    ]
    assert all(datetime.fromisoformat(event["time"]).utcoffset() is not None for event in events)
    found = {event["event"]: event for event in events}
    started = found["job_started"]
    assert started["job"] == "compress"
    assert started["options"]["inputs"] == ["https://***@host/a.tar", "s3://b/*.tar"]
    assert started["driver_pid"] == os.getpid()
    assert found["worker_ready"]["pid"] == 2
    done = found["shard_done"]
    assert (done["shard"], done["attempts"], done["rows"], done["bad"]) == ("a", 2, 9, 1)
    assert (done["source_bytes"], done["seconds"], done["stage_seconds"]) == (77, 2.0, stages)
    assert done["url"] == "https://host/a.tar"
    assert found["shard_failed"]["error"] == "ShardError: cut"
    seen = found["progress"]
    assert seen["workers"] == {"busy": 1, "starting": 1}
    assert seen["worker_rss"] == {"0": 12 * 10**8, "1": None}
    assert seen["driver_rss"] > 1 << 20
    assert seen["bytes_in_per_second"] == pytest.approx(1000, rel=0.1)
    assert seen["stage_shares"] == {"device": pytest.approx(0.5, abs=0.05)}
    assert seen["shards_total"] == 2
    end = found["job_finished"]
    assert (end["ok"], end["failed_attempts"], end["exit_code"]) == (8, 1, 1)


def test_no_secret_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    secret = {"key": "AKIA", "secret": "hunter2", "client_kwargs": {"token": "hunter2"}}
    options = Options(input_options=secret, output_options=secret)
    with job_log(str(path), "decode", options) as log:
        log.write("attempt_failed", error="GET https://u:hunter2@h/x?sig=hunter2: 403", attempt=1)
    text = path.read_text()
    assert "hunter2" not in text
    assert "AKIA" not in text
    started, failed = read(path)[:2]
    assert started["options"]["input_options"] == ["client_kwargs", "key", "secret"]
    assert failed["error"].startswith("GET https://***@h/x")


def test_how_a_job_ended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for error in (KeyboardInterrupt(), ValueError("no\udce9")):
        with pytest.raises(type(error)), job_log(str(path), "compress", Options()):
            raise error
    with job_log(str(path), "compress", Options()) as log:
        log.finish(Summary("compressed", stopped="a signal"))
    ends = [event for event in read(path) if event["event"] != "job_started"]
    assert [end["event"] for end in ends] == ["job_stopped", "job_failed", "job_stopped"]
    assert ends[1]["error"] == "ValueError: no\udce9"
    assert ends[2]["stopped"] == "a signal"


@pytest.mark.parametrize("path", ["no/such/folder/log", ".", "s3://bucket/log"])
def test_a_log_that_cannot_be_written_is_refused_first(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EventLogError, match=f"--log {path}: "):
        EventLog(path)


def test_a_job_that_was_killed_in_mid_line_spoils_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "whole"}\n{"event": "cut sho')
    log = EventLog(str(path))
    log.write("next")
    # every event is there at once, not only when the log is closed
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["event"] == "next"
    log.close()
    log.write("too late")
    assert len(path.read_text().splitlines()) == 3


def test_a_disk_that_fills_up_does_not_end_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    log = EventLog("/dev/full")
    log.write("one")
    log.write("two")
    assert capsys.readouterr().err.count("no more events are logged: /dev/full") == 1
    log.close()


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    with job_log(None, "compress", Options()) as log:
        log.write("anything", value=object())
        log.finish(Summary("compressed"))
    assert not list(tmp_path.iterdir())


def test_every_figure_of_the_documentation_is_there() -> None:
    from pipeline.running.progress import events

    assert events.__doc__ is not None
    for item in dataclasses.fields(progress.Totals):
        assert item.name in events.__doc__, item.name
