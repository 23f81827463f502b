#!/usr/bin/env python
"""Real bytes, PSNR and MS-SSIM of every layer of a model on a tar of pictures: JSON and tables.

    python tests/benchmarks/rate_distortion.py --model uqdm-small --data kodak.tar --out kodak.json
    python tests/benchmarks/rate_distortion.py --model cdc-model --quality all --data kodak.tar \
        --classical classical.json --with-classical --out kodak.json --plot kodak.png

A model that has several qualities gives one curve for each. With --classical FILE (rates of JPEG
and others on the same pictures), the tables show beside each layer what those codecs reach at the
layer's rate, by interpolation, and --plot FILE.png draws all curves. --with-classical makes that
file if it does not exist. Rates are bits per pixel of all bytes of a stream; "PSNR" is of the mean
squared error over all pictures, "mean PSNR" and MS-SSIM are means over pictures.

In the JSON, a model without qualities has its only curve's figures at the top.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from codec import Codec, load_codec, metrics, zoo
from tests.benchmarks import classical
from tests.benchmarks.pictures import from_tar

METRICS = {"psnr": "PSNR", "psnr_mean": "mean PSNR", "ms_ssim": "MS-SSIM"}

_codec: Codec


@dataclass(frozen=True)
class Measured:
    """One picture: after each layer its bytes, error and likeness, and seconds of the whole."""

    pixels: int
    nbytes: list[int]
    mse: list[float]
    ms_ssim: list[float]
    exact: bool
    encode_s: float
    decode_s: float


def quality_options(codec: Codec, wanted: Sequence[str]) -> list[int | None]:
    """The qualities to measure: those ``wanted``, or ``all``; [None] for a codec without any.

    Raises TypeError or ValueError for one that the model does not have.
    """
    if "all" not in wanted:
        chosen = [int(quality) for quality in wanted]
        for quality in chosen:
            codec.check_options("encode", {"quality": quality})
        return list(chosen)
    if "quality" not in codec.encode_options:
        return [None]
    qualities: list[int | None] = []
    for quality in itertools.count():
        try:
            codec.check_options("encode", {"quality": quality})
        except ValueError:
            break
        qualities.append(quality)
    return qualities


def start_pool(processes: int, model: str, device: str = "cpu") -> Executor:
    """Processes that hold the model, with one thread each."""
    # forked ones could use neither CUDA nor the parent's threads
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_start, initargs=(model, device))


def _start(model: str, device: str) -> None:
    global _codec
    torch.set_num_threads(1)
    _codec = load_codec(model, device)


def _measure(encode: Mapping[str, Any], decode: Mapping[str, Any], picture: np.ndarray) -> Measured:
    """Runs in the pool, with its model."""
    begin = time.perf_counter()
    stream = _codec.encode([picture], **encode)[0]
    encoded = time.perf_counter()
    decoded = _codec.decode([stream], **decode)[0]
    ended = time.perf_counter()
    sizes, errors, similarities = [], [], []
    for layers, (shown,) in enumerate(_codec.decode_progressively([stream], **decode), start=1):
        sizes.append(stream.truncate(layers).nbytes)
        errors.append(metrics.mse(picture, shown))
        similarities.append(metrics.ms_ssim(picture, shown))
    return Measured(
        picture.shape[0] * picture.shape[1],
        sizes,
        errors,
        similarities,
        bool(np.array_equal(decoded, picture)),
        encoded - begin,
        ended - encoded,
    )


def measure(
    pool: Executor,
    pictures: Sequence[np.ndarray],
    quality: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The curve of one quality, decoded with ``options``."""
    encode = {} if quality is None else {"quality": quality}
    return summary(list(pool.map(partial(_measure, encode, options or {}), pictures)))


def summary(rows: Sequence[Measured]) -> dict[str, Any]:
    """Figures over all pictures, lists by layer. None stands for the PSNR of exact pictures.

    ``worse`` names, for each metric, the layers (the first is 1) after which it is lower than
    before.
    """
    pixels = np.array([row.pixels for row in rows])
    errors = np.array([row.mse for row in rows])
    psnr = [metrics.psnr_of_mean_mse([e]) for e in np.average(errors, 0, pixels)]
    each = [[metrics.psnr_of_mean_mse([e]) for e in row] for row in errors]
    values = {
        "psnr": psnr,
        "psnr_mean": np.mean(each, 0).tolist(),
        "ms_ssim": np.mean([row.ms_ssim for row in rows], 0).tolist(),
    }
    nbytes = np.sum([row.nbytes for row in rows], 0)
    return {
        "exact": sum(row.exact for row in rows),
        "bpp": (8 * nbytes / pixels.sum()).round(4).tolist(),
        "psnr": [round(p, 3) if np.isfinite(p) else None for p in values["psnr"]],
        "psnr_mean": [round(p, 3) if np.isfinite(p) else None for p in values["psnr_mean"]],
        "ms_ssim": [round(s, 6) for s in values["ms_ssim"]],
        "worse": {metric: falls(of_layer) for metric, of_layer in values.items()},
        "encode_s": round(float(np.mean([row.encode_s for row in rows])), 3),
        "decode_s": round(float(np.mean([row.decode_s for row in rows])), 3),
    }


def falls(values: Sequence[float]) -> list[int]:
    """Positions, counted from 1, of values that are lower than those before them."""
    return [at for at, (a, b) in enumerate(itertools.pairwise(values), start=2) if b < a]


def verdict(curves: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Whether any prefix is worse than the one before it."""
    found = []
    for curve in curves:
        if layers := curve["worse"][metric]:
            of = "" if curve.get("quality") is None else f"quality {curve['quality']}: "
            found.append(of + f"after layer {', '.join(map(str, layers))}")
    if found:
        return f"{METRICS[metric]}: a prefix is worse than the one before it ({'; '.join(found)})"
    return f"{METRICS[metric]}: no prefix is worse than the one before it"


def table(curves: Sequence[Mapping[str, Any]], figures: dict[str, Any], metric: str) -> str:
    """Markdown: ``psnr`` or ``ms_ssim`` of each layer, and beside it other codecs' at its rate."""
    names = classical.names(figures, metric)
    several = any(curve.get("quality") is not None for curve in curves)
    own = ["PSNR dB", "mean PSNR"] if metric == "psnr" else ["MS-SSIM", "in dB"]
    header = ["quality"] * several + ["layers", "bpp", *own, *(f"{n} at that rate" for n in names)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for curve in curves:
        for i, bpp in enumerate(curve["bpp"]):
            cells = [str(curve.get("quality"))] * several + [str(i + 1), f"{bpp:.3f}"]
            cells += _own_cells(curve, i, metric)
            for name in names:
                at = classical.at_rate(figures, name, metric, bpp)
                cells.append("" if at is None else f"{at:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _own_cells(curve: Mapping[str, Any], layer: int, metric: str) -> list[str]:
    if metric == "ms_ssim":
        similarity = curve["ms_ssim"][layer]
        return [f"{similarity:.4f}", f"{classical.decibel(similarity):.2f}"]
    values = curve["psnr"][layer], curve["psnr_mean"][layer]
    return ["exact" if value is None else f"{value:.2f}" for value in values]


def _points(curve: Mapping[str, Any], metric: str) -> list[tuple[float, float]]:
    """Rates and dB of a curve's layers that are not exact."""
    values = curve[metric]
    if metric == "ms_ssim":
        values = [classical.decibel(similarity) for similarity in values]
    points = zip(curve["bpp"], values, strict=True)
    return [(b, v) for b, v in points if v is not None and np.isfinite(v)]


def plot(
    curves: Sequence[Mapping[str, Any]],
    figures: dict[str, Any],
    path: Path,
    name: str,
    title: str,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(13, 5))
    labels = {"psnr": "PSNR (dB)", "ms_ssim": "MS-SSIM (-10 log10(1 - MS-SSIM), dB)"}
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        for other in classical.names(figures, metric):
            rates, values = classical.curve(figures, other, metric)
            axes.plot(rates, values, marker=".", lw=1, label=other)
        prefixes = [_points(curve, metric) for curve in curves]
        if len(prefixes) == 1:
            axes.plot(*zip(*prefixes[0], strict=True), "o-", lw=2, color="black", label=name)
        else:
            for points in prefixes:
                axes.plot(*zip(*points, strict=True), ".-", lw=0.7, color="gray")
            full = sorted(points[-1] for points in prefixes)
            axes.plot(*zip(*full, strict=True), "o-", lw=2, color="black", label=name)
        axes.set(xscale="log", xlabel="bits per pixel", ylabel=label, title=title)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def decode_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of decoding that were given."""
    names = ("decoder", "steps", "noise_scale", "seed")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=zoo.DEFAULT_MODELS["uqdm"])
    parser.add_argument("--data", type=Path, required=True, help="a tar of pictures")
    parser.add_argument("--first", type=int, help="only the first N pictures")
    parser.add_argument(
        "--quality", nargs="+", default=["all"], metavar="all|N", help="which; default: all"
    )
    parser.add_argument("--decoder", help="cdc: fast or diffusion")
    parser.add_argument("--steps", type=int, help="cdc: of the diffusion")
    parser.add_argument("--noise-scale", type=float, help="cdc: of the diffusion's start")
    parser.add_argument("--seed", type=int, help="cdc: of that noise")
    parser.add_argument("--classical", type=Path, help="JSON of other codecs' figures")
    parser.add_argument(
        "--with-classical",
        action="store_true",
        help="measure other codecs on these pictures, unless the file of --classical has it",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="with a GPU, take --processes 1")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the curves (needs matplotlib)")
    return parser


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_codec(options.model)
    decode = decode_options(options)
    try:
        qualities = quality_options(codec, options.quality)
        codec.check_options("decode", decode)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    pictures = from_tar(options.data, options.first)
    with start_pool(options.processes, options.model, options.device) as pool:
        figures: dict[str, Any] = {}
        if options.with_classical:
            try:
                figures = classical.load_or_measure(options.classical, pictures, pool)
            except ValueError as error:
                parser.error(str(error))
        elif options.classical:
            figures = json.loads(options.classical.read_text())
        curves = [measure(pool, pictures, quality, decode) for quality in qualities]
    result = {
        "data": options.data.name,
        "model": codec.name,
        "model_id": codec.model_id,
        "pictures": len(pictures),
        "options": decode,
    }
    print(json.dumps(result))
    if qualities == [None]:
        result |= curves[0]
    else:
        curves = [{"quality": q, **curve} for q, curve in zip(qualities, curves, strict=True)]
        result["curves"] = curves
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    for metric in ("psnr", "ms_ssim"):
        print("\n" + table(curves, figures, metric))
    print("\n" + "\n".join(verdict(curves, metric) for metric in METRICS))
    for curve in curves:
        shown = ("quality", "exact", "encode_s", "decode_s")
        print(json.dumps({name: curve[name] for name in shown if name in curve}))
    if options.plot:
        title = f"{options.data.stem}, {len(pictures)} pictures"
        plot(curves, figures, options.plot, codec.name, title)


if __name__ == "__main__":
    main()
