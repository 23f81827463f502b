"""What the records of data files say together."""

from typing import Any

from pipeline.dataset.totals import COUNTS, totals_of


def record(**changes: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COUNTS, 2), "by_layers": {"2": 1, "6": 1}, **changes}


def test_counts_and_tallies_add_up() -> None:
    entries = [record(by_reason={"bad": 1}), record(by_layers={"6": 2}), dict.fromkeys(COUNTS, 1)]
    totals = totals_of(entries)
    assert all(totals[name] == 5 for name in COUNTS)
    assert totals["by_layers"] == {"2": 1, "6": 3}
    assert totals["by_reason"] == {"bad": 1}
    assert totals["quality"] == {}


def test_quality_is_that_of_all_pictures_together() -> None:
    entries = [
        record(quality={"psnr": [float(n) for n in range(30, 50)], "ssimulacra2": [70.0]}),
        record(quality={"psnr": [None, 29.0]}),
        record(quality={}),
    ]
    assert totals_of(entries)["quality"] == {
        "psnr": {"pictures": 22, "worst": 29.0, "percent_5": 30.0, "median": 40.0},
        "ssimulacra2": {"pictures": 1, "worst": 70.0, "percent_5": 70.0, "median": 70.0},
    }
    exact = totals_of([record(quality={"psnr": [None, None]})])["quality"]["psnr"]
    assert exact == {"pictures": 2, "worst": None, "percent_5": None, "median": None}
