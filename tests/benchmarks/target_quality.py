"""How many pictures reach what ``--target-quality`` asks for, and what they take.

    python tests/benchmarks/target_quality.py --data kodak-000000.tar --targets 70 80 38dB

Compresses the pictures of WebDataset tars, decodes what was stored and measures it anew. Needs the
extra ``eyes``.
"""

import argparse
import io
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec.images.files import read_image
from codec.images.metrics import psnr
from codec.images.perception import ssimulacra2
from codec.models import zoo
from pipeline import CompressOptions, compress_dataset, open_dataset
from pipeline.compress.quality import target_quality


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="TAR")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--targets", nargs="+", default=["80"])
    parser.add_argument("--model", default=zoo.DEFAULT_MODELS["uqdm"])
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        with tarfile.open(options.data) as tar, tarfile.open(f"{folder}/x.tar", "w") as some:
            for member in [one for one in tar if one.name.endswith("png")][: options.count]:
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
                files[member.name.partition(".")[0]] = data
                some.addfile(member, io.BytesIO(data))
        for text in options.targets:
            target = target_quality(text)
            out = f"{folder}/{text}"
            summary = compress_dataset(
                CompressOptions((f"{folder}/x.tar",), out, options.model, target_quality=text)
            )
            dataset = open_dataset(out)
            reached = []
            for key, data in files.items():
                image, shown = read_image(data).rgb, dataset.image(key)
                measure = psnr if target.decibels else ssimulacra2
                found = measure(image, shown)
                reached.append(found is not None and found >= target.value)
            totals = summary.totals
            print(
                f"{text}: {sum(reached)} of {len(reached)} reach it; layers {totals['by_layers']}, "
                f"{totals['by_reason']}, {8 * totals['stream_bytes'] / totals['pixels']:.2f} bpp, "
                f"{summary.seconds:.0f} s"
            )
            missed += len(reached) - sum(reached)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
