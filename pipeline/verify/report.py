"""The report of a check of a dataset, as text and as JSON.

``VerifyReport.to_json`` (``strata verify --json``) has these keys, which do not change:

``dataset``         its URL
``level``           ``quick``, ``subset`` or ``full``
``subset``, ``seed``  which part was read (``2/5``, ``10%``), and how a random one was chosen
``manifest``        the number of the manifest that was checked; ``new_manifest``: of the one that
                    the repair wrote
``files``           data files in the manifest; ``files_read`` of them were read in full, and
                    ``pictures_decoded`` of their pictures decoded
``bytes_read``      by the check
``seconds``         of the whole job
``model``           ``id``, and ``state``: ``sound``, ``damaged`` or ``repaired``
``damaged``         a list of ``kind`` (``plan``, ``manifest``, ``model``, ``head``, ``parts``,
                    ``record``, ``data``, ``index`` or ``deletion``), ``path``, ``source`` (URL of
                    the shard), ``problems`` (the first twenty of ``problem_count``), ``repaired``,
                    and ``why_not`` if a repair failed
``unchecked``       a list of ``path`` and ``error``: what could not be checked
``totals``          the manifest's: rows, ok, bad, filtered, bytes, pixels, picture_bytes
``failed``          shards that could not be compressed so far: ``url``, ``error``
``unlisted``        data files with records that are newer than the manifest
``foreign``         files in the dataset's folders that are not Strata's
``orphans``         garbage that is old enough: ``path``, ``bytes``, ``reason``
``removed``         the same for garbage that was removed
``stopped``         why the job ended early, otherwise empty
``notes``           further remarks
``exit_code``       0 if the dataset is sound or repaired, otherwise 1

Only ``damaged`` and ``unchecked`` files, and a stopped job, make the exit code 1.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..running.progress.summary import LISTED, Problem, Summary, plural, size, stage_line
from .checks import Damage
from .garbage import Garbage


@dataclass
class VerifyReport(Summary):
    """What was found and done. The module's docstring explains the fields."""

    dataset: str = ""
    level: str = "quick"
    subset: str | None = None
    seed: int | None = None
    manifest: int = 0
    new_manifest: int = 0
    files: int = 0
    files_read: int = 0
    pictures_decoded: int = 0
    bytes_read: int = 0
    model_id: str = ""
    model_state: str = "sound"
    damaged: list[Damage] = field(default_factory=list)
    unchecked: list[Problem] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    orphans: list[Garbage] = field(default_factory=list)
    removed: list[Garbage] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if nothing is damaged, or everything was repaired."""
        left = [damage for damage in self.damaged if not damage.repaired]
        return 1 if left or self.unchecked or self.stopped else 0

    def of_kind(self, kind: str) -> list[Damage]:
        return [damage for damage in self.damaged if damage.kind == kind]

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _AS_THEY_ARE}
        return values | {
            "seconds": round(self.seconds, 3),
            "model": {"id": self.model_id, "state": self.model_state},
            "damaged": [damage.to_json() for damage in self.damaged],
            "unchecked": [{"path": one.shard, "error": one.reason} for one in self.unchecked],
            "orphans": [_public(item) for item in self.orphans],
            "removed": [_public(item) for item in self.removed],
        }

    def lines(self) -> list[str]:
        out = [
            f"{self.dataset}: {self.level} check of {plural(self.files, 'data file')} "
            f"(manifest {self.manifest}), {size(self.bytes_read)} read in {self.seconds:.1f} s"
        ]
        if self.level != "quick":
            part = f", {self.subset}" if self.subset else ""
            seed = "" if self.seed is None else f", --seed {self.seed}"
            out.append(
                f"read in full: {plural(self.files_read, 'file')}{part}{seed}; "
                f"{plural(self.pictures_decoded, 'picture')} decoded"
            )
        if self.stopped:
            out.append(f"stopped: {self.stopped}")
        counts = [f"{self.totals[key]:,} {key}" for key in ("ok", "bad", "filtered") if self.totals]
        if counts:
            out.append(f"rows: {', '.join(counts)}; the model is {self.model_state}")
        for title, count in (
            ("shards that could not be compressed", len(self.failed)),
            (
                "recorded files newer than the manifest (run strata compress)",
                len(self.unlisted),
            ),
            ("files in the folders that are not Strata's", len(self.foreign)),
        ):
            out += [f"{title}: {count:,}"] if count else []
        if self.orphans:
            freed = size(sum(item.bytes for item in self.orphans))
            out.append(f"garbage: {plural(len(self.orphans), 'file')}, {freed} (--collect-garbage)")
        if self.removed:
            freed = size(sum(item.bytes for item in self.removed))
            out.append(f"garbage removed: {plural(len(self.removed), 'file')}, {freed}")
            out += _some([f"  {item.path}: {item.reason}" for item in self.removed])
        if self.slowest_stage:
            out.append(stage_line(self.slowest_stage, self.slowest_share))
        out += self.notes
        if self.unchecked:
            out.append(f"could not be checked: {len(self.unchecked)}")
            out += _some([f"  {one.shard}: {one.reason}" for one in self.unchecked])
        if self.damaged:
            repaired = sum(damage.repaired for damage in self.damaged)
            out.append(f"damaged: {len(self.damaged)}" + f", {repaired} repaired" * bool(repaired))
            out += _some([line for damage in self.damaged for line in _describe(damage)])
        elif not self.unchecked and not self.stopped:
            out.append("nothing is damaged")
        return out


_AS_THEY_ARE = (
    *("dataset", "level", "subset", "seed", "manifest", "new_manifest", "files", "files_read"),
    *("pictures_decoded", "bytes_read", "totals", "failed", "unlisted", "foreign", "stopped"),
    *("notes", "exit_code"),
)


def _describe(damage: Damage) -> list[str]:
    more = damage.problem_count - len(damage.problems[:3])
    text = "; ".join(damage.problems[:3]) + (f"; and {more} more" if more else "")
    lines = [f"  {damage.path}{' (repaired)' * damage.repaired}: {text}"]
    return lines + ([f"    not repaired: {damage.why_not}"] if damage.why_not else [])


def _some(lines: list[str]) -> list[str]:
    more = [f"  ... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return lines[:LISTED] + more


def _public(item: Garbage) -> dict[str, Any]:
    return {key: asdict(item)[key] for key in ("path", "bytes", "reason")}
