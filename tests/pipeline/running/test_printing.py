"""Control characters of names never reach a terminal, whatever prints them."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from codec.errors import printable
from pipeline.running.progress.summary import Problem, Summary
from pipeline.verify.report import Damage, VerifyReport

ROOT = Path(__file__).resolve().parents[3]
# Clears the screen, sets the title, goes up a line, and the same with one byte of ISO 6429.
EVIL = "a\x1b[2J\x1b]0;owned\x07\rb\x9b1Ac\x08\x7f\u202ed\udcff.png"
JOB = """
import sys, time, warnings
from codec.errors import StrataError
from pipeline.running import arguments, command_line
from pipeline.running.progress.display import Totals, WorkerView, describe_event, display_for
from pipeline.running.progress.summary import Problem, Summary

evil = sys.argv[2].encode("ascii").decode("unicode_escape")

def job():
    display = display_for(sys.stderr, "compressing")
    totals = Totals(1, .5, 1, 2, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, {}, "", 0, 0, {})
    shards = {evil: {"stage": evil, "samples": 1, "of": 2}}
    display.show(totals, [WorkerView(0, evil, 1.0, 1, shards)])
    print("a library says", evil)
    print("a library says", evil, file=sys.stderr)
    warnings.warn(evil)
    display.say(describe_event("shard_failed", {"shard": evil, "error": evil}))
    display.close(totals)
    if sys.argv[1] == "error":
        raise StrataError(f"{evil}: is not there")
    problem = Problem(evil, evil, evil)
    return Summary(evil, bad=1, problems=[problem], failed_shards=[problem], notes=[evil])

arguments.new_parser(evil).set_defaults()
sys.exit(command_line.run_job(job))
"""


def shown(tmp_path: Path, how: str, terminal: bool) -> bytes:
    """All that a job shows which is named after ``EVIL`` everywhere."""
    (tmp_path / "job.py").write_text(JOB)
    told = EVIL.encode("unicode_escape").decode()
    command = [sys.executable, "job.py", how, told]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs if terminal else subprocess.PIPE,
        stderr=theirs if terminal else subprocess.STDOUT,
    ) as process:
        os.close(theirs)
        if not terminal:
            os.close(ours)
            assert process.stdout is not None
            return process.stdout.read()
        parts = []
        try:
            while part := os.read(ours, 1 << 16):
                parts.append(part)
        except OSError:  # how Linux tells that nobody writes any more
            pass
        os.close(ours)
        return b"".join(parts)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("how", ["error", "summary"])
def test_nothing_that_a_job_prints_moves_the_terminal(
    how: str, terminal: bool, tmp_path: Path
) -> None:
    text = shown(tmp_path, how, terminal).decode("utf-8", "surrogateescape")
    assert "owned" in text
    assert ("error: a" in text) == (how == "error")
    for control in ("\x1b[2J", "\x1b]0", "\x07", "\x08", "\x7f", "\x9b", "\u202e", "\udcff"):
        assert control not in text, (control, text)
    assert ("\x1b[2K" in text) == terminal  # the display's own
    if not terminal:
        lines = text.replace("library says a\\x1b[2J\\x1b]0;owned\\x07\rb", "").splitlines()
        assert all(line.isprintable() for line in lines), text


def test_reports_are_told_in_lines_that_names_cannot_make(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = f"{EVIL}\nnothing is damaged"
    VerifyReport("verified", dataset=evil, damaged=[Damage("data", evil, [evil])]).print()
    Summary("compressed", problems=[Problem(evil, evil, evil)], bad=1).print()
    told = capsys.readouterr().out
    assert "\\nnothing is damaged" in told
    assert "nothing is damaged" not in told.splitlines()
    assert all(line.isprintable() for line in told.splitlines())


def test_printable_leaves_other_names_as_they_are() -> None:
    for name in ("photos/a b.png", "Straße 例え.jpg", "e\u0301"):
        assert printable(name) == name
    assert printable("a\tb\nc") == "a\\tb\\nc"
