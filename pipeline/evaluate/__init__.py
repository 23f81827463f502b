"""Measuring models beside other codecs on tars of pictures, for ``jobs/evaluate.py``.

    contenders.py ─► evaluator.py (workers) ─► records ─► figures.py ─► report.json, .md, .html
    models, options   peers.py, measuring.py               curves.py     tables, plots, page

``job.py`` is the driver. Definitions of the figures: docs/evaluation.md.
"""

from .job import EvaluateOptions, EvaluationSummary, evaluate

__all__ = ["EvaluateOptions", "EvaluationSummary", "evaluate"]
