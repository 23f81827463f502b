"""Tables and sentences of made-up figures."""

import numpy as np

from pipeline.evaluate import tables
from pipeline.evaluate.figures import Evaluation, Figures, Series
from pipeline.evaluate.plots import plots
from pipeline.evaluate.tables import beside_table, bits_table, exact_table, verdicts

RATES = (0.1, 0.2, 0.5, 1.0, 2.0)


def series(name: str, factor: float, *, model: bool = False, exact: float = 0) -> Series:
    """SSIMULACRA2 from 20 to 95, at ``factor`` times the rates; PSNR from 27 to 42 dB at 1.2 times
    less; the last point is exact and has so many bits a pixel."""
    points = [
        (factor * rate, 0, {"ssimulacra2": score, "psnr": psnr})
        for rate, score, psnr in zip(
            RATES, np.linspace(20, 95, 5), np.linspace(27, 42, 5), strict=True
        )
    ]
    if exact:
        points.append((exact, 1, {"ssimulacra2": 100.0, "psnr": None}))
    made = []
    for number, (bpp, is_exact, values) in enumerate(points, start=1):
        each = {"bpp": np.array([bpp])}
        each |= {m: np.array([np.nan if is_exact else v]) for m, v in values.items()}
        made.append(Figures("", number, bpp, is_exact, values, each))
    return Series(name, name, "prefixes", tuple(made), is_model=model)


def evaluation(*curves: Series) -> Evaluation:
    return Evaluation(("ssimulacra2", "psnr"), pictures=1, series=[*curves])


def test_verdicts() -> None:
    ours = series("ours", 1, model=True, exact=10)
    worse, better = series("worse", 1.25), series("better", 0.8)
    each = {"bpp": np.array([9.0])}
    single = Figures("", 1, 9.0, 1, {"ssimulacra2": 100.0, "psnr": None}, each)
    small = Series("small", "small", "single", (single,), lossless=True)
    same = series("same", 1.001)
    first, second, third = verdicts(evaluation(ours, worse, better, same, small), ours)
    assert first == (
        "For the same SSIMULACRA2 (mean over 30 to 90) ours takes these bits: 25 % more than "
        "better, as many as same, 20 % fewer than worse."
    )
    assert second == "At equal PSNR it takes more bits than better (+25 %)."
    assert third == "Its exact files have 10.00 bits per pixel; smaller ones: small (9.00)."


def test_the_verdict_is_by_the_first_figure_that_can_compare() -> None:
    ours, other = series("ours", 1, model=True), series("other", 1.25)
    for one in (ours, other):
        for point in one.points:
            point.each["ssimulacra2"][:] -= 80  # far below the span
    found = evaluation(ours, other)
    (words,) = verdicts(found, ours)
    assert words == (
        "For the same PSNR, dB (mean over 28 to 40) ours takes these bits: 20 % fewer than other."
    )
    assert bits_table(found, ours).header == ("against", "PSNR, dB, 28 to 40")


def test_curves_that_share_a_part_say_which() -> None:
    ours, other = series("ours", 1, model=True), series("other", 1.25)
    short = Series("short", "short", "settings", other.points[:4])  # another cubic at its end
    table = bits_table(evaluation(ours, other, short), ours)
    assert table.header == ("against", "SSIMULACRA2, 30 to 90", "PSNR, dB, 28 to 40")
    assert table.rows[0][:2] == ("other", "-20.0 %")
    assert table.rows[1][:2] == ("short", "-20.3 % (30 to 76)")


def test_the_best_of_a_row_stands_out() -> None:
    ours, other = series("ours", 1, model=True, exact=10), series("other", 0.8)
    table = beside_table(evaluation(ours, other), ours, "ssimulacra2")
    assert [row[2] for row in table.rows] == ["20.0", "38.8", "57.5", "76.2", "95.0", "exact"]
    assert table.best == (3, 3, 3, 3, None, None)  # the other has nothing at 2 and 10 bpp
    assert table.rows[4][3] == ""
    line = table.markdown().splitlines()[-6]
    assert line.startswith("| 1 | 0.100 | 20.0 | **2")


def test_a_point_counts_until_every_picture_is_exact() -> None:
    each = {"bpp": np.array([1.0, 3.0]), "ssimulacra2": np.array([80.0, np.nan])}
    one = Figures("", 1, 2.0, 1, {"ssimulacra2": 90.0}, each)
    both = Figures("", 2, 4.0, 2, {"ssimulacra2": 100.0}, each)
    curves = Series("x", "x", "prefixes", (one, both))
    assert curves.curve("ssimulacra2") == [(2.0, 90.0)]
    assert curves.curve_of(0, "ssimulacra2") == [(1.0, 80.0), (1.0, 80.0)]
    assert curves.curve_of(1, "ssimulacra2") == []


def test_nothing_is_minus_zero() -> None:
    assert tables._number(-0.04, "ssimulacra2") == "0.0"
    assert tables._number(-0.06, "ssimulacra2") == "-0.1"


def test_exact_files() -> None:
    table = exact_table(evaluation(series("b", 1, exact=10), series("a", 1, exact=8.5)))
    assert table.rows == (
        ("a, layers 6", "8.500", "1 of 1"),
        ("b, layers 6", "10.000", "1 of 1"),
    )


def test_a_plot_for_each_figure() -> None:
    found = evaluation(series("<ours>", 1, model=True, exact=10), series("other", 0.8))
    drawn = plots(found)
    assert set(drawn) == {"ssimulacra2.svg", "psnr.svg"}
    assert "&lt;ours&gt;: 0.500 bpp, 57.5" in drawn["ssimulacra2.svg"]
    assert "10.000 bpp" not in drawn["ssimulacra2.svg"]  # exact
    assert drawn["psnr.svg"].count("<polyline") == 2
