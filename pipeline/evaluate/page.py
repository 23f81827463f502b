"""``report.html``: one file with plots, pictures and tables, which needs nothing from elsewhere."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .figures import Evaluation
from .plots import DARK, LABELS, LIGHT, plot
from .report import about
from .tables import tables

_STYLE = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 76rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.4rem; } h3 { margin: 1.6rem 0 .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
figure { margin: 0 0 1rem; } figcaption { color: var(--faint); font-size: .85rem; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--faint); }
svg.key { width: 26px; height: 8px; } .plot p span { white-space: nowrap; margin-right: .9rem; }
.crops { display: flex; flex-wrap: wrap; gap: .6rem; } .crops img { display: block;
  min-width: 8rem; image-rendering: pixelated; }
.crops figcaption { max-width: 12rem; }
""".replace("LIGHT", LIGHT).replace("DARK", DARK)


def page(found: Evaluation, reported: Mapping[str, Any]) -> str:
    """The report for people: light or dark as their browser is, without scripts."""
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>\n"
        for name, value in about(dict(reported))
    )
    anchor = reported["bd_rate"]["anchor"]
    problems = "".join(
        f"<li>{html.escape(one['what'])}: {html.escape(one['of'])}: "
        f"{html.escape(one['reason'])}</li>\n"
        for one in reported["problems"]
    )
    notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in reported["notes"])
    plots = "".join(plot(found, metric) for metric in LABELS)
    parts = [
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width">\n'
        f"<title>Strata: results</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n",
        f"<h1>Results</h1>\n<dl>{facts}</dl>\n{notes}",
        f"<h2>Curves</h2>\n<div class=plots>{plots}</div>\n",
        pictures(found.shown),
        "<h2>Tables</h2>\n",
        "".join(table.html() for table in tables(found, anchor)),
        f"<h2>Not measured</h2>\n<ul>{problems}</ul>\n" if problems else "",
        "</body>\n</html>\n",
    ]
    return "".join(parts)


def pictures(shown: Sequence[Mapping[str, Any]]) -> str:
    """Crops side by side: each picture at each rate, of each group the file that is nearest."""
    by: dict[tuple[str, int, str], dict[float, dict[str, Mapping[str, Any]]]] = {}
    for one in shown:
        of_rate = by.setdefault((one["shard"], one["index"], one["key"]), {})
        groups = of_rate.setdefault(one["target"], {})
        best = groups.get(one["group"])
        if best is None or one["distance"] < best["distance"]:
            groups[one["group"]] = one
    if not by:
        return ""
    parts = [
        "<h2>Pictures</h2>\n<p>Middles of pictures, each codec's file nearest to the rate.</p>\n"
    ]
    for (_, _, key), rates in by.items():
        for target, groups in sorted(rates.items()):
            parts.append(f"<h3>{html.escape(key)}, about {target:g} bpp</h3>\n<div class=crops>")
            original = next(iter(groups.values()))["original"]
            parts.append(_crop(original, "original"))
            for group, one in groups.items():
                parts.append(_crop(one["picture"], f"{group}, {one['bpp']:.3f} bpp"))
            parts.append("</div>\n")
    return "".join(parts)


def _crop(packed: str, caption: str) -> str:
    words = html.escape(caption)
    return (
        f'<figure><img src="data:image/webp;base64,{packed}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>\n"
    )
