"""Curves as SVG, in the page or in files of their own. Nothing is loaded from elsewhere."""

import html
import math
from collections.abc import Sequence

import numpy as np

from .curves import rising
from .figures import Evaluation, Series

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
COLOURS = 10  # --c0 to --c9
LIGHT = """--text: #1b1f24; --back: #fff; --faint: #667; --grid: #dde1e6;
  --c0: #0b0b0b; --c1: #d1242f; --c2: #0969da; --c3: #1a7f37; --c4: #b35900; --c5: #8250df;
  --c6: #0891a3; --c7: #bf3989; --c8: #7a6a00; --c9: #57606a;"""
DARK = """--text: #e3e7ec; --back: #14171b; --faint: #9aa4af;
  --grid: #30363d; --c0: #f5f5f5; --c1: #ff7b72; --c2: #6cb6ff; --c3: #57d364; --c4: #f0a04b;
  --c5: #c297ff; --c6: #4fd6e6; --c7: #ff8fd0; --c8: #d8c84a; --c9: #aab4be;"""
LABELS = {
    "psnr": "PSNR, dB",
    "ms_ssim": "MS-SSIM, -10 log10(1 - MS-SSIM) in dB",
    "swd": "sliced Wasserstein distance, mean over pictures (less is better)",
    "swd_set": "sliced Wasserstein distance of the set (less is better)",
}
ALL_RATES = (0.0, math.inf)
TITLE, KEY, _COLUMNS = 22, 18, 4  # of a file: heights of its title and a row of names
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_DASHES = ("", "7 4", "2 3")


def plot(found: Evaluation, metric: str) -> str:
    """A figure element with all curves in ``metric`` over the rate; "" where there are none.

    Rates are logarithmic. Models have thick lines, prefixes of a model with several settings thin
    ones.
    """
    curves = _curves(drawn(found), metric, ALL_RATES)
    if not curves:
        return ""
    colours = _colours([one for one, _ in curves])
    keys = {one.name: f'<path d="M0 4H26" {_stroke(one, colours, found)}/>' for one, _ in curves}
    legend = "".join(
        f'<span><svg viewBox="0 0 26 8" class=key>{key}</svg> {html.escape(name)}</span> '
        for name, key in keys.items()
    )
    title = html.escape(LABELS[metric])
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{LABELS[metric]}">'
        f"{_drawing(found, metric, curves)}</svg>"
    )
    return f"<figure class=plot><figcaption>{title}</figcaption>{drawing}<p>{legend}</p></figure>\n"


def plot_file(found: Evaluation, metric: str, rates: tuple[float, float]) -> str:
    """An SVG file with the main curves between two rates, and their names; "" without any curve.

    It has its own background, light or dark as the reader's browser is. Of codecs with several
    settings it draws whole files, of models thinly their prefixes too.
    """
    curves = _curves([one for one in drawn(found) if not _is_cut_peer(one)], metric, rates)
    if not curves:
        return ""
    colours = _colours([one for one, _ in curves])
    named = [one for one, _ in curves if not _is_thin(one, found)]
    rows = -(-len(named) // _COLUMNS)
    height = HEIGHT + TITLE + KEY * rows + 8
    names = []
    for number, one in enumerate(named):
        x = LEFT + number % _COLUMNS * (WIDTH - LEFT) / _COLUMNS
        y = HEIGHT + TITLE + KEY * (number // _COLUMNS) + 8
        names.append(
            f'<path d="M{x:.0f} {y}h26" {_stroke(one, colours, found)}/>'
            + _text(x + 32, y + 4, one.name, "start")
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}">\n'
        f"<style>svg {{ {LIGHT} }}\n@media (prefers-color-scheme: dark) {{ svg {{ {DARK} }} }}\n"
        "text { font: 12px system-ui, sans-serif; fill: var(--faint); }</style>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="var(--back)"/>\n'
        f"{_text(LEFT, 18, LABELS[metric], 'start')}"
        f'<g transform="translate(0 {TITLE})">{_drawing(found, metric, curves)}</g>\n'
        f"{''.join(names)}</svg>\n"
    )


def _curves(
    series: Sequence[Series], metric: str, rates: tuple[float, float]
) -> list[tuple[Series, list[tuple[float, float]]]]:
    low, high = rates
    curves = []
    for one in series:
        points = [point for point in _line_points(one, metric) if low <= point[0] <= high]
        if len(points) > 1:
            curves.append((one, points))
    return curves


def _drawing(
    found: Evaluation, metric: str, curves: Sequence[tuple[Series, list[tuple[float, float]]]]
) -> str:
    rates = [rate for _, points in curves for rate, _ in points]
    values = [value for _, points in curves for _, value in points]
    low, high = math.log(min(rates) * 0.93), math.log(max(rates) * 1.07)
    margin = 0.04 * ((max(values) - min(values)) or 1)
    bottom, top = min(values) - margin, max(values) + margin

    def x(rate: float) -> float:
        return LEFT + (math.log(rate) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in _TICKS:
        if low <= math.log(tick) <= high:
            parts.append(_line(x(tick), TOP, x(tick), HEIGHT - BOTTOM))
            parts.append(_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in nice_ticks(bottom, top):
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "bits per pixel", "middle"))
    colours = _colours([one for one, _ in curves])
    for one, points in curves:
        path = " ".join(f"{x(rate):.1f},{y(value):.1f}" for rate, value in points)
        stroke = _stroke(one, colours, found)
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        for rate, value in points:
            title = html.escape(f"{one.name}: {rate:.3f} bpp, {value:.4g}")
            parts.append(
                f'<circle cx="{x(rate):.1f}" cy="{y(value):.1f}" r="2.6" '
                f'fill="var(--c{colours[one.group]})"><title>{title}</title></circle>'
            )
    return "".join(parts)


def drawn(found: Evaluation) -> list[Series]:
    """Series worth a line."""
    return [one for one in found.series if not one.lossless and len(one.points) > 1]


def _line_points(one: Series, metric: str) -> list[tuple[float, float]]:
    """By rate. Of several settings only those that no cheaper one is as good as."""
    points = sorted((r, v) for r, v in one.curve(metric) if np.isfinite(v) and r > 0)
    if one.kind not in ("settings", "cuts"):
        return points
    sign = -1 if metric.startswith("swd") else 1
    rates, values = rising([(rate, sign * value) for rate, value in points])
    return list(zip(rates.tolist(), (sign * values).tolist(), strict=True))


def _colours(series: Sequence[Series]) -> dict[str, int]:
    groups = dict.fromkeys(one.group for one in series)
    return {group: number % COLOURS for number, group in enumerate(groups)}


def _is_thin(one: Series, found: Evaluation) -> bool:
    """Prefixes of one of several settings."""
    several = any(other.kind == "settings" and other.group == one.group for other in found.series)
    return one.kind == "prefixes" and several


def _is_cut_peer(one: Series) -> bool:
    """One of a peer's cut files, which the curve of all of them stands for."""
    return one.kind == "prefixes" and not one.is_model and one.name != one.group


def _stroke(one: Series, colours: dict[str, int], found: Evaluation) -> str:
    thin = _is_thin(one, found)
    width = 0.8 if thin else 2.4 if one.is_model else 1.3
    thin |= one.kind == "cuts"
    turn = list(colours).index(one.group) // COLOURS if one.group in colours else 0
    dash = _DASHES[min(turn + thin, len(_DASHES) - 1)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="var(--c{colours[one.group]})" stroke-width="{width}"{dashed}'


def nice_ticks(low: float, high: float, about: int = 8) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= about)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="var(--grid)"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
