"""From records to figures: curves of every contender over the pictures that all of them did."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codec.images import metrics

from ..dataset.ledger import Ledger
from ..stores.store import Store
from .contenders import Contender
from .curves import bd_rate, falls
from .measuring import PatchSet, Point
from .worker import RECORDS, EvaluationTask

Picture = tuple[str, int]  # a shard's URL, and the sample's position in it
_NBYTES, _MSE, _MS_SSIM, _SWD, _EXACT, _LEARNED = range(6)
METRICS = {"psnr": "PSNR", "psnr_mean": "mean PSNR", "ms_ssim": "MS-SSIM"}


@dataclass(frozen=True)
class Figures:
    """One file of a contender, over all pictures.

    Attributes:
        bpp: bits per pixel of all bytes over all pixels.
        psnr: dB, of the mean squared error over all pixels; None where every picture is exact.
        psnr_mean: dB, mean over pictures; None where one of them is exact.
        ms_ssim: mean over pictures.
        swd: sliced Wasserstein distance, mean over pictures; ``swd_set`` of all as one set.
        exact: how many pictures came back as they were.
        lpips: mean over pictures, where it was asked for.
    """

    setting: str
    prefix: int
    bpp: float
    psnr: float | None
    psnr_mean: float | None
    ms_ssim: float
    swd: float
    swd_set: float
    exact: int
    lpips: float | None = None

    def to_json(self) -> dict[str, Any]:
        out = {"setting": self.setting, "prefix": self.prefix, "exact": self.exact}
        numbers = {"bpp": 5, "psnr": 4, "psnr_mean": 4, "ms_ssim": 8, "swd": 6, "swd_set": 6}
        for name, digits in (numbers | {"lpips": 6}).items():
            value = getattr(self, name)
            if name != "lpips" or value is not None:
                unknown = value is None or not np.isfinite(value)
                out[name] = None if unknown else round(value, digits)
        similarity = metrics.ms_ssim_decibel(self.ms_ssim)
        out["ms_ssim_db"] = round(similarity, 3) if np.isfinite(similarity) else None
        return out


@dataclass(frozen=True)
class Series:
    """Points that belong together, by rate.

    ``kind`` is ``prefixes`` (one file, cut), ``settings`` (whole files), ``cuts`` (all prefixes of
    a peer's several files) or ``single``. ``group`` is the contender's. What is ``given`` was not
    measured here.
    """

    name: str
    group: str
    kind: str
    points: tuple[Figures, ...]
    is_model: bool = False
    lossless: bool = False
    given: bool = False

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Rates and values of ``psnr`` or ``ms_ssim`` in dB; exact points have infinitely many."""
        if metric == "psnr":
            return [(p.bpp, float("inf") if p.psnr is None else p.psnr) for p in self.points]
        if metric == "ms_ssim":
            return [(p.bpp, metrics.ms_ssim_decibel(p.ms_ssim)) for p in self.points]
        return [(p.bpp, getattr(p, metric)) for p in self.points]

    def worse(self) -> dict[str, list[int]]:
        """For each metric the prefixes (the first is 1) after which it is lower than before."""
        if self.kind != "prefixes":
            return {}
        values = {
            "psnr": [v for _, v in self.curve("psnr")],
            "psnr_mean": [np.inf if p.psnr_mean is None else p.psnr_mean for p in self.points],
            "ms_ssim": [p.ms_ssim for p in self.points],
        }
        return {metric: falls(of_prefix) for metric, of_prefix in values.items()}


@dataclass(frozen=True)
class Speed:
    """Megapixels a second of one contender, by the clock, with all workers side by side."""

    name: str
    encode: float
    decode: float


@dataclass
class Evaluation:
    """All that was measured. ``problems`` are pictures and tasks without figures, and why;
    ``digest`` tells sets of pictures apart."""

    pictures: int = 0
    pixels: int = 0
    alpha: int = 0
    filtered: int = 0
    bad: int = 0
    sizes: tuple[str, ...] = ()
    digest: str = ""
    series: list[Series] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    nodes: tuple[str, ...] = ()

    def find(self, name: str) -> Series | None:
        return next((one for one in self.series if one.name.lower() == name.lower()), None)

    def comparable(self) -> list[Series]:
        """Peers' curves, and models': whole files by setting, or one file by its prefixes; and of
        a peer all files that can be cut, as if one had always the best of them."""
        curves = [one for one in self.series if len(one.points) > 1 and not one.lossless]
        whole = {one.group for one in curves if one.kind == "settings"}
        return [one for one in curves if one.kind != "prefixes" or one.group not in whole]

    def bd_rates(self, anchor: str) -> dict[str, dict[str, float | None]]:
        """By series the percent of bits beyond the anchor's, in ``psnr`` and ``ms_ssim``."""
        base = self.find(anchor)
        if base is None:
            return {}
        return {
            one.name: {m: bd_rate(one.curve(m), base.curve(m)) for m in ("psnr", "ms_ssim")}
            for one in self.series
            if one is not base and len(one.points) > 1
        }


@dataclass
class _Measured:
    """One contender's pictures: figures by point, ``(pictures, 6)``, in the order of ``ids``."""

    contender: Contender
    ids: list[Picture] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    rows: dict[Point, list[list[float]]] = field(default_factory=dict)
    sets: dict[Point, PatchSet] = field(default_factory=dict)
    originals: PatchSet = field(default_factory=PatchSet)
    encode_s: float = 0.0
    decode_s: float = 0.0

    def add(self, shard: str, record: Mapping[str, Any]) -> None:
        for picture in record["pictures"]:
            found = {Point.of_key(key): row for key, row in picture["points"].items()}
            for point in found:
                if point not in self.rows:  # earlier pictures have their last prefix before it
                    self.rows[point] = [self._missing(point, i) for i in range(len(self.ids))]
            for point, rows in self.rows.items():
                rows.append(found.get(point) or found[_nearest(point, found)])
            self.ids.append((shard, picture["index"]))
            self.pixels.append(picture["width"] * picture["height"])
            self.encode_s += picture["encode_s"]
            self.decode_s += picture["decode_s"]
        for key, packed in record["sets"].items():
            self.sets.setdefault(Point.of_key(key), PatchSet()).merge(PatchSet.unpack(packed))
        self.originals.merge(PatchSet.unpack(record["originals"]))

    def _missing(self, point: Point, i: int) -> list[float]:
        return self.rows[_nearest(point, self.rows)][i]

    def figures(self, point: Point, chosen: np.ndarray) -> Figures:
        """Over the pictures at these positions."""
        table = np.array(
            [[np.nan if v is None else v for v in self.rows[point][i]] for i in chosen], float
        )
        pixels = np.array(self.pixels, float)[chosen]
        errors = table[:, _MSE]
        psnr = metrics.psnr_of_mean_mse([float(np.average(errors, weights=pixels))])
        each = [metrics.psnr_of_mean_mse([error]) for error in errors]
        learned = table[:, _LEARNED]
        return Figures(
            point.setting,
            point.prefix,
            bpp=float(8 * table[:, _NBYTES].sum() / pixels.sum()),
            psnr=psnr if np.isfinite(psnr) else None,
            psnr_mean=float(np.mean(each)) if np.isfinite(each).all() else None,
            ms_ssim=float(table[:, _MS_SSIM].mean()),
            swd=float(table[:, _SWD].mean()),
            swd_set=self.sets[point].distance(self.originals),
            exact=int(table[:, _EXACT].sum()),
            lpips=None if np.isnan(learned).all() else float(np.nanmean(learned)),
        )


def _nearest(point: Point, among: Mapping[Point, Any]) -> Point:
    """The longest prefix of the same setting that is not longer, or else the shortest."""
    same = sorted(
        (p for p in among if p.setting == point.setting and p != point), key=lambda p: p.prefix
    )
    shorter = [p for p in same if p.prefix < point.prefix]
    return shorter[-1] if shorter else same[0]


def collect(
    store: Store, fingerprint: str, tasks: Sequence[EvaluationTask], failed: Mapping[str, str]
) -> Evaluation:
    """Read the records of ``tasks``, of which those ``failed`` by name have none, and why."""
    ledger = Ledger(store, fingerprint, RECORDS)
    out = Evaluation()
    nodes: dict[str, None] = {}
    measured: list[_Measured] = []
    facts: dict[Picture, tuple[int, bool, str]] = {}
    bad: set[Picture] = set()
    filtered: set[Picture] = set()
    for contender, own in _by_contender(tasks):
        one = _Measured(contender)
        for task in own:
            record = ledger.read(task.name)
            if record is None:
                reason = failed.get(task.name, "was not measured")
                where = f"{task.shard.url}, samples {task.start} to {task.stop - 1}"
                out.problems.append({"of": _title(contender), "what": where, "reason": reason})
                continue
            url = task.shard.url
            one.add(url, record)
            nodes[f"{record['node']} ({record['device']})"] = None
            for row in record["pictures"]:
                size = f"{row['width']}x{row['height']}"
                facts[url, row["index"]] = (row["width"] * row["height"], row["alpha"], size)
            filtered |= {(url, index) for index, *_ in record["left_out"]}
            for index, key, reason in record["failed"]:
                bad.add((url, index))
                what = f"{url}: {key}"
                out.problems.append({"of": _title(contender), "what": what, "reason": reason})
            out.shown += [
                {**shown, "shard": url, "group": contender.group} for shown in record["shown"]
            ]
        measured.append(one)
    out.problems = _merged(out.problems, len(measured))
    out.bad, out.filtered, out.nodes = len(bad), len(filtered), tuple(nodes)
    with_any = [one for one in measured if one.ids]
    common = set(facts).intersection(*(one.ids for one in with_any)) if with_any else set()
    out.unequal = sorted({_title(one.contender) for one in measured if set(one.ids) != set(facts)})
    out.pictures = len(common)
    out.pixels = sum(facts[id_][0] for id_ in common)
    out.alpha = sum(facts[id_][1] for id_ in common)
    sizes = [facts[id_][2] for id_ in common]
    out.sizes = tuple(sorted(set(sizes), key=lambda size: (-sizes.count(size), size)))
    if common:
        _add_series(out, with_any, common)
    return out


def _merged(problems: Sequence[dict[str, str]], contenders: int) -> list[dict[str, str]]:
    """What is wrong with a picture for every contender is said once."""
    by: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        by.setdefault((problem["what"], problem["reason"]), []).append(problem["of"])
    return [
        {
            "of": "all" if len(of) == contenders > 1 else ", ".join(dict.fromkeys(of)),
            "what": what,
            "reason": reason,
        }
        for (what, reason), of in by.items()
    ]


def _by_contender(
    tasks: Sequence[EvaluationTask],
) -> list[tuple[Contender, list[EvaluationTask]]]:
    found: dict[str, tuple[Contender, list[EvaluationTask]]] = {}
    for task in tasks:
        key = json.dumps(task.contender.to_json(), sort_keys=True)
        found.setdefault(key, (task.contender, []))[1].append(task)
    return list(found.values())


def _title(contender: Contender) -> str:
    return f"{contender.group} {contender.setting}".strip()


def _add_series(out: Evaluation, measured: Sequence[_Measured], common: set[Picture]) -> None:
    groups: dict[str, list[tuple[_Measured, list[Figures]]]] = {}
    for one in measured:
        chosen = np.array([i for i, id_ in enumerate(one.ids) if id_ in common])
        figures = [one.figures(point, chosen) for point in one.rows]
        groups.setdefault(one.contender.group, []).append((one, figures))
        megapixels = sum(one.pixels) / 1e6
        seconds = max(one.encode_s, 1e-9), max(one.decode_s, 1e-9)
        speeds = [megapixels / each for each in seconds]
        out.speeds.append(Speed(_title(one.contender), *speeds))
    for group, members in groups.items():
        facts = {
            "is_model": members[0][0].contender.is_model,
            "lossless": members[0][0].contender.lossless,
        }
        settings: dict[str, list[Figures]] = {}
        for _, figures in members:
            for point in sorted(figures, key=lambda point: point.prefix):
                settings.setdefault(point.setting, []).append(point)
        whole = sorted((points[-1] for points in settings.values()), key=lambda p: p.bpp)
        if len(settings) > 1:
            out.series.append(Series(group, group, "settings", tuple(whole), **facts))
        elif len(whole) and len(next(iter(settings.values()))) == 1:
            out.series.append(Series(group, group, "single", tuple(whole), **facts))
        for setting, points in settings.items():
            if len(points) > 1:
                several = f"{group} {setting}" if len(settings) > 1 else group
                out.series.append(Series(several, group, "prefixes", tuple(points), **facts))
        cut = [points for points in settings.values() if len(points) > 1]
        if len(cut) > 1 and not facts["is_model"]:
            every = sorted(itertools.chain(*cut), key=lambda point: point.bpp)
            out.series.append(Series(f"{group}, cut", group, "cuts", tuple(every), **facts))


def given_series(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """Rates and PSNRs that others measured, on the same pictures."""
    nan = float("nan")
    figures = [
        Figures("", 1, rate, value, value, nan, nan, nan, 0) for rate, value in sorted(points)
    ]
    return Series(name, name, "settings", tuple(figures), given=True)
