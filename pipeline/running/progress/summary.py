"""The result of a job, for people and for the log."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TextIO

from codec.errors import printable

LISTED = 20
LOGGED = 100
MAX_REASONS = 1000
TELLING = 10_000  # bytes


def count_reasons(counts: Counter[str], more: Mapping[str, int]) -> None:
    """Add to ``counts``. If there are too many reasons, only the common ones are kept."""
    counts.update(more)
    if len(counts) > MAX_REASONS:
        for reason, count in counts.most_common()[MAX_REASONS // 2 :]:
            del counts[reason]
            counts["other reasons"] += count


def size(count: float) -> str:
    """Bytes with a unit: three digits are enough for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def ratio(original: float, stored: float) -> str:
    return f"{original / stored:.2f}" if stored else "-"


def share(part: float, whole: float, digits: int = 1) -> str:
    """A percentage; "-" where the whole is so small that it says nothing."""
    return f"{100 * part / whole:.{digits}f} %" if whole >= TELLING else "-"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


@dataclass(frozen=True)
class Problem:
    """A sample or shard that did not come through."""

    shard: str
    key: str
    reason: str


@dataclass
class Summary:
    """What a job did for all its shards, earlier runs included.

    ``seconds`` and the following fields up to ``restarts`` are of this run only: wall-clock
    seconds, samples, bytes read and written, the stage that took the workers longest and its share
    of their time (0 to 1), failed attempts and restarted workers. ``stopped`` says why a job ended
    before it had tried everything. ``problems`` names the first bad samples, and ``lists_all`` is
    the command that lists all of them.
    """

    verb: str
    shards: int = 0
    resumed: int = 0
    ok: int = 0
    bad: int = 0
    filtered: int = 0
    seconds: float = 0.0
    new_samples: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    slowest_stage: str = ""
    slowest_share: float = 0.0
    failed_attempts: int = 0
    restarts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    failed_shards: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: str = ""
    lists_all: str = ""

    @property
    def exit_code(self) -> int:
        """0 only if every sample came through."""
        return 1 if self.bad or self.failed_shards or self.stopped else 0

    def add_problem(self, problem: Problem) -> None:
        """Keep a bad sample, unless there are ``LOGGED`` already."""
        if len(self.problems) < LOGGED:
            self.problems.append(problem)

    def add_record(self, record: Mapping[str, Any], shard: str) -> None:
        """Add the counts of a shard's record; ``shard`` is its name for people."""
        self.ok += record["ok"]
        self.bad += record["bad"]
        self.filtered += record["filtered"]
        count_reasons(self.reasons, record.get("reasons", {}))
        for key, status, reason in record["problems"]:
            if status == "bad":
                self.add_problem(Problem(shard, key, reason))

    def lines(self) -> list[str]:
        out = [
            f"{self.verb} {plural(self.ok, 'picture')} of {plural(self.shards, 'shard')}"
            + (f" ({self.resumed} done before)" if self.resumed else "")
            + f"; {self.bad} bad, {self.filtered} filtered, "
            f"{plural(len(self.failed_shards), 'shard')} failed"
        ]
        if self.stopped:
            out.append(f"stopped: {self.stopped}")
        if self.new_samples:
            seconds = max(self.seconds, 1e-9)
            out.append(
                f"{self.new_samples} samples in {self.seconds:.1f} s: "
                f"{self.new_samples / seconds:.1f} images/s, "
                f"{size(self.bytes_in / seconds)}/s in, "
                f"{size(self.bytes_out / seconds)}/s out"
            )
        if self.slowest_stage:
            out.append(stage_line(self.slowest_stage, self.slowest_share))
        if self.failed_attempts or self.restarts:
            out.append(trouble_line(self.failed_attempts, self.restarts))
        out += self.notes
        if self.reasons:
            out.append("reasons:")
            out += [f"  {count:6d}  {reason}" for reason, count in self.reasons.most_common(20)]
        out += _listing("bad samples", self.problems, self.bad, self.lists_all)
        out += _listing("failed shards", self.failed_shards, len(self.failed_shards))
        return out

    def print(self, out: TextIO | None = None) -> None:
        out = out or sys.stdout
        for line in self.lines():
            print(printable(line), file=out)
        out.flush()

    def to_json(self) -> dict[str, Any]:
        """For the event log: every field under its own name, lists cut to a hundred entries."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("problems", "failed_shards"):
            values[name] = [vars(problem) for problem in values[name][:LOGGED]]
        values["failed_shard_count"] = len(self.failed_shards)
        values["reasons"] = dict(self.reasons.most_common(LOGGED))
        return values | {"exit_code": self.exit_code}


def stage_line(stage: str, share: float) -> str:
    return f"slowest stage: {stage} ({100 * share:.0f} % of the workers' time)"


def trouble_line(failed_attempts: int, restarts: int) -> str:
    return f"{plural(failed_attempts, 'attempt')} failed, {plural(restarts, 'worker')} restarted"


def _listing(title: str, problems: Sequence[Problem], total: int, lists_all: str = "") -> list[str]:
    if not total:
        return []
    shown = problems[:LISTED]
    lines = [f"{title}:"]
    lines += [f"  {p.shard}{f' : {p.key!r}' if p.key else ''} : {p.reason}" for p in shown]
    hint = f" ({lists_all} lists all)" if lists_all else ""
    more = [f"  ... and {total - len(shown):,} more{hint}"]
    return lines + (more if total > len(shown) else [])
