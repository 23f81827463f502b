"""Makes tables and sentences of the figures, for Markdown and for the page."""

import itertools
from dataclasses import dataclass

from .curves import at_rate
from .figures import Bits, Evaluation, Figures, Series
from .measuring import METRICS


@dataclass(frozen=True)
class Table:
    """A title, a note, a header, and rows of text.

    ``best`` has, for each row, the number of the cell that is shown in bold.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    best: tuple[int | None, ...] = ()

    def markdown(self) -> str:
        return f"### {self.title}\n\n{self.body()}"

    def body(self) -> str:
        """The Markdown without the title."""
        lines = [self.note, ""] if self.note else []
        lines.append("| " + " | ".join(map(_cell, self.header)) + " |")
        lines.append("|---" * len(self.header) + "|")
        for row, best in itertools.zip_longest(self.rows, self.best):
            cells = [f"**{text}**" if i == best else text for i, text in enumerate(row)]
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def model_curves(found: Evaluation) -> list[Series]:
    return [one for one in found.comparable() if one.is_model]


def others_of(found: Evaluation, one: Series) -> list[Series]:
    return [other for other in found.comparable() if other.group != one.group]


def verdicts(found: Evaluation, one: Series) -> list[str]:
    """Sentences: the bits of a model's curve compared with others, and where others are better."""
    out, first = [], judge(found, one)
    if known := best_first(found, one):
        words = ", ".join(
            f"{_fewer(bits.percent)} {other.name}{part(bits, first)}" for other, bits in known
        )
        out.append(f"For the same {span_words(first)} {one.name} takes these bits: {words}.")
    for metric in found.metrics:
        lost = [
            f"{other.name} ({bits.percent:+.0f} %)"
            for other in others_of(found, one)
            if metric != first and (bits := found.bits(one, other, metric)) and bits.percent >= 0.5
        ]
        if lost:
            title = METRICS[metric].title.partition(",")[0]
            out.append(f"At equal {title} it takes more bits than {', '.join(lost)}.")
    exact = [(p.bpp, s.group) for s in found.series for p in s.points if p.is_exact]
    own = [bpp for bpp, group in exact if group == one.group]
    better = [f"{group} ({bpp:.2f})" for bpp, group in sorted(exact) if own and bpp < min(own)]
    if own:
        words = f"Its exact files have {min(own):.2f} bits per pixel"
        out.append(f"{words}; smaller ones: {', '.join(dict.fromkeys(better)) or 'none'}.")
    return out


def judge(found: Evaluation, one: Series) -> str:
    """The metric of the verdict: the first in which the curve can be compared with another."""
    others = others_of(found, one)
    known = (m for m in found.metrics if any(found.bits(one, other, m) for other in others))
    return next(known, "ssimulacra2")


def best_first(found: Evaluation, one: Series) -> list[tuple[Series, Bits]]:
    """Other curves, each with how many more bits ``one`` takes; codecs come before models."""
    first = judge(found, one)
    rows = [(other, found.bits(one, other, first)) for other in others_of(found, one)]
    known = [(other, bits) for other, bits in rows if bits is not None]
    return sorted(known, key=lambda row: (row[0].is_model, -row[1].percent))


def _fewer(percent: float) -> str:
    if abs(percent) < 0.5:
        return "as many as"
    return f"{abs(percent):.0f} % {'fewer' if percent < 0 else 'more'} than"


def span_words(metric: str) -> str:
    """A metric's title, and the qualities between which bits are compared."""
    span = METRICS[metric].span
    assert span is not None
    return f"{METRICS[metric].title} (mean over {span[0]:g} to {span[1]:g})"


def tables(found: Evaluation) -> list[Table]:
    """All tables, those of models first."""
    out: list[Table] = []
    for one in model_curves(found):
        out.append(bits_table(found, one))
        for metric in found.metrics:
            out.append(beside_table(found, one, metric))
    out.append(exact_table(found))
    out += [own_table(found, one) for one in found.series]
    return [table for table in out if table.rows]


def bits_table(found: Evaluation, one: Series) -> Table:
    """How many more bits a model takes than each other curve, by metric."""
    others = others_of(found, one)
    names = [m for m in found.metrics if any(found.bits(one, other, m) for other in others)]
    rows = []
    for other in others:
        bits = [found.bits(one, other, name) for name in names]
        if any(bits):
            rows.append((other.name, *map(_bits, bits, names)))
    note = (
        f"How many more bits {one.name} takes than each other codec at equal quality (BD-rate); "
        "less is better. Means over pictures, between the qualities in the header; if two curves "
        "share only a part of these, the part is given in brackets."
    )
    spans = [f"{METRICS[name].title}, {_span(METRICS[name].span)}" for name in names]
    return Table(f"{one.name}: bits at equal quality", ("against", *spans), tuple(rows), note)


def _span(span: tuple[float, float] | None) -> str:
    return "" if span is None else f"{span[0]:g} to {span[1]:g}"


def _bits(bits: Bits | None, metric: str) -> str:
    return "" if bits is None else f"{bits.percent:+.1f} %{part(bits, metric)}"


def part(bits: Bits, metric: str) -> str:
    """The qualities between which two curves were compared; '' if that is the whole span."""
    low, high = METRICS[metric].span or (0, 0)
    if bits.high - bits.low > 0.9 * (high - low):
        return ""
    digits = 0 if METRICS[metric].sign > 0 else 1
    return f" ({bits.low:.{digits}f} to {bits.high:.{digits}f})"


def beside_table(found: Evaluation, one: Series, metric: str) -> Table:
    """The figures of other codecs at the rates of a curve, interpolated between their files."""
    others = others_of(found, one)
    sign = METRICS[metric].sign
    rows, best = [], []
    for point in one.points:
        at = [at_rate(other.curve(metric), point.bpp) for other in others]
        own = point.values.get(metric)
        goodness = [None if own is None or point.is_exact else sign * own, *at]
        known = [value for value in goodness if value is not None]
        best.append(2 + goodness.index(max(known)) if len(known) > 1 else None)
        there = [_number(None if value is None else sign * value, metric) for value in at]
        rows.append((_label(one, point), _rate(point.bpp), _value(point, metric), *there))
    note = (
        f"{METRICS[metric].words} Each row compares at the same rate, interpolated in its "
        "logarithm between each codec's files; a cell is empty if a codec has no file near that "
        "rate. The best of a row is bold."
    )
    header = (_first(one), "bpp", one.name, *(other.name for other in others))
    title = f"{one.name}: {METRICS[metric].title}, beside others"
    return Table(title, header, tuple(rows), note, tuple(best))


def own_table(found: Evaluation, one: Series) -> Table:
    """The figures of one series."""
    rows = [
        (
            _label(one, point),
            _rate(point.bpp),
            *(_value(point, name) for name in found.metrics),
            str(point.exact),
        )
        for point in one.points
    ]
    worse = {METRICS[name].title: one.worse(name) for name in found.metrics}
    words = [f"{name} is worse after {', '.join(map(str, at))}" for name, at in worse.items() if at]
    if one.kind == "prefixes" and not words:
        words = ["No prefix is worse than the one before it in any metric."]
    header = (_first(one), "bpp", *(METRICS[name].title for name in found.metrics), "exact")
    kinds = {"prefixes": "after each layer of one file", "settings": "whole files"}
    title = f"{one.name}: {kinds[one.kind]}" if one.kind in kinds else one.name
    return Table(title, header, tuple(rows), "; ".join(words))


def _first(one: Series) -> str:
    return "layers" if one.kind == "prefixes" else "setting"


def _label(one: Series, point: Figures) -> str:
    return str(point.prefix) if one.kind == "prefixes" else point.setting


def _rate(bpp: float) -> str:
    return f"{bpp:.3f}" if bpp < 1 else f"{bpp:.2f}"


def _value(point: Figures, metric: str) -> str:
    return "exact" if point.is_exact else _number(point.values.get(metric), metric)


def _number(value: float | None, metric: str) -> str:
    return "" if value is None else f"{value:z.{METRICS[metric].digits}f}"  # z: no "-0.0"


def exact_table(found: Evaluation) -> Table:
    """All exact files, by rate."""
    rows = []
    for one in found.series:
        for point in one.points:
            if point.is_exact or (one.lossless and point.exact):
                label = "" if one.kind == "single" else f", {_first(one)} {_label(one, point)}"
                rows.append((point.bpp, one.name + label, point.exact))
    cells = [(name, f"{bpp:.3f}", f"{n} of {found.pictures}") for bpp, name, n in sorted(rows)]
    note = "Files from which every pixel comes back exactly; the smallest first."
    return Table("Exact files", ("", "bpp", "exact pictures"), tuple(dict.fromkeys(cells)), note)
