"""What the person at the terminal sees: a bar or log lines while it runs, a summary at the end."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 10.0
LISTED = 20


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def ratio(original: float, stored: float) -> str:
    return f"{original / stored:.2f}" if stored else "-"


class ProgressBar:
    """A tqdm bar over input bytes on a terminal; a line every ten seconds elsewhere.

    ``sizes`` maps task names to input bytes. The clock starts with ``start``, so starting
    workers does not count as slowness.
    """

    def __init__(self, sizes: Mapping[str, int], out: TextIO = sys.stderr) -> None:
        self.sizes = dict(sizes)
        self.out = out
        self.total = sum(sizes.values())
        self.started = self.last_line = time.monotonic()
        self.done_bytes = 0
        self.done: Counter[str] = Counter()
        self.shards = 0
        self.bar: Any = None
        if out.isatty():
            self.bar = tqdm(total=self.total, unit="B", unit_scale=True, file=out, smoothing=0.1)

    def start(self) -> None:
        self.started = time.monotonic()
        if self.bar is not None:
            self.bar.unpause()

    def finish_shard(self, name: str, counts: Mapping[str, int]) -> None:
        """``counts``: samples, picture_bytes, stream_bytes."""
        self.shards += 1
        self.done_bytes += self.sizes[name]
        self.done.update({key: counts.get(key, 0) for key in _COUNTED})

    def show(self, under_way: Mapping[str, Mapping[str, Any]]) -> None:
        totals, position = Counter(self.done), float(self.done_bytes)
        for name, counts in under_way.items():
            totals.update({key: counts.get(key, 0) for key in _COUNTED})
            position += self.sizes[name] * counts.get("samples", 0) / max(1, counts.get("of", 1))
        now = time.monotonic()
        seconds = max(now - self.started, 1e-9)
        text = f"{totals['samples'] / seconds:.1f} images/s"
        if totals["stream_bytes"]:
            text += f", ratio {ratio(totals['picture_bytes'], totals['stream_bytes'])}"
        if self.bar is not None:
            self.bar.n = int(position)
            self.bar.set_postfix_str(f"{text}, {self.shards}/{len(self.sizes)} shards")
        elif now - self.last_line >= LOG_SECONDS:
            self.last_line = now
            left = seconds * (self.total - position) / position if position else None
            eta = "" if left is None else f", {left:.0f} s left"
            print(
                f"{100 * position / max(1, self.total):3.0f} %  {self.shards}/{len(self.sizes)} "
                f"shards, {text}, {position / seconds / 1e6:.1f} MB/s{eta}",
                file=self.out,
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


_COUNTED = ("samples", "picture_bytes", "stream_bytes")


@dataclass(frozen=True)
class Problem:
    """A sample or shard that did not come through."""

    shard: str
    key: str
    reason: str


@dataclass
class Summary:
    """What a job did, over everything it was asked for, earlier runs included."""

    verb: str
    shards: int = 0
    resumed: int = 0
    ok: int = 0
    bad: int = 0
    filtered: int = 0
    seconds: float = 0.0
    new_samples: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    failed_shards: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 only when every sample is accounted for and nothing was lost."""
        return 1 if self.bad or self.failed_shards else 0

    def lines(self) -> list[str]:
        out = [
            f"{self.verb} {self.ok} pictures of {self.shards} shards"
            + (f" ({self.resumed} were done already)" if self.resumed else "")
            + f"; {self.bad} bad, {self.filtered} filtered, "
            f"{len(self.failed_shards)} shards failed"
        ]
        if self.new_samples:
            rate = self.new_samples / max(self.seconds, 1e-9)
            out.append(f"{self.new_samples} samples in {self.seconds:.1f} s: {rate:.1f} images/s")
        out += self.notes
        if self.reasons:
            out.append("reasons:")
            out += [f"  {count:6d}  {reason}" for reason, count in self.reasons.most_common(20)]
        out += _listing("bad samples", self.problems, self.bad)
        out += _listing("failed shards", self.failed_shards, len(self.failed_shards))
        return out

    def print(self, out: TextIO = sys.stdout) -> None:
        for line in self.lines():
            # keys may hold anything, and a terminal that cannot show it must not end the job
            print(line.encode("utf-8", "backslashreplace").decode(), file=out)
        out.flush()


def _listing(title: str, problems: Sequence[Problem], total: int) -> list[str]:
    if not total:
        return []
    shown = problems[:LISTED]
    lines = [f"{title}:"]
    lines += [f"  {p.shard}{f' : {p.key!r}' if p.key else ''} : {p.reason}" for p in shown]
    return lines + ([f"  ... and {total - len(shown)} more"] if total > len(shown) else [])
