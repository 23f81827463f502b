"""A corpus of JPEG files of all kinds, kept byte for byte: how many come back, and what they take.

    python tests/benchmarks/jpeg_corpus.py --data 'photos-*.tar'

Makes ``--count`` files of the pictures in WebDataset tars: qualities 60 to 97, 4:2:0 and 4:4:4,
progressive, grey, CMYK, and broken (cut short, without end marker, with bytes behind it).
Compresses them with ``--keep-original always --store-layers 2``, gives the files back with
``--format originals``, and compares. Needs the extra ``jpeg``.
"""

import argparse
import io
import sys
import tarfile
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from codec.models import zoo
from pipeline import (
    CompressOptions,
    DecodeOptions,
    compress_dataset,
    decode_dataset,
    open_dataset,
)

QUALITIES = (60, 70, 75, 80, 85, 90, 95, 97)
# Of eleven files, so that every kind meets every quality.
KINDS = (
    *("4:2:0", "4:4:4", "4:2:0", "progressive", "4:4:4", "grey", "4:2:0", "progressive"),
    *("4:4:4", "cmyk", "broken"),
)


def pictures(tars: Sequence[str]) -> Iterator[Image.Image]:
    """The pictures of tars, one of each tar in turn."""
    turns = deque(map(_of_tar, tars))
    while turns:
        turn = turns.popleft()
        picture = next(turn, None)
        if picture is not None:
            yield picture
            turns.append(turn)


def _of_tar(path: str) -> Iterator[Image.Image]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(("jpg", "png", "webp")):
                content = tar.extractfile(member)
                assert content is not None
                yield Image.open(io.BytesIO(content.read())).convert("RGB")


def jpeg(picture: Image.Image, kind: str, quality: int, number: int) -> bytes:
    out = io.BytesIO()
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    picture.convert(mode).save(
        out,
        "JPEG",
        quality=quality,
        subsampling=0 if kind == "4:4:4" else 2,
        progressive=kind == "progressive",
    )
    data = out.getvalue()
    if kind == "broken":
        return (data[: len(data) * 2 // 3], data[:-2], data + b"behind the end")[number % 3]
    return data


def make(path: Path, tars: Sequence[str], count: int) -> dict[str, tuple[str, bytes]]:
    """A tar of JPEG files and their side fields; kind and content of each by its name."""
    files = {}
    with tarfile.open(path, "w") as tar:
        for number, picture in zip(range(count), pictures(tars), strict=False):
            kind, quality = KINDS[number % len(KINDS)], QUALITIES[number % len(QUALITIES)]
            data = jpeg(picture, kind, quality, number // len(KINDS))
            files[f"{number:05d}.jpg"] = (kind, data)
            for name, content in ((f"{number:05d}.jpg", data), (f"{number:05d}.txt", b"label")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return files


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="TAR")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--model", default=zoo.DEFAULT_MODELS["uqdm"])
    parser.add_argument("--layers", type=int, default=2, help="of the streams, for previews")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = make(root / "jpegs.tar", options.data, options.count)
        archive = str(root / "archive")
        compress_dataset(
            CompressOptions(
                inputs=(str(root / "jpegs.tar"),),
                output=archive,
                model=options.model,
                keep_original="always",
                store_layers=options.layers,
            )
        ).print()
        decode_dataset(DecodeOptions(archive, str(root / "back"), format="originals")).print()
        with tarfile.open(root / "back" / "jpegs.tar") as tar:
            back = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
        dataset = open_dataset(archive)
        stored: dict[str, tuple[int, str | None]] = {}
        for file in dataset.files:
            with dataset.open(file) as opened:
                for row in opened.rows(["key", "original", "original_packing"]):
                    kept = row["original"] or b""
                    stored[f"{row['key']}.jpg"] = len(kept), row["original_packing"]
        size = sum(file.bytes for file in dataset.files)
    same = {name for name, (_, data) in files.items() if back.get(name) == data}
    labels = sum(back.get(f"{Path(name).stem}.txt") == b"label" for name in files)
    print(f"\n{len(same)} of {len(files)} files and {labels} labels are back byte for byte")
    groups = defaultdict(list)
    for name, (kind, _) in files.items():
        groups[kind].append(name)
        groups["all"].append(name)
    print(f"{'kind':12} {'files':>5} {'packed':>6} {'bytes':>11} {'kept':>11} {'share':>7}")
    for kind, names in sorted(groups.items()):
        before = sum(len(files[name][1]) for name in names)
        after = sum(stored[name][0] for name in names)
        packed = sum(stored[name][1] is not None for name in names)
        share = 100 * after / before
        print(f"{kind:12} {len(names):5} {packed:6} {before:11,} {after:11,} {share:5.1f} %")
    total = sum(len(data) for _, data in files.values())
    print(f"data files, streams included: {size:,} bytes, {100 * size / total:.1f} % of the JPEGs")
    return 0 if len(same) == labels == len(files) else 1


if __name__ == "__main__":
    sys.exit(main())
