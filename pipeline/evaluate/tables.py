"""The figures as tables, for Markdown and for the page."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from codec.images import metrics

from .curves import above, at_rate, bd_rate
from .figures import METRICS, Evaluation, Figures, Series

_REALISM = ("psnr", "ms_ssim", "swd", "swd_set")
_LABELS = {"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM, dB", "swd": "SWD"}


@dataclass(frozen=True)
class Table:
    """A title, a line about it, a header, and rows of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        return f"### {self.title}\n\n{self.body()}"

    def body(self) -> str:
        """As Markdown without the title."""
        lines = [self.note, ""] if self.note else []
        lines.append("| " + " | ".join(map(_cell, self.header)) + " |")
        lines.append("|---" * len(self.header) + "|")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
            for row in self.rows
        )
        note = f"<p>{html.escape(self.note)}</p>\n" if self.note else ""
        return (
            f"<h3>{html.escape(self.title)}</h3>\n{note}<div class=wide><table><thead><tr>{head}"
            f"</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def tables(found: Evaluation, anchor: str) -> list[Table]:
    """All of them, models first."""
    out: list[Table] = []
    for one in found.series:
        if one.is_model:
            out.append(own_table(one))
            others = [other for other in found.comparable() if other.group != one.group]
            out += [other_table(one, others, metric) for metric in _LABELS if others]
    out += [decoders_table(found), bd_table(found, anchor)]
    out += [against_table(found, metric) for metric in ("psnr", "ms_ssim")]
    out += [above_table(found, metric) for metric in ("psnr", "ms_ssim")]
    out.append(lossless_table(found))
    out += [
        own_table(one)
        for one in found.series
        if not (one.is_model or one.lossless or one.given or one.kind == "cuts")
    ]
    out.append(speed_table(found))
    return [table for table in out if table.rows]


def own_table(one: Series) -> Table:
    """What a series reaches itself."""
    learned = any(point.lpips is not None for point in one.points)
    header = ["bpp", "PSNR, dB", "mean PSNR", "MS-SSIM", "in dB", "SWD", "SWD, set", "exact"]
    rows = []
    for point in one.points:
        row = [
            f"{point.bpp:.4f}",
            _decibel(point.psnr),
            _decibel(point.psnr_mean),
            f"{point.ms_ssim:.5f}",
            f"{metrics.ms_ssim_decibel(point.ms_ssim):.2f}",
            f"{1000 * point.swd:.1f}",
            f"{1000 * point.swd_set:.1f}",
            str(point.exact),
        ]
        if learned:
            row.append("" if point.lpips is None else f"{point.lpips:.4f}")
        rows.append((_label(one, point), *row))
    names = [_first(one), *header, *(["LPIPS"] if learned else [])]
    return Table(_title(one), tuple(names), tuple(rows), "; ".join(verdicts(one)))


def _title(one: Series) -> str:
    kinds = {"prefixes": "after each part of one file", "settings": "whole files"}
    return f"{one.name}: {kinds[one.kind]}" if one.kind in kinds else one.name


def _first(one: Series) -> str:
    if one.kind == "prefixes":
        return "layers" if one.is_model or "2000" in one.group else "scans"
    return "setting"


def _label(one: Series, point: Figures) -> str:
    return str(point.prefix) if one.kind == "prefixes" else point.setting


def _decibel(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f}"


def verdicts(one: Series) -> list[str]:
    """Whether any prefix is worse than the one before it."""
    out = []
    for metric, layers in one.worse().items():
        if layers:
            after = ", ".join(map(str, layers))
            out.append(f"{METRICS[metric]} falls after {after}")
    if one.kind == "prefixes" and not out:
        out.append("no prefix is worse than the one before it")
    return out


def other_table(one: Series, others: Sequence[Series], metric: str) -> Table:
    """What others reach at the rates of a series, between the points of their own files."""
    curves = [_rising(other, metric) for other in others]
    rows = []
    for point, (_, value) in zip(one.points, _rising(one, metric), strict=True):
        at = [at_rate(curve, point.bpp) for curve in curves]
        cells = ["" if there is None else _number(there, metric) for there in at]
        own = "exact" if point.psnr is None else _number(value, metric)
        rows.append((_label(one, point), f"{point.bpp:.3f}", own, *cells))
    header = (_first(one), "bpp", one.group, *(other.name for other in others))
    note = "At the same rate, interpolated in its logarithm; empty where there is no file near it."
    return Table(f"{one.name}: {_LABELS[metric]}, beside others", header, tuple(rows), note)


def _rising(one: Series, metric: str) -> list[tuple[float, float]]:
    """A curve that rises with quality: distances with a minus."""
    sign = -1 if metric.startswith("swd") else 1
    return [(rate, sign * value) for rate, value in one.curve(metric)]


def _number(value: float, metric: str) -> str:
    return f"{-1000 * value:.1f}" if metric.startswith("swd") else f"{value:.2f}"


def bd_table(found: Evaluation, anchor: str) -> Table:
    rates = found.bd_rates(anchor)
    rows = tuple(
        (name, *(_percent(of[metric]) for metric in ("psnr", "ms_ssim")))
        for name, of in sorted(rates.items(), key=lambda item: _sortable(item[1]["psnr"]))
        if any(value is not None for value in of.values())
    )
    note = f"Bits beyond those of {anchor} at equal quality, where both have it. Less is better."
    return Table("BD-rate", ("curve", "PSNR", "MS-SSIM"), rows, note)


def against_table(found: Evaluation, metric: str) -> Table:
    """BD-rates of every curve of a model against every other codec's."""
    others = found.comparable()
    rows = []
    for own in _model_curves(found):
        rates = [
            None if one.group == own.group else bd_rate(own.curve(metric), one.curve(metric))
            for one in others
        ]
        rows.append((own.name, *map(_percent, rates)))
    header = ("bits of", *(one.name for one in others))
    note = "Bits beyond those of each other codec at equal quality, where both have it."
    return _without_empty(f"BD-rate against each, {_LABELS[metric]}", header, rows, note)


def above_table(found: Evaluation, metric: str) -> Table:
    """Between which rates every curve of a model is above every other codec's."""
    others = found.comparable()
    rows = []
    for own in _model_curves(found):
        cells = []
        for one in others:
            own_curve, other = own.curve(metric), one.curve(metric)
            spans = None if one.group == own.group else above(own_curve, other)
            cells.append("" if spans is None else _spans(spans))
        rows.append((own.name, *cells))
    header = ("above, in bpp", *(one.name for one in others))
    note = (
        "Between which rates it is better, of those that both have; between points, both are "
        "interpolated in the logarithm of the rate."
    )
    return _without_empty(f"Where it is above, {_LABELS[metric]}", header, rows, note)


def _model_curves(found: Evaluation) -> list[Series]:
    return [one for one in found.series if one.is_model and len(one.points) > 1]


def _without_empty(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str
) -> Table:
    """A table without rows and columns that have nothing but a name."""
    rows = [row for row in rows if any(row[1:])]
    kept = [0, *(i for i in range(1, len(header)) if any(row[i] for row in rows))]
    cells = tuple(tuple(row[i] for i in kept) for row in rows)
    return Table(title, tuple(header[i] for i in kept), cells, note)


def _spans(spans: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{low:.2g}-{high:.2g}" for low, high in spans) or "nowhere"


def decoders_table(found: Evaluation) -> Table:
    """The same files decoded in several ways, beside others at their rates."""
    whole: dict[tuple[str, str], list[tuple[Series, Figures]]] = {}
    for one in found.series:
        if one.is_model and one.kind != "prefixes":
            for point in one.points:
                whole.setdefault((point.setting, f"{point.bpp:.5f}"), []).append((one, point))
    others = [one for one in found.comparable() if not one.is_model and not one.given]
    rows = []
    for (setting, _), several in whole.items():
        if len(several) < 2:
            continue
        bpp = several[0][1].bpp
        for one, point in several:
            similarity = metrics.ms_ssim_decibel(point.ms_ssim)
            cells = [_decibel(point.psnr), f"{similarity:.2f}"]
            cells += [f"{1000 * point.swd:.1f}", f"{1000 * point.swd_set:.1f}"]
            rows.append((f"{one.group}, {setting}", f"{bpp:.3f}", *cells))
        for one in others:
            at = [at_rate(_rising(one, metric), bpp) for metric in _REALISM]
            if any(value is not None for value in at):
                cells = [
                    "" if value is None else _number(value, metric)
                    for value, metric in zip(at, _REALISM, strict=True)
                ]
                rows.append((one.name, f"{bpp:.3f}", *cells))
    header = ("decoder", "bpp", "PSNR, dB", "MS-SSIM, dB", "SWD", "SWD, set")
    note = "The same files decoded in several ways, and what others have at the same rate."
    return Table("Decoders", header, tuple(rows), note)


def _sortable(value: float | None) -> float:
    return float("inf") if value is None else value


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


def lossless_table(found: Evaluation) -> Table:
    """Everything that gave every picture back as it was, by rate."""
    rows = []
    for one in found.series:
        for point in one.points:
            if point.exact == found.pictures or (one.lossless and point.exact):
                label = "" if one.kind == "single" else f", {_first(one)} {_label(one, point)}"
                rows.append((point.bpp, one.name + label, point.exact))
    shown = _unique(
        ((name, f"{bpp:.3f}", f"{n} of {found.pictures}") for bpp, name, n in sorted(rows))
    )
    return Table("Exact", ("", "bpp", "exact pictures"), shown)


def _unique(rows: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    return tuple(dict.fromkeys(rows))


def speed_table(found: Evaluation) -> Table:
    number: Callable[[float], str] = lambda value: f"{value:.3g}"  # noqa: E731
    rows = tuple((one.name, number(one.encode), number(one.decode)) for one in found.speeds)
    note = (
        "Megapixels a second by the clock, as it went with all workers side by side: no benchmark. "
        "Models decode all prefixes; of peers it is the mean of the settings."
    )
    return Table("Speed in this run", ("", "encode", "decode"), rows, note)
