"""Writes ``report.html``: verdict, plots, pictures and tables in one file, which loads nothing."""

import importlib.resources
from collections.abc import Mapping
from typing import Any

import jinja2

from .figures import Evaluation, Series
from .measuring import METRICS
from .plots import DARK, LIGHT, plot
from .report import about
from .tables import (
    beside_table,
    best_first,
    bits_table,
    exact_table,
    judge,
    model_curves,
    own_table,
    part,
    span_words,
)


def page(found: Evaluation, reported: Mapping[str, Any]) -> str:
    """The report as HTML without scripts, light or dark as the browser prefers."""
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    comparable = found.comparable()
    shown = [{"key": one["key"], "row": row} for one in found.shown for row in one["rates"]]
    return environment.from_string(template).render(
        light=jinja2.filters.do_mark_safe(LIGHT),
        dark=jinja2.filters.do_mark_safe(DARK),
        reported=reported,
        about=about(reported),
        metrics=[(name, METRICS[name]) for name in found.metrics],
        plots={name: plot(comparable, name) for name in found.metrics},
        models=[_model(found, one) for one in model_curves(found)],
        shown=shown,
        exact=exact_table(found),
        own=[own_table(found, one) for one in found.series if one.points],
    )


def _model(found: Evaluation, one: Series) -> dict[str, Any]:
    """The part of the page about one model's curve."""
    first, known = judge(found, one), best_first(found, one)
    return {
        "name": one.name,
        "judge": METRICS[first],
        "span": span_words(first),
        "cards": [(other.name + part(bits, first), bits.percent) for other, bits in known],
        "bits": bits_table(found, one),
        "beside": [beside_table(found, one, metric) for metric in found.metrics],
    }
