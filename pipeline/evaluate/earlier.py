"""Curves of an earlier evaluation of the same pictures, taken over as its report has them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..running.options import OptionError
from .figures import Evaluation, Figures, Series, Speed

_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Earlier:
    """What ``report.json`` of an earlier evaluation holds, or its copy beside a document."""

    path: Path
    reported: Mapping[str, Any]
    series: tuple[Series, ...]

    @classmethod
    def read(cls, path: Path) -> "Earlier":
        """Raises OptionError where it is not a report."""
        try:
            reported = json.loads(path.read_text())
            series = tuple(_series(one) for one in reported["series"])
            for key in ("made", "pictures", "models", "problems"):
                reported[key]
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise OptionError(
                f"--earlier {path}: not the report.json of an evaluation: {error!r}"
            ) from error
        return cls(path, reported, series)

    @property
    def curves(self) -> list[str]:
        """Names of curves that others may be held against."""
        return [one.name for one in self.series if not one.lossless]

    @property
    def groups(self) -> set[str]:
        return {one.group for one in self.series}

    @property
    def measured(self) -> set[str]:
        """Groups without those that were given."""
        return {one.group for one in self.series if not one.given}

    def check(self, pictures: Mapping[str, Any]) -> None:
        """Raises OptionError where it was made of other ``pictures``, as the report has them."""
        for key in ("count", "pixels", "sizes", "digest"):
            there = self.reported["pictures"].get(key)
            if key == "digest" and there is None:  # reports had none before 2026-11-22
                continue
            if there != pictures[key]:
                raise OptionError(
                    f"--earlier {self.path}: that was of other pictures: its {key} is {there}, "
                    f"here it is {pictures[key]}"
                )

    def complete(self, found: Evaluation) -> list[str]:
        """Add the curves of groups that were not measured now; return these groups.

        What was measured takes the place of its former curves; what is new comes first.
        """
        now = {one.group: [s for s in found.series if s.group == one.group] for one in found.series}
        order = list(dict.fromkeys([*(g for g in now if g not in self.groups), *self._order()]))
        kept = [group for group in order if group not in now]
        before = {group: [s for s in self.series if s.group == group] for group in kept}
        found.series[:] = [one for group in order for one in {**before, **now}[group]]
        measured = {one.name for one in found.speeds}
        found.speeds += [
            Speed(one["name"], one["encode"], one["decode"])
            for one in self.reported.get("speed", ())
            if one["name"] not in measured and one["name"].startswith(tuple(kept))
        ]
        return kept

    def _order(self) -> list[str]:
        return list(dict.fromkeys(one.group for one in self.series))

    def models(self, now: Sequence[Mapping[str, str]], kept: Sequence[str]) -> list[dict[str, str]]:
        """Those of the report whose curves may be among those taken over."""
        gone = {one["name"] for one in now} - set(kept)
        ids = {one["model_id"] for one in now}
        return [
            dict(one)
            for one in self.reported["models"]
            if one["name"] not in gone and one["model_id"] not in ids
        ]

    def sources(self, kept: Sequence[str]) -> list[dict[str, Any]]:
        """Where the groups that were taken over come from: this report, or one before it."""
        out = []
        for one in self.reported.get("earlier", ()):
            if of := [group for group in kept if group in one["of"]]:
                out.append({**one, "of": of})
        known = {group for one in out for group in one["of"]}
        if rest := [group for group in kept if group not in known]:
            facts = {key: self.reported.get(key) for key in ("made", "command", "versions")}
            out.append({"of": rest, **facts})
        return out


def _series(one: Mapping[str, Any]) -> Series:
    points = tuple(_figures(point) for point in one["points"])
    facts = {"is_model": one["model"], "lossless": one["lossless"], "given": one["given"]}
    return Series(one["name"], one["group"], one["kind"], points, **facts)


def _figures(point: Mapping[str, Any]) -> Figures:
    """As ``Figures.to_json`` made it. A PSNR that is missing is exact, others are not known."""
    known = {
        key: _UNKNOWN if point[key] is None else float(point[key])
        for key in ("ms_ssim", "swd", "swd_set")
    }
    return Figures(
        point["setting"],
        point["prefix"],
        bpp=point["bpp"],
        psnr=point["psnr"],
        psnr_mean=point["psnr_mean"],
        exact=point["exact"],
        lpips=point.get("lpips"),
        **known,
    )
