"""How pictures look at low rates: decoders of UQDM and CDC, and other codecs at equal bytes.

    python tests/benchmarks/low_rates.py --data kodak.tar --every 4 --decoders mean realistic \
        --cdc cdc-small --cdc-decoders fast diffusion

Other codecs write each picture with the bytes that UQDM's layers take; CDC has qualities of its
own. Each decoder has points of a mean rate (bits per pixel) and figures of all pictures; the last
table has the figures at --rates, between these points (straight in the logarithm of the rate).
Needs the extras ``eyes`` and ``perceptual``.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec import load_codec
from codec.images.perception import ssimulacra2
from codec.perception import frechet
from codec.perception.features import feature_distance
from pipeline.evaluate.measuring import features_of
from pipeline.evaluate.peers import all_peers
from tests.benchmarks.pictures import from_tar

FIGURES = ("features", "frechet", "ssimulacra2")


class Points:
    """What decoders made of pictures: by decoder, then by point."""

    def __init__(self, eyes: bool) -> None:
        self.eyes = eyes
        self.sums: dict[str, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))

    def original(self, picture: np.ndarray) -> None:
        self._picture, self._features = picture, features_of(picture)
        assert self._features is not None, "pictures must have 64 pixels a side"
        self._moments = frechet.moments(self._features)

    def add(self, decoder: str, point: int, shown: np.ndarray, nbytes: int) -> None:
        assert self._features is not None
        features = features_of(shown)
        assert features is not None
        found = {
            "bpp": 8 * nbytes / (shown.shape[0] * shown.shape[1]),
            "features": float(feature_distance(self._features, features)),
            "moments": (self._moments, frechet.moments(features)),
            "ssimulacra2": ssimulacra2(self._picture, shown) if self.eyes else None,
        }
        self.sums[decoder][point].append(found)

    def curve(self, decoder: str) -> list[dict[str, float]]:
        """The means of all pictures, and their common Frechet distance times a thousand."""
        curve = []
        for _, found in sorted(self.sums[decoder].items()):
            names = ("bpp", "features", *(["ssimulacra2"] if self.eyes else []))
            means = {name: float(np.mean([one[name] for one in found])) for name in names}
            both = (sum(pair) for pair in zip(*(one["moments"] for one in found), strict=True))
            curve.append(means | {"frechet": 1000 * frechet.frechet_distance(*both)})
        return sorted(curve, key=lambda point: point["bpp"])


def at(curve: list[dict[str, float]], name: str, rate: float) -> float:
    """A figure at a rate; not a number beyond the curve's ends."""
    rates = [math.log(point["bpp"]) for point in curve]
    outside = not rates[0] <= math.log(rate) <= rates[-1]
    values = [point.get(name, math.nan) for point in curve]
    return math.nan if outside else float(np.interp(math.log(rate), rates, values))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="TAR")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every n-th picture")
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--decoders", nargs="*", default=["mean", "realistic"])
    parser.add_argument("--peers", nargs="*", default=["avif", "jxl", "webp"])
    parser.add_argument("--cdc", metavar="MODEL")
    parser.add_argument("--cdc-decoders", nargs="*", default=["fast"])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--no-eyes", action="store_true", help="leave SSIMULACRA2 out: minutes")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    codec = load_codec(options.model)
    cdc = load_codec(options.cdc) if options.cdc else None
    peers = all_peers()
    pictures = [one for tar in options.data for one in from_tar(tar)[:: options.every]]
    points = Points(not options.no_eyes)
    for number, picture in enumerate(pictures, 1):
        points.original(picture)
        (stream,) = codec.encode([picture], layers=max(options.layers))
        for layers in options.layers:
            cut = stream.truncate(layers)
            for decoder in options.decoders:
                (shown,) = codec.decode([cut], decoder=decoder)
                points.add(f"{codec.name} {decoder}", layers, shown, cut.nbytes)
            for name in options.peers:
                data = peers[name].near(picture, cut.nbytes)
                points.add(peers[name].title, layers, peers[name].decode(data), len(data))
        if cdc is not None:
            for quality in range(cdc.scheme.model.qualities):
                (stream,) = cdc.encode([picture], quality=quality)
                for decoder in options.cdc_decoders:
                    (shown,) = cdc.decode([stream], decoder=decoder)
                    points.add(f"{cdc.name} {decoder}", quality, shown, stream.nbytes)
        print(f"{number} of {len(pictures)}", file=sys.stderr, flush=True)
    curves = {decoder: points.curve(decoder) for decoder in points.sums}
    _table(curves, options.rates)
    if options.out:
        options.out.write_text(json.dumps(curves, indent=1) + "\n")
    return 0


def _table(curves: dict[str, list[dict[str, float]]], rates: list[float]) -> None:
    shown: dict[str, Callable[[float], str]] = {
        "features": "{:.3f}".format,
        "frechet": "{:.0f}".format,
        "ssimulacra2": "{:.1f}".format,
    }
    for decoder, curve in curves.items():
        told = (
            " ".join(form(point[name]) for name, form in shown.items() if name in point)
            for point in curve
        )
        rows = (f"{point['bpp']:.3f}: {text}" for point, text in zip(curve, told, strict=True))
        print(f"{decoder:16s} {', '.join(rows)}")
    print(f"\n| {' | '.join(FIGURES)}; at {', '.join(f'{rate:g}' for rate in rates)} bpp |")
    for decoder, curve in curves.items():
        cells = (" ".join(form(at(curve, name, r)) for r in rates) for name, form in shown.items())
        print(f"| {decoder} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
