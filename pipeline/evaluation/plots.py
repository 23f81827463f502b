"""Curves as inline SVG, in colours of the page's style sheet. Nothing is loaded from elsewhere."""

import html
import math
from collections.abc import Sequence

import numpy as np

from .curves import rising
from .figures import Evaluation, Series

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
COLOURS = 10  # in the style sheet, as --c0 to --c9
LABELS = {
    "psnr": "PSNR, dB",
    "ms_ssim": "MS-SSIM, -10 log10(1 - MS-SSIM) in dB",
    "swd": "sliced Wasserstein distance, mean over pictures (less is better)",
    "swd_set": "sliced Wasserstein distance of the set (less is better)",
}
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_DASHES = ("", "7 4", "2 3")


def plot(found: Evaluation, metric: str) -> str:
    """A figure element with all curves in ``metric`` over the rate; "" where there are none.

    Rates are logarithmic. Models have thick lines, prefixes of a model with several settings thin
    ones.
    """
    curves = [(one, _line_points(one, metric)) for one in drawn(found)]
    curves = [(one, points) for one, points in curves if len(points) > 1]
    if not curves:
        return ""
    rates = [rate for _, points in curves for rate, _ in points]
    values = [value for _, points in curves for _, value in points]
    low, high = math.log(min(rates) * 0.93), math.log(max(rates) * 1.07)
    margin = 0.04 * ((max(values) - min(values)) or 1)
    bottom, top = min(values) - margin, max(values) + margin

    def x(rate: float) -> float:
        return LEFT + (math.log(rate) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{LABELS[metric]}">']
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
        stroke = _stroke(one, colours, found)
        path = " ".join(f"{x(rate):.1f},{y(value):.1f}" for rate, value in points)
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        for rate, value in points:
            title = html.escape(f"{one.name}: {rate:.3f} bpp, {value:.4g}")
            parts.append(
                f'<circle cx="{x(rate):.1f}" cy="{y(value):.1f}" r="2.6" '
                f'fill="var(--c{colours[one.group]})"><title>{title}</title></circle>'
            )
    parts.append("</svg>")
    keys = {one.name: f'<path d="M0 4H26" {_stroke(one, colours, found)}/>' for one, _ in curves}
    legend = "".join(
        f'<span><svg viewBox="0 0 26 8" class=key>{key}</svg> {html.escape(name)}</span> '
        for name, key in keys.items()
    )
    title = html.escape(LABELS[metric])
    drawing = "".join(parts)
    return f"<figure class=plot><figcaption>{title}</figcaption>{drawing}<p>{legend}</p></figure>\n"


def drawn(found: Evaluation) -> list[Series]:
    """Series worth a line."""
    return [one for one in found.series if not one.lossless and len(one.points) > 1]


def _line_points(one: Series, metric: str) -> list[tuple[float, float]]:
    """By rate. Of several settings only those that no cheaper one is as good as."""
    points = sorted((r, v) for r, v in one.curve(metric) if np.isfinite(v) and r > 0)
    if one.kind != "settings":
        return points
    sign = -1 if metric.startswith("swd") else 1
    rates, values = rising([(rate, sign * value) for rate, value in points])
    return list(zip(rates.tolist(), (sign * values).tolist(), strict=True))


def _colours(series: Sequence[Series]) -> dict[str, int]:
    groups = dict.fromkeys(one.group for one in series)
    return {group: number % COLOURS for number, group in enumerate(groups)}


def _stroke(one: Series, colours: dict[str, int], found: Evaluation) -> str:
    several = any(other.kind == "settings" and other.group == one.group for other in found.series)
    thin = one.kind == "prefixes" and several
    width = 0.8 if thin else 2.4 if one.is_model else 1.3
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
