"""Measuring models beside other codecs on tars of pictures, for ``strata evaluate``.

    contenders.py ─► worker.py (workers) ─► records ─► figures.py ─► report.json, .md, .html
    models, options  bench.py, peers.py                curves.py     tables, plots, page
                     measuring.py, lpips.py

``job.py`` is the driver. Definitions of the figures: docs/evaluation.md.
"""

from .job import EvaluateOptions, EvaluationSummary, evaluate

__all__ = ["EvaluateOptions", "EvaluationSummary", "evaluate"]
