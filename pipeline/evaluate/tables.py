"""The figures as tables and sentences, for Markdown and for the page."""

import itertools
from dataclasses import dataclass

from .curves import at_rate
from .figures import Bits, Evaluation, Figures, Series
from .measuring import METRICS


@dataclass(frozen=True)
class Table:
    """A title, a line about it, a header, and rows of text.

    ``best`` has, for each row, the number of the cell that is to stand out.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    best: tuple[int | None, ...] = ()

    def markdown(self) -> str:
        return f"### {self.title}\n\n{self.body()}"

    def body(self) -> str:
        """As Markdown without the title."""
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
    """What a model's curve takes against others, and where others win, in sentences."""
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
    """The figure of the verdict: the first in which the curve can be compared with any other."""
    others = others_of(found, one)
    known = (m for m in found.metrics if any(found.bits(one, other, m) for other in others))
    return next(known, "ssimulacra2")


def best_first(found: Evaluation, one: Series) -> list[tuple[Series, Bits]]:
    """Other curves with the bits of ``one`` beyond theirs, codecs before models."""
    first = judge(found, one)
    rows = [(other, found.bits(one, other, first)) for other in others_of(found, one)]
    known = [(other, bits) for other, bits in rows if bits is not None]
    return sorted(known, key=lambda row: (row[0].is_model, -row[1].percent))


def _fewer(percent: float) -> str:
    if abs(percent) < 0.5:
        return "as many as"
    return f"{abs(percent):.0f} % {'fewer' if percent < 0 else 'more'} than"


def span_words(metric: str) -> str:
    """A metric, and between which qualities bits are compared."""
    span = METRICS[metric].span
    assert span is not None
    return f"{METRICS[metric].title} (mean over {span[0]:g} to {span[1]:g})"


def tables(found: Evaluation) -> list[Table]:
    """All of them, models first."""
    out: list[Table] = []
    for one in model_curves(found):
        out.append(bits_table(found, one))
        for metric in found.metrics:
            out.append(beside_table(found, one, metric))
    out.append(exact_table(found))
    out += [own_table(found, one) for one in found.series]
    return [table for table in out if table.rows]


def bits_table(found: Evaluation, one: Series) -> Table:
    """A model's bits beyond those of every other curve, for every metric."""
    others = others_of(found, one)
    names = [m for m in found.metrics if any(found.bits(one, other, m) for other in others)]
    rows = []
    for other in others:
        bits = [found.bits(one, other, name) for name in names]
        if any(bits):
            rows.append((other.name, *map(_bits, bits, names)))
    note = (
        f"Bits of {one.name} beyond those of each other codec at equal quality (BD-rate); less is "
        "better. Means over pictures of the curves' distances between the qualities in the head; "
        "where curves share only a part of these, the part stands beside."
    )
    spans = [f"{METRICS[name].title}, {_span(METRICS[name].span)}" for name in names]
    return Table(f"{one.name}: bits at equal quality", ("against", *spans), tuple(rows), note)


def _span(span: tuple[float, float] | None) -> str:
    return "" if span is None else f"{span[0]:g} to {span[1]:g}"


def _bits(bits: Bits | None, metric: str) -> str:
    return "" if bits is None else f"{bits.percent:+.1f} %{part(bits, metric)}"


def part(bits: Bits, metric: str) -> str:
    """Between which qualities two curves were compared, where that is not the whole span."""
    low, high = METRICS[metric].span or (0, 0)
    if bits.high - bits.low > 0.9 * (high - low):
        return ""
    digits = 0 if METRICS[metric].sign > 0 else 1
    return f" ({bits.low:.{digits}f} to {bits.high:.{digits}f})"


def beside_table(found: Evaluation, one: Series, metric: str) -> Table:
    """What others reach at the rates of a curve, between the points of their own files."""
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
        f"{METRICS[metric].words} At the same rate, interpolated in its logarithm between each "
        "codec's own files; empty where it has none near it. The best of a row stands out."
    )
    header = (_first(one), "bpp", one.name, *(other.name for other in others))
    title = f"{one.name}: {METRICS[metric].title}, beside others"
    return Table(title, header, tuple(rows), note, tuple(best))


def own_table(found: Evaluation, one: Series) -> Table:
    """What a series reaches itself."""
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
        words = ["No prefix is worse than the one before it, in any figure."]
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
    """Everything that gave every picture back as it was, by rate."""
    rows = []
    for one in found.series:
        for point in one.points:
            if point.is_exact or (one.lossless and point.exact):
                label = "" if one.kind == "single" else f", {_first(one)} {_label(one, point)}"
                rows.append((point.bpp, one.name + label, point.exact))
    cells = [(name, f"{bpp:.3f}", f"{n} of {found.pictures}") for bpp, name, n in sorted(rows)]
    note = "Files that give every picture back bit by bit; the smallest first."
    return Table("Exact files", ("", "bpp", "exact pictures"), tuple(dict.fromkeys(cells)), note)
