#!/usr/bin/env python
"""Speed of encoding and decoding whole streams, by model and size of batch.

    python tests/benchmarks/codec_speed.py --model cdc-model uqdm --batch 1 4 16 --threads 2

Each figure is the median of some rounds after one to warm up. All models and batches are loaded at
once and each round measures all of them in turn, so that the ratios, to the table's first row, hold
even where the machine is not at rest. Pictures per second count whole pictures, Mpx/s their pixels.
A step of the diffusion is the difference between decoding with two numbers of steps, over the
steps between. Codecs cut batches into what their memory is meant for (``batch_pixels``).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from codec import Codec, EncodedImage, load_codec
from codec.models import zoo
from tests.benchmarks import pictures


@dataclass
class Case:
    """One model with one batch, and the seconds that each of its calls took, round by round."""

    codec: Codec
    images: list[np.ndarray]
    calls: dict[str, Callable[[], object]]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def round(self) -> None:
        for name, call in self.calls.items():
            begin = time.perf_counter()
            call()
            self.seconds.setdefault(name, []).append(time.perf_counter() - begin)


def takes(codec: Codec, **options: Any) -> bool:
    """Whether ``decode`` would take these options."""
    try:
        codec.check_options("decode", options)
    except (TypeError, ValueError):
        return False
    return True


def make_case(
    codec: Codec, images: list[np.ndarray], steps: tuple[int, int], encode: dict[str, Any]
) -> Case:
    """``encode`` and, as the model has them, ``decode`` and decoding with few and more steps."""
    streams: list[EncodedImage] = codec.encode(images, **encode)
    calls: dict[str, Callable[[], object]] = {"encode": partial(codec.encode, images, **encode)}
    if "decoder" not in codec.decode_options or not takes(codec, decoder="diffusion"):
        calls["decode"] = partial(codec.decode, streams)
    elif takes(codec, decoder="fast"):
        calls["decode"] = partial(codec.decode, streams, decoder="fast")
    if takes(codec, decoder="diffusion"):
        for name, count in zip(("few", "more"), steps, strict=True):
            calls[name] = partial(codec.decode, streams, decoder="diffusion", steps=count)
    return Case(codec, images, calls)


def figures(case: Case, steps: tuple[int, int]) -> dict[str, Any]:
    """Pictures and megapixels a second; seconds of a diffusion step, for the batch and a picture.

    What a model lacks is None.
    """
    count = len(case.images)
    megapixels = sum(image.shape[0] * image.shape[1] for image in case.images) / 1e6
    taken = {name: median(seconds) for name, seconds in case.seconds.items()}
    out: dict[str, Any] = {"model": case.codec.name, "model_id": case.codec.model_id}
    out["batch"] = count
    for verb in ("encode", "decode"):
        seconds = taken.get(verb)
        out[f"{verb}_pictures_s"] = None if seconds is None else count / seconds
        out[f"{verb}_mpixel_s"] = None if seconds is None else megapixels / seconds
    step = None
    if "more" in taken:
        pairs = zip(case.seconds["few"], case.seconds["more"], strict=True)
        step = median(more - few for few, more in pairs) / (steps[1] - steps[0])
    out["step_s"] = step
    out["step_s_a_picture"] = None if step is None else step / count
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["model", "batch"]
    for verb in ("encode", "decode"):
        header += [f"{verb} pictures/s", "Mpx/s", "ratio"]
    header += ["s a step", "a picture"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [row["model"], str(row["batch"])]
        for verb in ("encode", "decode"):
            speed, first = row[f"{verb}_pictures_s"], rows[0][f"{verb}_pictures_s"]
            ratio = speed / first if speed and first else None
            cells += [_shown(speed), _shown(row[f"{verb}_mpixel_s"]), _shown(ratio)]
        cells += [_shown(row["step_s"]), _shown(row["step_s_a_picture"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Floats to four digits: more is noise."""
    return {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in row.items()}


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def size(text: str) -> tuple[int, int]:
    """(width, height) of ``768x512``."""
    width, height = (int(side) for side in text.split("x"))
    if width < 1 or height < 1:
        raise ValueError(text)
    return width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=[zoo.DEFAULT_MODELS["uqdm"]])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--size", type=size, default=(768, 512), metavar="WxH")
    parser.add_argument("--data", type=Path, help="a tar of pictures; default: made-up ones")
    parser.add_argument("--quality", type=int, help="to encode at, for models with qualities")
    parser.add_argument("--steps", nargs=2, type=int, default=(2, 6), help="to tell a step's cost")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    few, more = options.steps
    if not 1 <= few < more:
        parser.error("--steps: a smaller and a larger number")
    if options.threads:
        torch.set_num_threads(options.threads)
    width, height = options.size
    if options.data:
        source = pictures.from_tar(options.data, max(options.batch))
    else:
        source = pictures.synthetic(max(options.batch), height, width)
    cases = []
    for model in options.model:
        codec = load_codec(model, options.device)
        has_quality = "quality" in codec.encode_options and options.quality is not None
        encode = {"quality": options.quality} if has_quality else {}
        for batch in options.batch:
            images = pictures.of_size(source, batch, height, width)
            cases.append(make_case(codec, images, (few, more), encode))
    for number in range(options.rounds + 1):
        for case in cases:
            case.round()
            if number == 0:  # to warm up
                case.seconds.clear()
    setup = {
        "size": f"{width}x{height}",
        "pictures": options.data.name if options.data else "made up",
        "device": options.device,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "torch": torch.__version__,
    }
    if options.device.startswith("cuda"):
        setup["gpu"] = torch.cuda.get_device_name(options.device)
    rows = [_rounded(figures(case, (few, more))) for case in cases]
    print(json.dumps(setup) + "\n\n" + table(rows))
    if options.out:
        options.out.write_text(json.dumps({**setup, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
