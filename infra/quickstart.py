"""The quickstart: photographs -> tar shard -> layered dataset -> pictures at every layer.

Runs the two jobs as a person would, then shows rate and quality of each layer as a table and as a
contact sheet. Everything lands in ``quickstart/``. Arguments go to strata compress, so
``--codec cdc`` shows the other codec and ``--model runs/mine`` a model of your own.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from codec import load_codec  # noqa: E402
from codec.images.files import read_image, write_image  # noqa: E402
from codec.images.metrics import bits_per_pixel, mse, psnr_of_mean_mse  # noqa: E402
from codec.models.zoo import DEFAULT_MODELS  # noqa: E402
from pipeline import open_dataset  # noqa: E402

FOLDER = Path("quickstart")
SHARD = FOLDER / "photos" / "photos-000000.tar"
ARCHIVE = FOLDER / "archive"
SHEET = FOLDER / "contact_sheet.png"
PREVIEW_LAYERS = 2
SIDE = 256  # of the squares cut from the photographs: seconds, not minutes, on a small machine
CROP, GAP, LINE = 176, 8, 20  # pixels of the contact sheet


@dataclass(frozen=True)
class Photo:
    """A photograph that scikit-image's wheel carries, and the corner of the square to take."""

    file: str
    title: str
    licence: str
    corner: tuple[int, int]

    @property
    def key(self) -> str:
        return self.file.split(".")[0]


PHOTOS = [
    Photo("astronaut.png", "Eileen Collins, NASA", "public domain", (95, 0)),
    Photo("chelsea.png", "Chelsea, by Stefan van der Walt", "CC0", (55, 0)),
    Photo("coffee.png", "Coffee, by Rachel Michetti", "CC0", (210, 20)),
    Photo("rocket.jpg", "Falcon 9 with DSCOVR, SpaceX", "public domain", (190, 140)),
]


@dataclass(frozen=True)
class View:
    """One picture after its first layers: what it costs and what it looks like."""

    image: np.ndarray
    nbytes: int
    error: float

    @property
    def bpp(self) -> float:
        return bits_per_pixel(self.nbytes, self.image.shape[1], self.image.shape[0])

    @property
    def quality(self) -> str:
        return "exact" if self.error == 0 else f"{psnr_of_mean_mse([self.error]):.1f} dB"


def step(text: str) -> None:
    print(f"\033[1m==> {text}\033[0m", flush=True)


def make_shard(path: Path) -> dict[str, bytes]:
    """Write squares of the photographs as a WebDataset shard; returns the PNG files by key."""
    path.parent.mkdir(parents=True)
    originals = {}
    with tarfile.open(path, "w") as tar:
        for photo in PHOTOS:
            whole = read_image(files("skimage.data").joinpath(photo.file).read_bytes()).rgb
            x, y = photo.corner
            picture = originals[photo.key] = write_image(whole[y : y + SIDE, x : x + SIDE])
            side = json.dumps({"title": photo.title, "licence": photo.licence}).encode()
            for field, data in [("png", picture), ("json", side)]:
                member = tarfile.TarInfo(f"{photo.key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return originals


def job(script: str, *arguments: str | Path) -> None:
    """Run one of the jobs, showing its command and its output; ends the quickstart if it fails."""
    command = [f"jobs/{script}", *map(str, arguments)]
    print(f"$ python {' '.join(command)}", flush=True)
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    started = time.monotonic()
    code = subprocess.run([sys.executable, *command], env=environment, check=False).returncode
    if code:
        sys.exit(f"error: {command[0]} ended with exit code {code}; the reason is printed above")
    print(f"  ({time.monotonic() - started:.0f} s with starting and stopping Ray)", flush=True)


def look(originals: dict[str, bytes]) -> dict[str, list[View]]:
    """Decode every picture after 1, 2, ... layers, reading the dataset as a library would."""
    dataset = open_dataset(str(ARCHIVE))
    codec = dataset.codec()
    views: dict[str, list[View]] = {key: [] for key in originals}
    records = list(dataset.read())
    steps = codec.decode_progressively([record.encoded for record in records])
    for layers, images in enumerate(steps, start=1):
        for record, image in zip(records, images, strict=True):
            error = mse(read_image(originals[record.key]).rgb, image)
            views[record.key].append(View(image, record.encoded.truncate(layers).nbytes, error))
        print(f"  {layers} of {dataset.num_layers} layers", flush=True)
    return views


def is_lossless(arguments: list[str]) -> bool:
    """Whether the model that the arguments choose has a lossless layer."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--codec", default="uqdm")
    parser.add_argument("--model")
    given, _ = parser.parse_known_args(arguments)
    return load_codec(given.model or DEFAULT_MODELS.get(given.codec, given.codec)).lossless


def check_exact(folder: Path, originals: dict[str, bytes]) -> None:
    """Compare the pictures in the decoded tars with the originals, pixel by pixel."""
    decoded = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None and member.name.endswith(".png"):
                    decoded[member.name.removesuffix(".png")] = read_image(stream.read()).rgb
    for key, data in originals.items():
        if not np.array_equal(decoded[key], read_image(data).rgb):
            sys.exit(f"error: {key} did not come back exactly")
    print(f"  all {len(originals)} pictures are bit-exact", flush=True)


def print_table(views: dict[str, list[View]], originals: dict[str, bytes]) -> None:
    pixels = sum(v[0].image.shape[0] * v[0].image.shape[1] for v in views.values())
    source = sum(map(len, originals.values()))
    print(f"\n{'layers':>9} {'bytes':>12} {'bits per pixel':>15} {'PSNR':>10} {'of original':>12}")
    print(f"{'original':>9} {source:12,} {8 * source / pixels:15.3f} {'':>10} {'100.0 %':>12}")
    for number, of_layer in enumerate(zip(*views.values(), strict=True), start=1):
        size = sum(view.nbytes for view in of_layer)
        psnr = psnr_of_mean_mse(view.error for view in of_layer)
        quality = "exact" if psnr == float("inf") else f"{psnr:.2f} dB"
        share = f"{100 * size / source:.1f} %"
        print(f"{number:9} {size:12,} {8 * size / pixels:15.3f} {quality:>10} {share:>12}")
    print()


def contact_sheet(views: dict[str, list[View]], originals: dict[str, bytes]) -> Image.Image:
    """A row for each picture: a crop of the original, then of each layer, with their captions."""
    columns = 1 + max(map(len, views.values()))
    width = GAP + columns * (CROP + GAP)
    height = LINE + 2 * GAP + len(views) * (CROP + LINE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)

    def put(row: int, column: int, image: np.ndarray, caption: str) -> None:
        x, y = GAP + column * (CROP + GAP), LINE + 2 * GAP + row * (CROP + LINE + GAP)
        sheet.paste(Image.fromarray(image), (x, y))
        draw.text((x + CROP // 2, y + CROP + 3), caption, "#333333", font, anchor="ma")

    for column in range(columns):
        title = "original" if column == 0 else "1 layer" if column == 1 else f"{column} layers"
        x = GAP + column * (CROP + GAP) + CROP // 2
        draw.text((x, GAP), title, "black", ImageFont.load_default(15), anchor="ma")
    margin = (SIDE - CROP) // 2
    crop = np.s_[margin : margin + CROP, margin : margin + CROP]
    for row, (key, of_layers) in enumerate(views.items()):
        bpp = bits_per_pixel(len(originals[key]), SIDE, SIDE)
        put(row, 0, read_image(originals[key]).rgb[crop], f"png, {bpp:.2f} bpp")
        for column, view in enumerate(of_layers, start=1):
            put(row, column, view.image[crop], f"{view.bpp:.2f} bpp, {view.quality}")
    return sheet


def main() -> None:
    os.chdir(ROOT)
    shutil.rmtree(FOLDER, ignore_errors=True)
    step(f"A WebDataset shard of {len(PHOTOS)} photographs: {SHARD}")
    originals = make_shard(SHARD)
    step("Compressing it into a dataset of layered streams, all layers kept")
    lossless = is_lossless(sys.argv[1:])
    # Whatever the files are, there are streams to look at.
    kept = ["--keep-original", "bad"]
    arguments = [*kept, *(["--lossless"] if lossless else []), *sys.argv[1:]]
    job("compress_dataset.py", "--input", SHARD, "--output", ARCHIVE, *arguments)
    step(f"Decoding the first {PREVIEW_LAYERS} layers to files, for a quick look")
    previews = FOLDER / "previews"
    layers = ("--layers", str(PREVIEW_LAYERS), "--format", "files", "--image-format", "jpg")
    job("decode_dataset.py", "--input", ARCHIVE, "--output", previews, *layers)
    step("Decoding all layers back to a WebDataset shard")
    whole = FOLDER / ("exact" if lossless else "decoded")
    job("decode_dataset.py", "--input", ARCHIVE, "--output", whole, "--image-format", "png")
    if lossless:
        check_exact(whole, originals)
    step("Looking at every layer through the Python library")
    views = look(originals)
    print_table(views, originals)
    contact_sheet(views, originals).save(SHEET, optimize=True)
    print(f"Contact sheet: {SHEET}\nPreviews:      {previews}\nArchive:       {ARCHIVE}\n")
    step("What next? Activate the environment (. .venv/bin/activate), then")
    print(f"  strata serve --input {ARCHIVE}       # the same pictures in the browser")
    print("  strata compress --input my-photos/ --output my-archive")
    print("  strata decode --input my-archive --output previews --layers 2")


if __name__ == "__main__":
    main()
