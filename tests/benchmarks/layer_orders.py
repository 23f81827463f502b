#!/usr/bin/env python
"""Orders of a CDC model's layers: bytes and PSNR of every prefix, and what layers cost in all.

    python tests/benchmarks/layer_orders.py --model cdc-model --data kodak.tar --counted-on clic.tar

The model's layers are assigned anew in each order (``assign_layers`` of ``codec.cdc.latents``), by
how often each scale occurs in the pictures of --counted-on; its networks and, without --recount,
its probabilities stay as they are. Printed are, for each quality and order:

- overhead: how much longer the whole stream is than one that holds the latent in one piece, coded
  with one table for each scale, with the same probabilities, header, hyper-latent and checksums;
- gain: how much higher the prefixes' PSNR is than the first order's, on average over the range of
  rates, in their logarithm, that both cover;
- bpp:PSNR of every prefix. PSNR is of the mean squared error over all pictures.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from codec import Codec, load_codec
from codec.cdc.codec import CDCCodec
from codec.cdc.latents.trit_planes import FRACTIONS, Order, Trees, assign_layers, build_trees
from codec.images import metrics
from codec.models import zoo
from codec.stream import bitstream, entropy
from codec.stream.entropy import PRECISION, Tables
from pipeline.evaluate.contenders import available_qualities
from tests.benchmarks.pictures import from_tar

ORDERS: tuple[Order, ...] = get_args(Order)
Curve = Mapping[str, Any]


def count(codec: CDCCodec, pictures: Sequence[np.ndarray], quality: int) -> np.ndarray:
    """How often each residual occurs at each scale index (``CDCScheme.count_residuals``)."""
    return np.sum([codec.scheme.count_residuals([p], quality) for p in pictures], 0)


def one_piece_tables(trees: Trees) -> Tables:
    """One table of all values for each scale index, with the probabilities of their trits."""
    trits = trees.tables.counts.reshape(-1, 4)[:, :3] / (1 << PRECISION)
    trits[~trees.is_root] /= trits[~trees.is_root].sum(1, keepdims=True)  # only roots escape
    pmfs = []
    for root, levels in zip(trees.root.tolist(), trees.levels.tolist(), strict=True):
        mass, node = np.ones(1), root
        for _ in range(levels):
            thirds = trits[node : node + len(mass)]
            node += len(mass)
            mass = (mass[:, None] * thirds).ravel()
        pmfs.append((-(len(mass) // 2), mass))
    return Tables.from_pmfs(pmfs)


def write_order(
    codec: CDCCodec,
    trees: Trees,
    histograms: Sequence[np.ndarray],
    order: Order,
    fractions: Sequence[float],
    path: Path,
) -> None:
    """The same model with these trees, its layers in another order, as a model file."""
    config, tensors = zoo.read_model(codec.model_path)
    layers = [assign_layers(trees, h, fractions, order).layer for h in histograms]
    arrays = {f"trees.{name}": array for name, array in trees.to_arrays().items()}
    arrays["layers"] = np.stack(layers)
    changed = {name: torch.from_numpy(array) for name, array in arrays.items()}
    zoo.write_model(path, config, tensors | changed)


def one_piece_bytes(
    codec: CDCCodec, tables: Tables, pictures: Sequence[np.ndarray], quality: int
) -> int:
    """Bytes of streams whose second layer holds the whole latent at once."""
    total = 0
    for picture in pictures:
        stream = codec.encode([picture], layers=1, quality=quality)[0]
        residuals, scale_index = latent(codec, picture, quality)
        layer = bitstream.Layer(
            entropy.encode(
                [(residuals, scale_index, tables)],
                bitstream.check24(scale_index.tobytes(), residuals.tobytes()),
            )
        )
        total += stream.nbytes
        total += len(bitstream.pack_layer(codec.model_id, stream.header, 1, layer))
    return total


def latent(codec: CDCCodec, picture: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """The integers r that the layers hold, and the scale index of each, ``(n,) int32``."""
    scheme = codec.scheme
    state = scheme.start([picture.shape[:2]], [0])
    (layers,) = scheme.encode([picture], [0], codec.num_layers, quality=quality)
    index = np.empty(0, np.int32)
    for number, layer in enumerate(layers):
        for part, symbols in enumerate(layer.symbols):
            scheme.update(state, number, part, [symbols])
        if number == 0:
            root = scheme.trees[quality].root
            index = np.searchsorted(root, _progress(state).node).astype(np.int32)
    return _progress(state).value, index


def _progress(state: Any) -> Any:
    progress = state.pictures[0].progress
    assert progress is not None
    return progress


def measure(
    codec: Codec, pictures: Sequence[np.ndarray], quality: int, options: Mapping[str, Any]
) -> Curve:
    """Rates (``bpp``) and PSNR (dB) of every prefix, decoded with ``options``."""
    nbytes, errors = np.zeros(codec.num_layers), np.zeros(codec.num_layers)
    for picture in pictures:
        streams = codec.encode([picture], quality=quality)
        for layer, (shown,) in enumerate(codec.decode_progressively(streams, **options)):
            nbytes[layer] += streams[0].truncate(layer + 1).nbytes
            errors[layer] += metrics.mse(picture, shown) * picture.size / 3
    pixels = sum(picture.size / 3 for picture in pictures)
    psnr = [metrics.psnr_of_mean_mse([error / pixels]) for error in errors]
    return {"bpp": (8 * nbytes / pixels).tolist(), "psnr": psnr}


def gain(curve: Curve, reference: Curve) -> float | None:
    """Mean difference in dB over the common range of log rate; None where there is none.

    Curves are straight between their points, in the logarithm of the rate.
    """
    rates = [np.log(c["bpp"]) for c in (reference, curve)]
    low, high = max(r[0] for r in rates), min(r[-1] for r in rates)
    if low >= high:
        return None
    at = np.linspace(low, high, 500)
    before, after = (
        np.interp(at, r, c["psnr"]) for r, c in zip(rates, (reference, curve), strict=True)
    )
    return float(np.mean(after - before))


def table(curves: Mapping[Order, Curve], one_piece_bpp: float) -> str:
    """Markdown, one row for each order."""
    first = next(iter(curves.values()))
    lines = ["| order | overhead | gain dB | bpp:PSNR of each prefix |", "|---|---|---|---|"]
    for order, curve in curves.items():
        overhead = 100 * (curve["bpp"][-1] / one_piece_bpp - 1)
        difference = None if curve is first else gain(curve, first)
        prefixes = zip(curve["bpp"], curve["psnr"], strict=True)
        cells = [
            order,
            f"{overhead:.2f} %",
            "" if difference is None else f"{difference:+.2f}",
            " ".join(f"{bpp:.3f}:{psnr:.2f}" for bpp, psnr in prefixes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a CDC model")
    parser.add_argument("--data", type=Path, required=True, help="a tar of pictures")
    parser.add_argument("--first", type=int, help="only the first N pictures")
    parser.add_argument("--counted-on", type=Path, required=True, help="a tar, best another one")
    parser.add_argument(
        "--recount", action="store_true", help="also the probabilities in the trees, by the counts"
    )
    parser.add_argument("--counted-first", type=int, help="only the first N pictures of that")
    parser.add_argument(
        "--quality", nargs="+", default=["all"], metavar="all|N", help="which; default: all"
    )
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument(
        "--fractions",
        nargs="+",
        type=float,
        default=FRACTIONS,
        help="share of all bits up to the end of each layer, for slope and sigma",
    )
    parser.add_argument("--decoder", help="fast or diffusion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    codec = load_codec(options.model)
    if not isinstance(codec, CDCCodec):
        parser.error(f"{codec.name} is a model of {codec.codec}")
    decode = {"decoder": options.decoder} if options.decoder else {}
    try:
        codec.check_options("decode", decode)
        qualities = available_qualities(codec)
        if "all" not in options.quality:
            qualities = [int(quality) for quality in options.quality]
            for quality in qualities:
                codec.check_options("encode", {"quality": quality})
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    pictures = from_tar(options.data, options.first)
    counted_on = from_tar(options.counted_on, options.counted_first)
    counts = {q: count(codec, counted_on, q) for q in qualities}
    trees = codec.scheme.trees[0]  # all qualities' are the same but for their layers
    if options.recount:
        trees = build_trees(trees.scales, np.sum(list(counts.values()), 0))
    # a scale that was not met may still occur; the other qualities are not looked at
    histograms = [
        counts[q].sum(1) + 1e-6 if q in counts else np.ones(len(trees.scales))
        for q in range(len(codec.scheme.trees))
    ]

    curves: dict[int, dict[Order, Curve]] = {q: {} for q in qualities}
    with tempfile.TemporaryDirectory() as folder:
        for order in options.orders:
            path = Path(folder) / order / zoo.MODEL_FILE
            write_order(codec, trees, histograms, order, options.fractions, path)
            ordered = load_codec(path)
            for quality in qualities:
                curves[quality][order] = measure(ordered, pictures, quality, decode)
    tables = one_piece_tables(trees)
    pixels = sum(picture.shape[0] * picture.shape[1] for picture in pictures)
    rows = []
    for quality in qualities:
        bpp = 8 * one_piece_bytes(codec, tables, pictures, quality) / pixels
        print(f"\nQuality {quality}, in one piece {bpp:.4f} bpp\n\n{table(curves[quality], bpp)}")
        rows.append({"quality": quality, "one_piece_bpp": bpp, "orders": curves[quality]})
    if options.out:
        result = {
            "data": options.data.name,
            "counted_on": options.counted_on.name,
            "model": codec.name,
            "model_id": codec.model_id,
            "pictures": len(pictures),
            "fractions": list(options.fractions),
            "qualities": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
