"""Running options of a command line: their values, and the messages for wrong ones."""

import argparse
import json
from pathlib import Path

import pytest

from pipeline.running import cluster
from pipeline.running.arguments import add_running_options, options_of, running_options
from pipeline.running.job import RunningOptions


def parse(*arguments: str) -> RunningOptions:
    parser = argparse.ArgumentParser()
    add_running_options(parser)
    given = parser.parse_args(arguments)
    return options_of(RunningOptions, given, **running_options(given))


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


def test_jobs_list_only_what_they_take() -> None:
    """A job without shards or without an output has no options for them."""
    parser = argparse.ArgumentParser()
    add_running_options(parser, "a data file", shards=False, output=False)
    told = parser.format_help()
    assert "--input-options" in told
    assert "often a data file is tried" in told
    assert "gzip" not in told
    assert "--output-options" not in told
    given = parser.parse_args([])
    assert options_of(RunningOptions, given, **running_options(given)) == RunningOptions()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"secret": "hunter2"', "not JSON at line 1, column 21"),
        ("secret=hunter2", "not JSON at line 1, column 1"),
        ('["hunter2"]', "must be a JSON object, such as '{\"anon\": true}', not a list"),
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
    monkeypatch.setattr(cluster, "inside_ray_job", lambda: True)
    with pytest.raises(SystemExit):
        parse("--log", "log.jsonl")
    assert "a relative path would be lost" in capsys.readouterr().err
    assert parse("--log", str(tmp_path / "log")).log == str(tmp_path / "log")


@pytest.mark.parametrize("value", ["-1", "inf", "nan", "soon"])
def test_impossible_drain_times(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--drain-seconds", value)
    assert "--drain-seconds" in capsys.readouterr().err
