#!/usr/bin/env python
"""Real bytes and PSNR of every layer of a model on a tar of pictures, as JSON and a table.

    python tests/benchmarks/rate_distortion.py --model uqdm-small --data kodak.tar --out kodak.json

With --classical FILE (rates of JPEG and others on the same pictures), the table shows beside each
layer what those codecs reach at the layer's rate, by interpolation, and --plot FILE.png draws all
curves. Rates are bits per pixel of all bytes of a stream; PSNR is of the mean squared error over
all pictures.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from codec import Codec, load_codec, zoo
from codec.training_data import read_shards

_codec: Codec


def _start(model: str) -> None:
    global _codec
    torch.set_num_threads(1)
    _codec = load_codec(model)


def _measure(picture: np.ndarray) -> dict[str, Any]:
    """Bytes and squared error after each layer of one picture, and seconds of the whole."""
    begin = time.perf_counter()
    stream = _codec.encode([picture])[0]
    encoded = time.perf_counter()
    decoded = _codec.decode([stream])[0]
    ended = time.perf_counter()
    sizes, errors = [], []
    for layers, (shown,) in enumerate(_codec.decode_progressively([stream]), start=1):
        sizes.append(stream.truncate(layers).nbytes)
        errors.append(float(((picture.astype(float) - shown) ** 2).sum()))
    return {
        "pixels": picture.shape[0] * picture.shape[1],
        "bytes": sizes,
        "squared_error": errors,
        "exact": bool(np.array_equal(decoded, picture)),
        "encode_s": encoded - begin,
        "decode_s": ended - encoded,
    }


def measure(model: str, pictures: Sequence[np.ndarray], processes: int) -> dict[str, Any]:
    with ProcessPoolExecutor(processes, initializer=_start, initargs=(model,)) as pool:
        rows = list(pool.map(_measure, pictures))
    pixels = sum(row["pixels"] for row in rows)
    error = np.sum([row["squared_error"] for row in rows], 0) / (3 * pixels)
    return {
        "model": model,
        "model_id": zoo.model_id(zoo.model_file(model)),
        "pictures": len(rows),
        "exact": sum(row["exact"] for row in rows),
        "bpp": (8 * np.sum([row["bytes"] for row in rows], 0) / pixels).round(4).tolist(),
        "psnr": [round(float(10 * np.log10(255**2 / e)), 3) if e else None for e in error],
        "encode_s": round(float(np.mean([row["encode_s"] for row in rows])), 3),
        "decode_s": round(float(np.mean([row["decode_s"] for row in rows])), 3),
    }


def curve(classical: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rates and PSNRs of one codec, by rate."""
    points = sorted({(p["bpp"], p["psnr_of_mean_mse"]) for p in classical[name]})
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


def table(result: dict[str, Any], classical: dict[str, Any]) -> str:
    names = [n for n in ("jpeg", "jpeg2000", "webp", "avif") if n in classical]
    header = ["layers", "bpp", "PSNR dB", *(f"{name} at that rate" for name in names)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for i, (bpp, psnr) in enumerate(zip(result["bpp"], result["psnr"], strict=True)):
        cells = []
        for name in names:
            rates, psnrs = curve(classical, name)
            inside = psnr is not None and rates[0] <= bpp <= rates[-1]
            # dB are nearly linear in the logarithm of the rate
            at = float(np.interp(np.log(bpp), np.log(rates), psnrs))
            cells.append(f"{at:.2f}" if inside else "")
        shown = "exact" if psnr is None else f"{psnr:.2f}"
        lines.append("| " + " | ".join([str(i + 1), f"{bpp:.3f}", shown, *cells]) + " |")
    return "\n".join(lines)


def plot(result: dict[str, Any], classical: dict[str, Any], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    for name in ("jpeg", "jpeg2000", "webp", "avif"):
        if name in classical:
            axes.plot(*curve(classical, name), marker=".", lw=1, label=name)
    lossy = [(b, p) for b, p in zip(result["bpp"], result["psnr"], strict=True) if p]
    axes.plot(*zip(*lossy, strict=True), marker="o", lw=2, color="black", label=result["model"])
    axes.set(xscale="log", xlabel="bits per pixel", ylabel="PSNR (dB)", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=zoo.DEFAULT_MODELS["uqdm"])
    parser.add_argument("--data", type=Path, required=True, help="a tar of pictures")
    parser.add_argument("--first", type=int, help="only the first N pictures")
    parser.add_argument("--classical", type=Path, help="JSON of other codecs' rates and PSNR")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the curves (needs matplotlib)")
    options = parser.parse_args()
    with options.data.open("rb") as stream:
        found = read_shards([(options.data.name, stream)], 1, lambda line: None)
    pictures = found.take(options.first or len(found))
    result = {"data": options.data.name, **measure(options.model, pictures, options.processes)}
    classical = json.loads(options.classical.read_text()) if options.classical else {}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("bpp", "psnr")}))
    print(table(result, classical))
    if options.plot:
        plot(result, classical, options.plot, f"{options.data.stem}, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
