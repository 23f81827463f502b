"""Totals of the records of data files: counts, and the quality of a random sample.

A record tells of its file ``COUNTS``, ``TALLIES`` (counts by what they count) and ``quality``: of
some pictures that were decoded from it, ``psnr`` in dB (null: exact) and ``ssimulacra2``.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Of bytes, ``bytes`` are those of the data file, ``picture_bytes`` those of the ok pictures' own
# files, ``stream_bytes`` what replaces these, and ``side_bytes`` those of the other fields.
COUNTS = (
    *("rows", "ok", "bad", "filtered", "bytes", "pixels"),
    *("picture_bytes", "stream_bytes", "side_fields", "side_bytes"),
)
# Pictures by number of layers; rows by why their original is kept, or what else must be said;
# pictures whose file is not kept by what else they lose (``codec.images.losses``).
TALLIES = ("by_layers", "by_reason", "by_loss")
METRICS = ("psnr", "ssimulacra2")


def totals_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The totals of a manifest's entries."""
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    tallies: dict[str, Counter[str]] = {name: Counter() for name in TALLIES}
    measured: dict[str, list[float]] = {name: [] for name in METRICS}
    for entry in entries:
        counts.update({name: entry.get(name, 0) for name in COUNTS})
        for name, tally in tallies.items():
            tally.update(entry.get(name, {}))
        for name, values in measured.items():
            some = entry.get("quality", {}).get(name, ())
            values += [math.inf if one is None else one for one in some]
    quality = {name: _spread(values) for name, values in measured.items() if values}
    return {**counts, **{name: dict(sorted(tally.items())) for name, tally in tallies.items()}} | {
        "quality": quality
    }


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Their number, the worst, the 5th percentile and the median."""
    ordered = sorted(values)
    places = {"worst": 0, "percent_5": len(ordered) // 20, "median": len(ordered) // 2}
    found = {name: ordered[place] for name, place in places.items()}
    told = {name: None if math.isinf(one) else one for name, one in found.items()}
    return {"pictures": len(ordered), **told}
