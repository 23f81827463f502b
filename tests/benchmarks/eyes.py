"""How models and other codecs look at their bytes: SSIMULACRA2 and bits at equal SSIMULACRA2.

    python tests/benchmarks/eyes.py --data kodak.tar --model uqdm --every 4

Needs the extra ``eyes``. Peers are Pillow's JPEG (4:2:0, progressive, optimised), WebP (method 6)
and AVIF (speed 6), and ``cjxl -e 7`` where it is installed. A point of a picture takes a second.
"""

import argparse
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from codec import load_codec

QUALITIES = {
    "JPEG": ((8, 14, 22, 32, 45, 60, 75, 85, 92, 96), {"optimize": True, "progressive": True}),
    "WebP": ((1, 10, 25, 45, 65, 80, 90, 96), {"method": 6}),
    "AVIF": ((0, 10, 20, 30, 40, 50, 60, 70, 80, 88, 94), {"speed": 6}),
}
DISTANCES = (20, 14, 10, 7, 5, 3.5, 2.5, 1.8, 1.3, 1.0, 0.7, 0.5)  # of JPEG XL
RANGE = np.linspace(30, 90, 61)  # of SSIMULACRA2, for the mean difference of bits

Point = tuple[float, float]  # bits per pixel, SSIMULACRA2


def pictures(path: Path, every: int) -> Iterator[tuple[str, Image.Image]]:
    with tarfile.open(path) as tar:
        members = [m for m in tar if m.name.endswith((".png", ".webp", ".jpg"))]
        for member in members[::every]:
            file = tar.extractfile(member)
            assert file is not None
            yield member.name, Image.open(io.BytesIO(file.read())).convert("RGB")


class Measure:
    """SSIMULACRA2 of pictures against one original, through files, as the package has it."""

    def __init__(self, original: Image.Image, folder: Path) -> None:
        self.pixels = original.width * original.height
        self._original, self._other = folder / "original.png", folder / "other.png"
        original.save(self._original, compress_level=1)

    def point(self, nbytes: int, shown: Image.Image) -> Point:
        from ssimulacra2 import compute_ssimulacra2

        shown.save(self._other, compress_level=1)
        score = float(compute_ssimulacra2(str(self._original), str(self._other)))
        return 8 * nbytes / self.pixels, score


def peers(original: Image.Image, measure: Measure, folder: Path) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for name, (qualities, options) in QUALITIES.items():
        for quality in qualities:
            buffer = io.BytesIO()
            original.save(buffer, name, quality=quality, **options)
            shown = Image.open(buffer).convert("RGB")
            found.setdefault(name, []).append(measure.point(len(buffer.getvalue()), shown))
    if shutil.which("cjxl") and shutil.which("djxl"):
        source, coded, back = (folder / name for name in ("in.png", "x.jxl", "out.png"))
        original.save(source, compress_level=1)
        for distance in DISTANCES:
            encode = ["cjxl", str(source), str(coded), "-d", str(distance), "-e", "7", "--quiet"]
            subprocess.run(encode, check=True, stderr=subprocess.DEVNULL)
            subprocess.run(["djxl", str(coded), str(back), "--quiet"], check=True)
            shown = Image.open(back).convert("RGB")
            found.setdefault("JPEG XL", []).append(measure.point(coded.stat().st_size, shown))
    return found


def bits_at(points: list[Point], scores: np.ndarray) -> np.ndarray:
    """Logarithms of the bits that a curve needs for some scores; NaN outside of it."""
    curve = np.array(sorted(points))
    rising = np.maximum.accumulate(curve[:, 1])
    found: np.ndarray = np.interp(scores, rising, np.log(curve[:, 0]), left=np.nan, right=np.nan)
    return found


def score_at(points: list[Point], bpp: np.ndarray) -> np.ndarray:
    curve = np.array(sorted(points))
    found: np.ndarray = np.interp(
        np.log(bpp), np.log(curve[:, 0]), curve[:, 1], left=np.nan, right=np.nan
    )
    return found


def mean(rows: list[np.ndarray]) -> list[str]:
    """Means over pictures, of those that have a figure."""
    table = np.array(rows)
    counts = (~np.isnan(table)).sum(0)
    sums = np.nansum(table, 0)
    return [f"{s / n:.3g}" if n else "-" for s, n in zip(sums, counts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--every", type=int, default=1, help="take each n-th picture")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    codec = load_codec(args.model)
    lossy = codec.num_layers - codec.lossless
    ours: list[list[tuple[float, float, float]]] = []
    others: list[dict[str, list[Point]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, original in pictures(args.data, args.every):
            measure, array = Measure(original, folder), np.asarray(original)
            (stream,) = codec.encode([array], layers=lossy)
            rows = []
            for layers, (decoded,) in enumerate(codec.decode_progressively([stream]), start=1):
                error = float(((array.astype(float) - decoded) ** 2).mean())
                shown = Image.fromarray(decoded)
                point = measure.point(stream.truncate(layers).nbytes, shown)
                rows.append((*point, 10 * np.log10(255**2 / error)))
            ours.append(rows)
            others.append(peers(original, measure, folder))
            print(key, " ".join(f"{b:.3f}:{s:.1f}" for b, s, _ in rows), flush=True)
    table = np.array(ours)
    print(f"{len(ours)} pictures, {args.model}, by layers")
    for title, column in (("bits per pixel", 0), ("SSIMULACRA2", 1), ("PSNR, dB", 2)):
        print(f"{title:32}", *mean(list(table[:, :, column])))
    for peer in others[0]:
        same = [score_at(o[peer], t[:, 0]) for o, t in zip(others, table, strict=True)]
        print(f"{peer + ', SSIMULACRA2 at its rates':32}", *mean(same))
        pairs = list(zip(table, others, strict=True))
        more = [np.log(t[:, 0]) - bits_at(o[peer], t[:, 1]) for t, o in pairs]
        print(f"{'  bits against it, %':32}", *mean([100 * np.expm1(row) for row in more]))
        whole = [
            np.nanmean(bits_at([(b, s) for b, s, _ in t], RANGE) - bits_at(o[peer], RANGE))
            for t, o in pairs
        ]
        print(f"{'  mean over 30 .. 90, %':32}", f"{100 * np.expm1(np.mean(whole)):.1f}")
    if args.json:
        args.json.write_text(json.dumps({"ours": ours, "peers": others}))


if __name__ == "__main__":
    main()
