"""Displays progress: live on a terminal, elsewhere as a line every ten seconds."""

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from codec.errors import printable

from .summary import plural, ratio, size, stage_line, trouble_line

LOG_SECONDS = 10.0
REDRAW_SECONDS = 0.25
NAME_WIDTH = 24
NODE_WIDTH = 15
WIDE = 100  # columns
_NAMED = ("shard", "message", "reason", "error")  # facts that need no name
_HASH = re.compile(r"-[0-9a-f]{12}(?=\.\d+$|$)")  # the hash that layout.shard_name appends


@dataclass(frozen=True)
class Totals:
    """A job's figures at one moment; rates are those of the last minute.

    ``fraction`` is the part of ``total_bytes`` (of input) that is done. It includes the running
    shards, as do ``samples``, ``bad``, ``picture_bytes`` and ``stream_bytes``. ``seconds_left`` is
    None while it is unknown. ``stage_shares`` are shares of the workers' time.
    """

    seconds: float
    fraction: float
    input_bytes: int
    total_bytes: int
    shards_done: int
    shards_failed: int
    shards_total: int
    samples: int
    bad: int
    picture_bytes: int
    stream_bytes: int
    bytes_in: int
    bytes_out: int
    images_per_second: float
    bytes_in_per_second: float
    bytes_out_per_second: float
    seconds_left: float | None
    stage_shares: dict[str, float]
    slowest_stage: str
    failed_attempts: int
    restarts: int
    workers: dict[str, int]


@dataclass(frozen=True)
class WorkerView:
    """One worker: its number, machine, images/s, memory in bytes and the shards it has."""

    worker: int
    node: str = ""
    rate: float = 0.0
    rss: int | None = None
    shards: Mapping[str, Mapping[str, Any]] | None = None

    def line(self, width: int) -> str:
        """The worker's line: columns of fixed width first; no machine on narrow terminals."""
        memory = size(self.rss) if self.rss else ""
        node = printable(self.node)[:NODE_WIDTH] if width >= WIDE else ""
        place = f"#{self.worker:<3} " + (f"{node:{NODE_WIDTH}}  " if width >= WIDE else "")
        head = f"{place}{self.rate:7.1f} images/s {memory:>7}  "
        if self.shards is None:
            return head + "starting"
        return head + (", ".join(map(_shard, self.shards.items())) or "waiting for a shard")


class Display(Protocol):
    """A display of progress. ``due`` says whether ``show`` would draw anything now."""

    def due(self, now: float) -> bool: ...

    def show(self, totals: Totals, workers: Sequence[WorkerView]) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self, totals: Totals) -> None: ...


def display_for(out: TextIO, verb: str) -> Display:
    """The live display if ``out`` is a terminal that can move its cursor, otherwise lines."""
    if out.isatty() and os.environ.get("TERM", "dumb").lower() not in ("dumb", "unknown"):
        return TerminalDisplay(out, verb)
    return LineDisplay(out)


class LineDisplay:
    """A line with the totals every ten seconds, for log files."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._last = time.monotonic()

    def due(self, now: float) -> bool:
        return now - self._last >= LOG_SECONDS

    def show(self, totals: Totals, workers: Sequence[WorkerView]) -> None:
        self._last = time.monotonic()
        left = "" if totals.seconds_left is None else f", {duration(totals.seconds_left)} left"
        self.say(f"{100 * totals.fraction:3.0f} %  {', '.join(_figures(totals))}{left}")

    def say(self, text: str) -> None:
        print(printable(text), file=self.out, flush=True)

    def close(self, totals: Totals) -> None:
        pass


class TerminalDisplay:
    """A line for each worker and the totals below, drawn again in place."""

    def __init__(self, out: TextIO, verb: str) -> None:
        self.verb = verb
        self._out = out
        self._last = 0.0
        self.console = Console(
            # The display moves the cursor; other output must not.
            file=getattr(out, "with_controls", out),
            force_terminal=True,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            # Output of workers, which Ray prints, must go above the display, but only if it goes
            # to this terminal.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def due(self, now: float) -> bool:
        return now - self._last >= REDRAW_SECONDS

    def show(self, totals: Totals, workers: Sequence[WorkerView]) -> None:
        self._last = time.monotonic()
        width, height = self.console.size
        below = self._totals(totals)[: max(1, height - 4)]
        room = max(1, height - len(below) - 2)
        shown = workers if len(workers) <= room else workers[: room - 1]
        lines: list[Any] = [_line(worker.line(width)) for worker in shown]
        if len(shown) < len(workers):
            lines.append(_line(f"... and {len(workers) - len(shown):,} more workers"))
        self._draw([*lines, *below])

    def say(self, text: str) -> None:
        self.console.print(Text(printable(text)), soft_wrap=True)

    def close(self, totals: Totals) -> None:
        """Leave the totals on the terminal, without the workers."""
        if self._live.is_started:
            self._draw(self._totals(totals))
        self._live.stop()

    def _draw(self, lines: list[Any]) -> None:
        self._live.update(Group(*lines))
        if not self._live.is_started:
            before = sys.stdout, sys.stderr
            self._live.start()
            guard = getattr(self._out, "guard", None)
            if guard and sys.stdout is not before[0]:
                sys.stdout = guard(sys.stdout)
            if guard and sys.stderr is not before[1]:
                sys.stderr = guard(sys.stderr)
        self._live.refresh()

    def _totals(self, totals: Totals) -> list[Any]:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            Text(self.verb),
            ProgressBar(total=1.0, completed=totals.fraction, complete_style="cyan"),
            Text(f"{100 * totals.fraction:3.0f} %"),
        )
        figures = [f"{size(totals.input_bytes)} of {size(totals.total_bytes)}", *_figures(totals)]
        if totals.seconds_left is not None:
            figures.insert(1, f"{duration(totals.seconds_left)} left")
        if totals.failed_attempts or totals.restarts:
            figures.append(trouble_line(totals.failed_attempts, totals.restarts))
        return [bar, *map(_line, _flow(figures, self.console.size.width))]


def _flow(parts: Sequence[str], width: int) -> list[str]:
    """The parts, comma-separated, in as many lines as they need; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 4 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(f"  {part}")
    return lines


def _figures(totals: Totals) -> list[str]:
    """The totals in words, the most interesting first."""
    failed = f" ({totals.shards_failed} failed)" if totals.shards_failed else ""
    figures = [
        f"{totals.shards_done}/{totals.shards_total} shards{failed}",
        f"{totals.images_per_second:.1f} images/s",
        f"{size(totals.bytes_in_per_second)}/s in",
        f"{size(totals.bytes_out_per_second)}/s out",
    ]
    if totals.stream_bytes:
        figures.append(f"ratio {ratio(totals.picture_bytes, totals.stream_bytes)}")
    figures.append(f"{totals.bad:,} bad of {plural(totals.samples, 'sample')}")
    if totals.slowest_stage:
        share = totals.stage_shares.get(totals.slowest_stage, 0.0)
        figures.append(stage_line(totals.slowest_stage, share))
    return figures


def describe_event(kind: str, fields: Mapping[str, Any]) -> str:
    """An event as one line: what happened, to which shard, why, and the rest in brackets."""
    named = [str(fields[name]) for name in _NAMED if fields.get(name)]
    rest = [
        f"{name.replace('_', ' ')} {_words(value)}"
        for name, value in fields.items()
        if name not in _NAMED and value not in (None, "", [])
    ]
    line = ": ".join([kind.replace("_", " "), *named])
    return f"{line} ({', '.join(rest)})" if rest else line


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def shorten(name: str) -> str:
    """A shard's name without its hash. A long name is shortened in the middle."""
    short = printable(_HASH.sub("", name))
    if len(short) <= NAME_WIDTH:
        return short
    return f"{short[:8]}..{short[-(NAME_WIDTH - 10) :]}"


def duration(seconds: float) -> str:
    """A duration, with one or two units."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _shard(item: tuple[str, Mapping[str, Any]]) -> str:
    name, shard = item
    count = f" {shard.get('samples', 0):,}/{shard['of']:,}" if shard.get("of") else ""
    return f"{printable(str(shard.get('stage', '')))} {shorten(name)}{count}".strip()


def _line(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis")
