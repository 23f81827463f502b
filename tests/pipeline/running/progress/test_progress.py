"""The progress of a job on terminals and in files: rates, remaining time, problems."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.running.progress.display import duration, shorten
from pipeline.running.progress.events import EventLog
from pipeline.running.progress.progress import Progress
from pipeline.running.progress.rates import Growth, Window
from pipeline.running.progress.summary import Problem, Summary, size
from tests.pipeline.running.progress.reports import Clock, encoding, record, worker

NAME = "photos-00007-0123456789ab"
HOSTILE = "a[red]b\x1b[31m\udce9\r\n[/]-0123456789ab"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.install(monkeypatch)


class Terminal(io.StringIO):
    """A terminal; its size comes from the environment."""

    def isatty(self) -> bool:
        return True

    def frames(self) -> list[str]:
        """The text of each picture that was drawn, without colours and cursor movements."""
        frames = re.split(r"(?:\r|\x1b\[2K|\x1b\[1A)+", self.getvalue())
        return [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", frame) for frame in frames if frame]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    resize(monkeypatch, 120, 30)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def resize(monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))


# -- figures --------------------------------------------------------------------------------------


def test_rates_are_those_of_the_last_minute(clock: Clock) -> None:
    shown = Progress("x", {NAME: 10**9}, out=io.StringIO())
    shown.start()
    for second in range(1, 301):
        clock.now += 1
        # ten a second for four minutes, then two
        samples = 10 * second if second <= 240 else 2400 + 2 * (second - 240)
        shown.show([worker(shards={NAME: encoding(samples, of=10_000)})])
    totals = shown.totals()
    assert totals.images_per_second == pytest.approx(2.0, rel=0.05)
    assert totals.samples == 2520
    assert totals.fraction == pytest.approx(0.252)
    assert totals.seconds_left == pytest.approx(7480 / 2, rel=0.05)


def test_what_is_left_is_not_guessed_at_the_start(clock: Clock) -> None:
    """A long first download must not become an estimate of weeks."""
    shown = Progress("x", {NAME: 10**9}, out=io.StringIO())
    shown.start()
    assert shown.totals().seconds_left is None
    guesses = []
    for second in range(1, 131):
        clock.now += 1
        done = max(0, second - 120) * 10  # two minutes of waiting, then ten a second
        shown.show([worker(shards={NAME: encoding(done)})])
        guesses.append(shown.totals().seconds_left)
    assert guesses[:124] == [None] * 124
    assert all(guess is not None and guess < 110 for guess in guesses[126:])


def test_the_first_minute_tells_what_the_whole_will_be(clock: Clock, tmp_path: Path) -> None:
    out, log = io.StringIO(), tmp_path / "log"
    shown = Progress("x", {NAME: 10**9}, events=EventLog(str(log)), out=out)
    shown.start()
    for second in range(1, 121):
        clock.now += 1
        done = encoding(10 * second, of=10_000)
        sizes = {"picture_bytes": 1000 * second, "stream_bytes": 250 * second}
        shown.show([worker(shards={NAME: {**done, **sizes}})])
    (line,) = [line for line in out.getvalue().splitlines() if "at the end" in line]
    assert line.startswith("estimate: about 250 MB at the end, 25 % of the input; 15 min left")
    (event,) = [one for one in map(json.loads, log.read_text().splitlines()) if "message" in one]
    assert (event["event"], event["samples"]) == ("estimate", 500)


def test_an_attempt_that_is_thrown_away_never_gives_a_negative_rate(clock: Clock) -> None:
    shown = Progress("x", {NAME: 10**9}, out=io.StringIO())
    shown.start()
    for samples in (10, 500, 900, 0, 5):
        clock.now += 2
        shown.show([worker(shards={NAME: encoding(samples)})])
    totals = shown.totals()
    assert totals.samples == 5
    assert totals.images_per_second == 0
    assert totals.seconds_left is None


def test_a_shard_is_not_counted_twice_when_the_report_is_older_than_its_end(clock: Clock) -> None:
    shown = Progress("x", {NAME: 100, "other": 300}, out=io.StringIO())
    shown.start()
    late = worker(shards={NAME: encoding(90, of=100, bad=1), "other": encoding(50, of=100)})
    shown.show([late])
    shown.finish(NAME, record(100, bad=2, picture_bytes=50, stream_bytes=10))
    clock.now += 1
    shown.show([late])
    totals = shown.totals()
    assert (totals.samples, totals.bad, totals.shards_done) == (150, 2, 1)
    assert totals.fraction == (100 + 150) / 400


def test_traffic_and_busy_time_survive_a_restart_of_the_worker(clock: Clock) -> None:
    shown = Progress("x", {NAME: 10**9}, out=io.StringIO())
    shown.start()
    figures: list[tuple[int, int, float]] = [(1, 100, 1.0), (1, 900, 8.0), (2, 50, 0.5)]
    for pid, read, busy in figures:
        clock.now += 10
        report = worker(bytes_in=read, bytes_out=read // 10, stage_seconds={"device": busy})
        shown.show([report | {"pid": pid}])
    clock.now += 10
    shown.show([{"worker": 0}])  # dead again: starting
    clock.now += 10
    shown.show([report | {"pid": 2, "bytes_in": 60}])
    totals = shown.totals()
    assert (totals.bytes_in, totals.bytes_out) == (960, 95)
    assert totals.stage_shares["device"] == pytest.approx(8.5 / 40)
    assert totals.restarts == 1
    assert totals.workers == {"idle": 1}


def test_the_slowest_stage_is_the_busiest(clock: Clock) -> None:
    shown = Progress("x", {NAME: 10**9}, out=io.StringIO())
    assert shown.slowest_stage() == ""
    shown.start()
    clock.now += 10
    busy = {"download": 2.0, "device": 7.1, "upload": 0.0, "new stage": 3.0}
    shown.show([worker(stage_seconds=busy), {"worker": 1}])
    summary = Summary("compressed")
    shown.add_to(summary)
    assert "slowest stage: device (71 % of the workers' time)" in summary.lines()


def test_growth_and_windows() -> None:
    growth = Growth()
    steps = [("a", 5), ("a", 7), ("b", 7), ("b", 3)]  # the last: restarted under the same pid
    assert [growth.since_last(source, {"x": v})["x"] for source, v in steps] == [5, 2, 7, 3]
    window = Window(seconds=10, step=1)
    for tenth in range(1000):
        window.add(tenth / 10, {"x": tenth})
    assert window.rate("x") == pytest.approx(10)
    assert 10 <= window.span <= 12
    assert len(window._points) <= 13  # however often it is fed


# -- terminals ------------------------------------------------------------------------------------


def test_a_terminal_shows_workers_and_totals(clock: Clock, terminal: Terminal) -> None:
    shown = Progress("compressing", {NAME: 10**9, "b": 10**9}, out=terminal)
    shown.start()
    for second in range(8):
        clock.now += 1
        one = worker(
            bytes_in=second * 10**7,
            shards={
                NAME: encoding(second * 50, picture_bytes=400, stream_bytes=100),
                "b": {"stage": "polishing"},  # a stage that nobody has heard of
            },
        )
        shown.show([one, {"worker": 1}])
    frame = terminal.frames()[-1]
    first, second, bar, *rest = frame.splitlines()
    assert re.fullmatch(
        r"#0 +10\.0\.0\.7 +50\.0 images/s +1\.2 GB  encode photos-00007 350/1,000, polishing b",
        first.rstrip(),
    )
    assert re.fullmatch(r"#1 .*starting", second.rstrip())
    assert bar.startswith("compressing")
    assert bar.rstrip().endswith("18 %")
    totals = " ".join(rest)
    for words in ("350 MB of 2 GB", "33 s left", "0/2 shards", "50.0 images/s", "10 MB/s in"):
        assert words in totals
    assert "ratio 4.00" in totals

    shown.event("attempt_failed", shard=NAME, attempt=2, error="OSError: broken pipe")
    shown.finish(NAME, record())
    shown.finish("b", None, "ShardError: cut short", attempts=1)
    clock.now += 1
    shown.show([worker(), worker(1)])
    shown.close()
    shown.close()
    text = "\n".join(terminal.frames())
    assert f"attempt failed: {NAME}: OSError: broken pipe (attempt 2)" in text
    assert "shard failed: b: ShardError: cut short" in text
    last = terminal.frames()[-1]
    assert "1/2 shards (1 failed)" in last
    assert "1 attempt failed" in last
    assert "images/s  " not in last  # the workers are gone, what came of it stays


@pytest.mark.parametrize(("columns", "lines"), [(120, 10), (40, 8), (12, 3), (1, 1)])
def test_it_fits_on_any_terminal(
    clock: Clock,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    lines: int,
) -> None:
    resize(monkeypatch, columns, lines)
    shown = Progress("compressing", {NAME: 10**9}, out=terminal)
    shown.start()
    for samples in (1, 200):
        clock.now += 6
        shown.show([worker(n, shards={NAME: encoding(samples)}) for n in range(1000)])
    frame = terminal.frames()[-1].rstrip("\n").splitlines()
    assert len(frame) <= lines
    assert all(len(line) <= columns for line in frame)
    if columns >= 40:
        shown_workers = sum(line.startswith("#") for line in frame)
        assert shown_workers >= 1
        assert f"... and {1000 - shown_workers} more workers" in "\n".join(frame)
    shown.close()


def test_a_thousand_workers_are_not_drawn_at_every_look(clock: Clock, terminal: Terminal) -> None:
    shown = Progress("compressing", {NAME: 10**9}, out=terminal)
    shown.start()
    reports = [worker(n) for n in range(1000)]
    for _ in range(100):
        clock.now += 0.01
        shown.show(reports)
    assert 1 <= sum("compressing" in frame for frame in terminal.frames()) <= 4
    shown.close()


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_names_and_errors_can_be_anything(
    clock: Clock, terminal: Terminal, on_a_terminal: bool
) -> None:
    """Markup, control characters and surrogates: nothing raises, nothing moves the cursor."""
    out = terminal if on_a_terminal else io.StringIO()
    shown = Progress("compressing", {HOSTILE: 10**9}, out=out)
    shown.start()
    for samples in (1, 2):
        clock.now += 11
        report = worker(shards={HOSTILE: encoding(samples, key="k\udcff[b]")})
        shown.show([report | {"node": "n[red]\x07"}])
    shown.event(
        "deadly_sample_found", shard=HOSTILE, key="k\udcff\x1b[2J", error="E: [bold]x\nsecond"
    )
    shown.finish(HOSTILE, None, "E: \x1b[2J")
    shown.close()
    text = out.getvalue()
    text.encode()
    assert "a[red]b\\x1b[31m\\udce9\\r\\n[/]" in text
    assert "[bold]x\\nsecond" in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text


def test_a_dumb_terminal_gets_lines(
    clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = Progress("compressing", {NAME: 10**9}, out=terminal)
    shown.start()
    clock.now += 11
    shown.show([worker()])
    shown.close()
    assert "0/1 shards" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


# -- files ----------------------------------------------------------------------------------------


def test_a_log_file_gets_a_plain_line_every_ten_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    shown = Progress("compressing", {NAME: 10**9, "b": 10**9}, out=out)
    shown.start()
    for tenth in range(351):
        clock.now += 0.1
        counts = encoding(tenth, bad=3, picture_bytes=4000, stream_bytes=1000)
        shown.show([worker(shards={NAME: counts}, stage_seconds={"device": tenth * 0.05})])
    shown.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r" 1[0-9] %  0/2 shards, 10\.0 images/s, 0 B/s in, 0 B/s out, ratio 4\.00, "
        r"3 bad of \d+ samples, slowest stage: device \(50 % of the workers' time\), \d+ min left",
        lines[2],
    )
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_what_people_read() -> None:
    assert [duration(s) for s in (0.4, 119, 125, 7300, 3 * 86400 + 7200)] == [
        "0 s",
        "119 s",
        "2 min",
        "2 h 01 min",
        "3 d 2 h",
    ]
    assert [size(n) for n in (0, 999, 1234, 5.1e9, 2e15)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "5.1 GB",
        "2,000.0 TB",
    ]
    assert shorten("photos-00007-0123456789ab.3") == "photos-00007.3"
    long = shorten("a-very-long-prefix-of-a-shard-00007-0123456789ab")
    assert long.startswith("a-very-l")
    assert long.endswith("shard-00007")
    assert len(long) <= 24


def test_the_summary_tells_this_run_and_what_went_wrong(clock: Clock) -> None:
    shown = Progress("compressing", {NAME: 10**7, "b": 10**7}, out=io.StringIO())
    shown.start()
    for pid in (1, 2):
        clock.now += 5
        report = worker(bytes_in=10**7, bytes_out=10**6, stage_seconds={"coder": 4.0})
        shown.show([report | {"pid": pid}])
    shown.event("attempt_failed", shard=NAME, error="x", attempt=1)
    shown.finish(NAME, record(100, bad=1, bytes=4 * 10**6))  # the last report missed some of it
    shown.finish("b", record(50, found=True))  # another job had done it: not this run's work
    summary = Summary("compressed", shards=2, ok=149, bad=1, stopped="a signal asked for it")
    summary.problems.append(Problem("s3://b/a.tar", "k\udce9", "broken"))
    shown.add_to(summary)
    lines = summary.lines()
    assert lines[1:5] == [
        "stopped: a signal asked for it",
        "100 samples in 10.0 s: 10.0 images/s, 2 MB/s in, 400 kB/s out",
        "slowest stage: coder (80 % of the workers' time)",
        "1 attempt failed, 1 worker restarted",
    ]
    assert summary.exit_code == 1
    packed = json.loads(json.dumps(summary.to_json()))
    assert packed["restarts"] == 1
    assert packed["stopped"] == "a signal asked for it"
    assert packed["problems"] == [{"shard": "s3://b/a.tar", "key": "k\udce9", "reason": "broken"}]


def test_the_terminal_is_given_back(clock: Clock, terminal: Terminal, tmp_path: Path) -> None:
    """Closing shows the cursor again, also where nothing was ever drawn or an error came."""
    shown = Progress("x", {NAME: 1}, out=terminal, events=EventLog(str(tmp_path / "log")))
    shown.close()
    assert terminal.getvalue() == ""
    shown.show([worker()])
    shown.close()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    assert Console(file=terminal)._live_stack == []
