"""A corpus of JPEG files of all kinds, kept byte for byte: how many come back, and what they take.

    python tests/benchmarks/jpeg_corpus.py --data 'photos-*.tar'

Makes ``--count`` files of the pictures in WebDataset tars: qualities 60 to 97, 4:2:0 and 4:4:4,
progressive, grey, CMYK, and broken (cut short, without end marker, with bytes behind it). Every
second one has EXIF: an orientation, a place and a thumbnail.
Compresses them in one of three ways (``--what``) and compares with what is stored:

always      ``--keep-original always``: gives all files back with ``--format originals``
default     no options: the quality of every picture, and whether the summary is right
lossless    ``--lossless``, with PNG files among them: every pixel, and every byte of JPEG files

Needs the extras ``jpeg`` and ``eyes``.
"""

import argparse
import io
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from codec.images.files import read_image
from codec.images.metrics import psnr
from codec.images.perception import ssimulacra2
from codec.models import zoo
from pipeline import (
    CompressOptions,
    DecodeOptions,
    compress_dataset,
    decode_dataset,
    open_dataset,
)
from pipeline.compress.summary import CompressSummary
from tests.benchmarks.exif import with_exif

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


def _crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle of it, at most ``side`` pixels each way; 0: all of it."""
    width, height = picture.size
    if not side:
        return picture
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    return picture.crop((left, top, min(width, left + side), min(height, top + side)))


def jpeg(picture: Image.Image, kind: str, quality: int, number: int) -> bytes:
    """The file of this kind; ``number`` is its number in the corpus."""
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
    if number % 2:
        data = with_exif(data, picture, 1 + number // 2 % 8)
    if kind == "broken":
        broken = data[: len(data) * 2 // 3], data[:-2], data + b"behind the end"
        return broken[number // len(KINDS) % 3]
    return data


def make(
    path: Path, tars: Sequence[str], count: int, side: int = 0
) -> dict[str, tuple[str, bytes]]:
    """A tar of JPEG files and their side fields; kind and content of each by its name."""
    files = {}
    with tarfile.open(path, "w") as tar:
        for number, picture in zip(range(count), pictures(tars), strict=False):
            kind, quality = KINDS[number % len(KINDS)], QUALITIES[number % len(QUALITIES)]
            data = jpeg(_crop(picture, side), kind, quality, number)
            files[f"{number:05d}.jpg"] = (kind, data)
            for name, content in ((f"{number:05d}.jpg", data), (f"{number:05d}.txt", b"label")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return files


def report(
    archive: str, files: dict[str, tuple[str, bytes]], summary: CompressSummary, promised: float
) -> bool:
    """Print what became of each kind; whether every promise was kept and the summary is right.

    What is promised of a picture: its own file, or all layers that are worth archiving and a
    SSIMULACRA2 of ``promised``.
    """
    dataset = open_dataset(archive)
    rows: dict[str, dict[str, Any]] = {}
    for file in dataset.files:
        with dataset.open(file) as opened:
            for row in opened.rows(["key", "status", "layers", "cumulative_bytes", "original"]):
                rows[row["key"]] = row
    shown = defaultdict(list)
    sound = True
    for name, (kind, data) in files.items():
        key = Path(name).stem
        row = rows[key]
        kept = dataset.original(key)
        sound = sound and kept in (None, data)
        stored = len(row["original"] or b"") + (row["cumulative_bytes"] or [0])[-1]
        quality = None
        if row["status"] == "ok":
            image = read_image(data).rgb
            quality = psnr(image, dataset.image(key)), ssimulacra2(image, dataset.image(key))
            exact = quality[0] == float("inf")
            even = row["layers"] == dataset.codec().archive_layers and quality[1] >= promised
            sound = sound and (exact or even)
            # A picture that keeps its file is that file.
            sound = sound and (kept is None or exact)
        for group in (kind, "all"):
            shown[group].append((len(data), stored, kept is not None, quality))
    print(
        f"\n{'kind':12} {'files':>5} {'kept':>5} {'bytes':>10} {'stored':>10} {'share':>7}  worst"
    )
    for kind, found in sorted(shown.items()):
        before, after = (sum(one[place] for one in found) for place in (0, 1))
        measured = [quality for *_, quality in found if quality is not None]
        worst = [min(values) for values in zip(*measured, strict=True)]
        told = f"{worst[0]:.1f} dB, SSIMULACRA2 {worst[1]:.1f}" if worst else ""
        share = 100 * after / before
        kept_files = sum(one[2] for one in found)
        sizes = f"{before:10,} {after:10,} {share:5.1f} %"
        print(f"{kind:12} {len(found):5} {kept_files:5} {sizes}  {told}")
    good = [row for row in rows.values() if row["status"] == "ok"]
    totals = summary.totals
    layers = Counter(str(row["layers"]) for row in good)
    kept_rows = sum(row["original"] is not None for row in rows.values())
    right = (
        totals["by_layers"] == layers
        and sum(n for why, n in totals["by_reason"].items() if "kept" in why or why == "bad")
        == kept_rows
        and totals["ok"] == len(good)
        and totals["bytes"] == sum(file.bytes for file in dataset.files)
        and dataset.totals["by_layers"] == totals["by_layers"]
    )
    smaller = totals["archive_bytes"] < totals["input_bytes"]
    print(f"promises kept: {sound}; figures of the summary right: {right}; smaller: {smaller}")
    return sound and right and smaller


def with_pngs(
    path: Path, tars: Sequence[str], count: int, side: int
) -> dict[str, tuple[str, bytes]]:
    """A tar of JPEG and PNG files."""
    files = make(path, tars, count, side)
    with tarfile.open(path, "a") as tar:
        for number, picture in zip(range(count // 3), pictures(tars), strict=False):
            out = io.BytesIO()
            _crop(picture, side).save(out, "PNG")
            name = f"png{number:04d}.png"
            files[name] = ("png", out.getvalue())
            member = tarfile.TarInfo(name)
            member.size = len(out.getvalue())
            tar.addfile(member, io.BytesIO(out.getvalue()))
    return files


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="TAR")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--side", type=int, default=0, metavar="PIXELS", help="crop to this")
    parser.add_argument("--model", default=zoo.DEFAULT_MODELS["uqdm"])
    parser.add_argument("--what", choices=["always", "default", "lossless"], default="always")
    parser.add_argument("--promised", type=float, default=80.0, help="SSIMULACRA2, of the default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        maker = with_pngs if options.what == "lossless" else make
        files = maker(root / "jpegs.tar", options.data, options.count, options.side)
        if options.what == "always":
            return byte_exact(root, files, options.model)
        lossless = options.what == "lossless"
        summary = compress_dataset(
            CompressOptions(
                inputs=(str(root / "jpegs.tar"),),
                output=str(root / "archive"),
                model=options.model,
                lossless=lossless,
            )
        )
        summary.print()
        promised = float("inf") if lossless else options.promised
        return 0 if report(str(root / "archive"), files, summary, promised) else 1


def byte_exact(root: Path, files: dict[str, tuple[str, bytes]], model: str) -> int:
    """``--keep-original always``: all files back, and what they take."""
    archive = str(root / "archive")
    compress_dataset(
        CompressOptions(
            inputs=(str(root / "jpegs.tar"),),
            output=archive,
            model=model,
            keep_original="always",
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
