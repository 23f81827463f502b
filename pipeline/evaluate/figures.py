"""Computes figures from records: curves of all contenders, over the pictures that all measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..dataset.ledger import Ledger
from ..stores.store import Store
from .bench import Point
from .contenders import Contender
from .curves import falls, more_bits
from .measuring import METRICS
from .worker import MAX_RECORD_BYTES, RECORDS, EvaluationTask

SHOWN = "pictures of the report"
Picture = tuple[str, int]  # a shard's URL, and the sample's position in it


@dataclass(frozen=True)
class Figures:
    """The figures of one file of a contender, over all pictures.

    Attributes:
        bpp: bits per pixel: all bytes over all pixels.
        exact: how many pictures were decoded exactly.
        values: the figure of each metric: for PSNR from the mean squared error over all pixels, for
            a pooled metric from all pictures together, otherwise from the mean over pictures. None
            if it is infinite or was not measured.
        each: for each picture its bits per pixel, and its figure of each metric; NaN for an exact
            picture, and for a pooled metric.
    """

    setting: str
    prefix: int
    bpp: float
    exact: int
    values: Mapping[str, float | None]
    each: Mapping[str, np.ndarray] = field(repr=False, compare=False)

    @property
    def is_exact(self) -> bool:
        """Whether all pictures were decoded exactly."""
        return self.exact == len(self.each["bpp"])

    def to_json(self) -> dict[str, Any]:
        values = {m: None if v is None else round(v, 4) for m, v in self.values.items()}
        facts = {"setting": self.setting, "prefix": self.prefix, "bpp": round(self.bpp, 5)}
        return facts | values | {"exact": self.exact}


@dataclass(frozen=True)
class Series:
    """The points of one curve, by rate.

    ``kind`` is ``prefixes`` (one file, cut after each layer), ``settings`` (whole files) or
    ``single``. ``group`` is the contender's.
    """

    name: str
    group: str
    kind: str
    points: tuple[Figures, ...]
    is_model: bool = False
    lossless: bool = False

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Rates and qualities (more is better), without exact points."""
        sign = METRICS[metric].sign
        lossy = (p for p in self.points if not p.is_exact)
        return [(p.bpp, sign * v) for p in lossy if (v := p.values.get(metric)) is not None]

    def curve_of(self, picture: int, metric: str) -> list[tuple[float, float]]:
        """``curve`` of a single picture."""
        sign = METRICS[metric].sign
        points = [(p.each["bpp"][picture], sign * p.each[metric][picture]) for p in self.points]
        return [(rate, value) for rate, value in points if math.isfinite(value)]

    def worse(self, metric: str) -> list[int]:
        """The prefixes, counted from 1, that are worse than the one before."""
        if self.kind != "prefixes":
            return []
        sign = METRICS[metric].sign
        values = [p.values.get(metric) for p in self.points]
        return falls([math.inf if v is None else sign * v for v in values])


@dataclass(frozen=True)
class Bits:
    """How many percent more bits one curve takes than another at equal quality.

    It is the mean over ``pictures`` pictures. Their curves have in common, on average, the
    qualities from ``low`` to ``high``.
    """

    percent: float
    low: float
    high: float
    pictures: int


@dataclass
class Evaluation:
    """The results of an evaluation. ``problems`` are pictures and tasks without figures."""

    metrics: tuple[str, ...] = ()
    pictures: int = 0
    pixels: int = 0
    alpha: int = 0
    filtered: int = 0
    bad: int = 0
    sizes: tuple[str, ...] = ()
    series: list[Series] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    nodes: tuple[str, ...] = ()
    _bits: dict[tuple[str, str, str], Bits | None] = field(default_factory=dict, repr=False)

    def comparable(self) -> list[Series]:
        """One curve for each codec: its whole files by setting, or else one file by prefixes."""
        curves = [one for one in self.series if len(one.points) > 1 and not one.lossless]
        whole = {one.group for one in curves if one.kind == "settings"}
        return [one for one in curves if one.kind != "prefixes" or one.group not in whole]

    def bits(self, one: Series, other: Series, metric: str) -> Bits | None:
        """How many more bits ``one`` takes than ``other``; None if they share too little."""
        key = one.name, other.name, metric
        if key not in self._bits:
            self._bits[key] = self._compared(one, other, metric)
        return self._bits[key]

    def _compared(self, one: Series, other: Series, metric: str) -> Bits | None:
        span = METRICS[metric].span
        if span is None:
            return None
        sign = METRICS[metric].sign
        low, high = sorted(sign * end for end in span)
        found = [
            more_bits(one.curve_of(i, metric), other.curve_of(i, metric), (low, high))
            for i in range(self.pictures)
        ]
        known = np.array([each for each in found if each is not None])
        if 2 * len(known) < self.pictures:
            return None
        more, low, high = known.mean(0)
        low, high = sorted((sign * low, sign * high))
        return Bits(float(100 * np.expm1(more)), float(low), float(high), len(known))


@dataclass
class _Measured:
    """One contender's pictures, in the order of ``ids``: for each point a row of each picture."""

    contender: Contender
    ids: list[Picture] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    statistics: list[str | None] = field(default_factory=list)
    rows: dict[Point, list[list[Any]]] = field(default_factory=dict)

    def add(self, shard: str, record: Mapping[str, Any]) -> None:
        for picture in record["pictures"]:
            found = {Point.of_key(key): row for key, row in picture["points"].items()}
            for point in found:
                if point not in self.rows:  # earlier pictures have fewer layers: take their last
                    self.rows[point] = [self._missing(point, i) for i in range(len(self.ids))]
            for point, rows in self.rows.items():
                rows.append(found.get(point) or found[_nearest(point, found)])
            self.ids.append((shard, picture["index"]))
            self.pixels.append(picture["width"] * picture["height"])
            self.statistics.append(picture["statistics"])

    def _missing(self, point: Point, i: int) -> list[Any]:
        return self.rows[_nearest(point, self.rows)][i]

    def figures(self, point: Point, chosen: Sequence[int], names: Sequence[str]) -> Figures:
        """The figures over the pictures at the positions ``chosen``."""
        rows = [self.rows[point][i] for i in chosen]
        pixels = np.array(self.pixels, float)[chosen]
        nbytes, exact = (np.array([row[i] for row in rows], float) for i in (0, 1))
        exact = exact > 0
        values: dict[str, float | None] = {}
        each = {"bpp": 8 * nbytes / pixels}
        for number, name in enumerate(names, start=2):
            if METRICS[name].pooled:
                values[name] = self._pooled(name, [row[number] for row in rows], chosen)
                each[name] = np.full(len(rows), math.nan)
                continue
            column = np.array([row[number] for row in rows], float)  # None becomes NaN
            known = ~np.isnan(column)
            weights = pixels[known] if name == "psnr" else None
            mean = np.average(column[known], weights=weights) if known.any() else math.nan
            value = METRICS[name].shown(float(mean))
            values[name] = value if math.isfinite(value) else None
            each[name] = np.where(exact, math.nan, [METRICS[name].shown(v) for v in column])
        bpp = float(8 * nbytes.sum() / pixels.sum())
        return Figures(point.setting, point.prefix, bpp, int(exact.sum()), values, each)

    def _pooled(
        self, name: str, column: Sequence[str | None], chosen: Sequence[int]
    ) -> float | None:
        """The figure of a pooled metric, from the statistics of all originals and all pictures."""
        from codec.perception import frechet  # here, because --help must not import torch

        pairs = [(self.statistics[i], own) for i, own in zip(chosen, column, strict=True)]
        known = [(frechet.from_text(a), frechet.from_text(b)) for a, b in pairs if a and b]
        if not known:
            return None
        originals, shown = (np.sum(side, axis=0) for side in zip(*known, strict=True))
        return METRICS[name].shown(frechet.frechet_distance(originals, shown))


def _nearest(point: Point, among: Mapping[Point, Any]) -> Point:
    """The longest shorter prefix of the same setting, or else the shortest prefix."""
    same = sorted(
        (p for p in among if p.setting == point.setting and p != point), key=lambda p: p.prefix
    )
    shorter = [p for p in same if p.prefix < point.prefix]
    return shorter[-1] if shorter else same[0]


def collect(
    store: Store,
    fingerprint: str,
    tasks: Sequence[EvaluationTask],
    metrics: tuple[str, ...],
    failed: Mapping[str, str],
) -> Evaluation:
    """Read the records of ``tasks``. ``failed`` has the reasons of tasks without one, by name."""
    ledger = Ledger(store, fingerprint, RECORDS, most=MAX_RECORD_BYTES)
    out = Evaluation(metrics)
    nodes: dict[str, None] = {}
    measured: list[_Measured] = []
    facts: dict[Picture, tuple[int, bool, str]] = {}
    bad: set[Picture] = set()
    filtered: set[Picture] = set()
    for own in _by_contender(tasks):
        one = _Measured(own[0].contenders[0])
        title = SHOWN if own[0].rates else one.contender.title
        for task in own:
            record = ledger.read(task.name)
            url = task.shard.url
            if record is None:
                reason = failed.get(task.name, "was not measured")
                where = f"{url}, samples {task.start} to {task.stop - 1}"
                out.problems.append({"of": title, "what": where, "reason": reason})
                continue
            nodes[f"{record['node']} ({record['device']})"] = None
            for index, key, reason in record["failed"]:
                bad.add((url, index))
                what = f"{url}: {key}"
                out.problems.append({"of": title, "what": what, "reason": reason})
            filtered |= {(url, index) for index, *_ in record["left_out"]}
            if task.rates:
                out.shown += record["pictures"]
                continue
            one.add(url, record)
            for row in record["pictures"]:
                size = f"{row['width']}x{row['height']}"
                facts[url, row["index"]] = (row["width"] * row["height"], row["alpha"], size)
        if not own[0].rates:
            measured.append(one)
    out.problems = _merged(out.problems, len(measured))
    out.bad, out.filtered, out.nodes = len(bad), len(filtered), tuple(nodes)
    with_any = [one for one in measured if one.ids]
    common = set(facts).intersection(*(one.ids for one in with_any)) if with_any else set()
    out.unequal = sorted({one.contender.title for one in measured if set(one.ids) != set(facts)})
    out.pictures = len(common)
    out.pixels = sum(facts[id_][0] for id_ in common)
    out.alpha = sum(facts[id_][1] for id_ in common)
    sizes = [facts[id_][2] for id_ in common]
    out.sizes = tuple(sorted(set(sizes), key=lambda size: (-sizes.count(size), size)))
    if common:
        _add_series(out, with_any, common)
    return out


def _by_contender(tasks: Sequence[EvaluationTask]) -> list[list[EvaluationTask]]:
    """The tasks of each contender, and the tasks of pictures for the report."""
    found: dict[Any, list[EvaluationTask]] = {}
    for task in tasks:
        found.setdefault((task.contenders, task.rates), []).append(task)
    return list(found.values())


def _merged(problems: Sequence[dict[str, str]], contenders: int) -> list[dict[str, str]]:
    """The problems, with those of the same picture and reason merged into one."""
    by: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        by.setdefault((problem["what"], problem["reason"]), []).append(problem["of"])
    out = []
    for (what, reason), of in by.items():
        everybody = len(set(of) - {SHOWN}) == contenders > 1
        names = "all" if everybody else ", ".join(dict.fromkeys(of))
        out.append({"of": names, "what": what, "reason": reason})
    return out


def _add_series(out: Evaluation, measured: Sequence[_Measured], common: set[Picture]) -> None:
    groups: dict[str, list[tuple[_Measured, list[Figures]]]] = {}
    for one in measured:
        order = {id_: i for i, id_ in enumerate(one.ids)}
        chosen = [order[id_] for id_ in sorted(common)]
        figures = [one.figures(point, chosen, out.metrics) for point in one.rows]
        groups.setdefault(one.contender.group, []).append((one, figures))
    for group, members in groups.items():
        contender = members[0][0].contender
        facts = {"is_model": contender.is_model, "lossless": contender.lossless}
        settings: dict[str, list[Figures]] = {}
        for _, figures in members:
            for point in sorted(figures, key=lambda point: point.prefix):
                settings.setdefault(point.setting, []).append(point)
        whole = sorted((points[-1] for points in settings.values()), key=lambda p: p.bpp)
        if len(settings) > 1:
            out.series.append(Series(group, group, "settings", tuple(whole), **facts))
        elif len(settings[whole[0].setting]) == 1:
            out.series.append(Series(group, group, "single", tuple(whole), **facts))
        for setting, points in settings.items():
            if len(points) > 1:
                several = f"{group} {setting}" if len(settings) > 1 else group
                out.series.append(Series(several, group, "prefixes", tuple(points), **facts))
