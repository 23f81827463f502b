"""Comparing models with other codecs on pictures, for ``strata evaluate``.

    contenders.py ─► worker.py (workers) ─► records ─► figures.py ─► report.json, .md, .html
    models, options  bench.py, peers.py                curves.py     tables, plots, page
                     measuring.py, gallery.py

``job.py`` is the driver. docs/evaluation.md defines the figures.
"""

from .job import EvaluateOptions, EvaluationSummary, evaluate

__all__ = ["EvaluateOptions", "EvaluationSummary", "evaluate"]
