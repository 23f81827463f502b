"""The figures as tables, for Markdown and for the page."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from codec import metrics

from .curves import at_rate
from .figures import METRICS, Evaluation, Figures, Series

_LABELS = {"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM, dB", "swd": "SWD"}


@dataclass(frozen=True)
class Table:
    """A title, a line about it, a header, and rows of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
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
            others = comparable(found, one)
            out += [other_table(one, others, metric) for metric in _LABELS if others]
    out += [bd_table(found, anchor), lossless_table(found)]
    out += [own_table(one) for one in found.series if not one.is_model and not one.lossless]
    out.append(speed_table(found))
    return [table for table in out if table.rows]


def comparable(found: Evaluation, own: Series) -> list[Series]:
    """Curves of others: their whole files by setting, or their one file by its prefixes."""
    others = [one for one in found.series if one.group != own.group and len(one.points) > 1]
    whole = {one.group for one in others if one.kind == "settings"}
    return [one for one in others if one.kind == "settings" or one.group not in whole]


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
    sign = -1 if metric == "swd" else 1
    return [(rate, sign * value) for rate, value in one.curve(metric)]


def _number(value: float, metric: str) -> str:
    return f"{-1000 * value:.1f}" if metric == "swd" else f"{value:.2f}"


def bd_table(found: Evaluation, anchor: str) -> Table:
    rates = found.bd_rates(anchor)
    rows = tuple(
        (name, *(_percent(of[metric]) for metric in ("psnr", "ms_ssim")))
        for name, of in sorted(rates.items(), key=lambda item: _sortable(item[1]["psnr"]))
        if any(value is not None for value in of.values())
    )
    note = f"Bits beyond those of {anchor} at equal quality, where both have it. Less is better."
    return Table("BD-rate", ("curve", "PSNR", "MS-SSIM"), rows, note)


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
