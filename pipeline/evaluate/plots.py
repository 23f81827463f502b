"""Draws curves as SVG, for the page and as files. They load nothing."""

import html
import math
from collections.abc import Sequence

from .curves import rising
from .figures import Evaluation, Series
from .measuring import METRICS

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 26, 40
KEY, COLUMNS = 18, 4  # the legend: height of a row, and names in a row
LIGHT = """--text: #1b1f24; --back: #fff; --faint: #5b6470; --grid: #dde1e6; --band: #f1f5f9;
  --good: #12703a; --bad: #b3261e;
  --c0: #0b0b0b; --c1: #d1242f; --c2: #0969da; --c3: #1a7f37; --c4: #b35900; --c5: #8250df;
  --c6: #6b7280; --c7: #bf3989; --c8: #7a6a00; --c9: #0891a3;"""
DARK = """--text: #e3e7ec; --back: #14171b; --faint: #9aa4af; --grid: #30363d; --band: #1b2129;
  --good: #57d364; --bad: #ff7b72;
  --c0: #f5f5f5; --c1: #ff7b72; --c2: #6cb6ff; --c3: #57d364; --c4: #f0a04b;
  --c5: #c297ff; --c6: #aab4be; --c7: #ff8fd0; --c8: #d8c84a; --c9: #4fd6e6;"""
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_DASHES = ("", "7 4", "2 3")


def plots(found: Evaluation) -> dict[str, str]:
    """The SVG of each metric, by file name."""
    drawn = {f"{name}.svg": plot(found.comparable(), name) for name in found.metrics}
    return {name: text for name, text in drawn.items() if text}


def plot(series: Sequence[Series], metric: str) -> str:
    """An SVG of the curves of ``metric`` over the rate, with a legend; "" if there are none.

    Rates are logarithmic. Models have thick lines. The qualities at which bits are compared are
    shaded, and points far outside of them are left out. It is light or dark as the browser prefers.
    """
    curves = [(one, points) for one in series if len(points := _points(one, metric)) > 1]
    if not curves:
        return ""
    rates = [rate for _, points in curves for rate, _ in points]
    values = [value for _, points in curves for _, value in points]
    low, high = math.log(min(rates) * 0.93), math.log(max(rates) * 1.07)
    margin = 0.04 * ((max(values) - min(values)) or 1)
    bottom, top = min(values) - margin, max(values) + margin
    rows = -(-len(curves) // COLUMNS)
    height = HEIGHT + KEY * rows + 8

    def x(rate: float) -> float:
        return LEFT + (math.log(rate) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (min(max(value, bottom), top) - bottom) / (top - bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    about = METRICS[metric]
    parts = [f'<rect width="{WIDTH}" height="{height}" fill="var(--back)"/>']
    if about.span:
        upper, lower = sorted(map(y, about.span))
        parts.append(
            f'<rect x="{LEFT}" y="{upper:.1f}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{lower - upper:.1f}" fill="var(--band)"/>'
        )
    parts.append(_text(LEFT, 16, about.title, "start"))
    for tick in _TICKS:
        if low <= math.log(tick) <= high:
            parts.append(_line(x(tick), TOP, x(tick), HEIGHT - BOTTOM))
            parts.append(_text(x(tick), HEIGHT - BOTTOM + 15, f"{tick:g}", "middle"))
    for tick in nice_ticks(bottom, top):
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "bits per pixel", "middle"))
    for number, (one, points) in enumerate(curves):
        colour, dash = f"var(--c{number % 10})", _DASHES[min(number // 10, 2)]
        stroke = f'fill="none" stroke="{colour}" stroke-dasharray="{dash}"'
        stroke += f' stroke-width="{2.6 if one.is_model else 1.4}"'
        path = " ".join(f"{x(rate):.1f},{y(value):.1f}" for rate, value in points)
        parts.append(f'<polyline points="{path}" {stroke}/>')
        for rate, value in points:
            title = html.escape(f"{one.name}: {rate:.3f} bpp, {value:.4g}")
            parts.append(
                f'<circle cx="{x(rate):.1f}" cy="{y(value):.1f}" r="2.6" fill="{colour}">'
                f"<title>{title}</title></circle>"
            )
        left = LEFT + number % COLUMNS * (WIDTH - LEFT) / COLUMNS
        line = HEIGHT + 8 + KEY * (number // COLUMNS)
        parts.append(f'<path d="M{left:.0f} {line}h22" {stroke}/>')
        parts.append(_text(left + 27, line + 4, one.name, "start"))
    words = html.escape(f"{about.title} over bits per pixel")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{words}">\n<style>svg {{ {LIGHT} }}\n'
        f"@media (prefers-color-scheme: dark) {{ svg {{ {DARK} }} }}\n"
        "svg text { font: 12px system-ui, sans-serif; fill: var(--faint); }</style>\n"
        + "".join(parts)
        + "</svg>\n"
    )


def _points(one: Series, metric: str) -> list[tuple[float, float]]:
    """The points by rate. Of settings, only those that are better than all cheaper ones."""
    curve = sorted(one.curve(metric))
    if one.kind == "settings":
        rates, values = rising(curve)
        curve = list(zip(rates.tolist(), values.tolist(), strict=True))
    sign, span = METRICS[metric].sign, METRICS[metric].span
    low, high = (-math.inf, math.inf) if span is None else span
    margin = 0.0 if span is None else (high - low) / 2
    shown = [(rate, sign * value) for rate, value in curve]
    return [(rate, value) for rate, value in shown if low - margin <= value <= high + margin]


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
