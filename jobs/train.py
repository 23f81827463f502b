#!/usr/bin/env python
"""Train a model on tar shards of pictures.

Examples:
    python jobs/train.py --data 'photos-{000..007}.tar' --config small --out runs/mine --hours 2
    python jobs/train.py --data shards/ --init uqdm-small --out runs/better --device cuda
    python jobs/train.py --codec cdc --help      (each codec has recipes and flags of its own)

The same command again goes on from the last checkpoint in --out. Afterwards the model is there:
    python jobs/compress_dataset.py --model runs/mine ...

Needs no Ray; with local files as --data, nothing beside torch, numpy, Pillow and safetensors.
"""

import argparse
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec import zoo  # before torch, whose threads it sets
from codec.errors import StrataError
from codec.flags import add_flags, given_flags
from codec.trainable import TRAINING_FILE, TrainingFile, centre_crops, saver
from codec.training import TrainingConfig, train
from codec.training_data import read_shards

import numpy as np  # isort: skip
import torch  # isort: skip

VALIDATION_PICTURES = 16
COUNTED_CROPS = 128  # on which a model's tables are counted


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options, the codec among them. Raises StrataError where --init cannot be read."""
    family = _family(arguments)
    recipes = _recipes(family)
    names = "; ".join(f"{name}: {recipe.about}" for name, recipe in recipes.RECIPES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--codec",
        choices=zoo.families(),
        default=family,
        help="the codec family (default: that of --init, or else uqdm); with --help it tells what "
        "belongs to this family",
    )
    parser.add_argument(
        "--data", nargs="+", action="extend", required=True, metavar="URL", help="tar shards"
    )
    parser.add_argument(
        "--config", default=recipes.DEFAULT_RECIPE, choices=recipes.RECIPES, help=names
    )
    parser.add_argument("--out", type=Path, required=True, help="the run's folder (local)")
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="go on from the weights of a shipped model or of another run (of --config remains "
        "how long and how fast)",
    )
    parser.add_argument(
        "--validate",
        nargs="+",
        action="extend",
        default=[],
        metavar="URL",
        help=f"tar shards to measure on, their first {VALIDATION_PICTURES} pictures' middles "
        "(default: as many pictures of --data, an eighth at most, which are then not trained on)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    speed = parser.add_argument_group("how long and how fast")
    add_flags(speed, TrainingConfig, "default: the recipe's; {} in most")
    if hasattr(recipes, "ObjectiveConfig"):
        loss = parser.add_argument_group(f"the loss of {family}")
        default = "default: the recipe's or, with --init, the model's; {} in most"
        add_flags(loss, recipes.ObjectiveConfig, default)
    return parser.parse_args(arguments)


def _family(arguments: Sequence[str] | None) -> str:
    """The codec that --codec or --init names: the other options depend on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--codec")
    parser.add_argument("--init")
    given, _ = parser.parse_known_args(arguments)
    if given.init is not None:
        family = TrainingFile.find(Path(given.init)).codec
        if given.codec not in (None, family):
            raise StrataError(f"--codec {given.codec}: {given.init} is a {family} model")
        given.codec = family
    return given.codec if given.codec in zoo.families() else "uqdm"


def _recipes(family: str) -> Any:
    """The module that ``codec.trainable`` describes; that of one codec needs no other's."""
    return importlib.import_module(f"codec.{family}.recipes")


def open_shards(urls: Sequence[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of every shard. Plain local files need no more than Python."""
    if all(Path(url).is_file() for url in urls):
        for url in urls:
            with open(url, "rb") as file:
                yield url, file
        return
    import fsspec

    from pipeline.shards import expand_inputs

    for shard in expand_inputs(urls):
        with fsspec.open(shard.url, "rb") as file:
            yield shard.url, file


def log(line: str) -> None:
    print(line, flush=True)


def run(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise StrataError("--device cuda: torch finds no GPU here")
    recipes = _recipes(options.codec)
    recipe = recipes.RECIPES[options.config]
    config = dataclasses.replace(recipe.training, **given_flags(options, TrainingConfig))
    loss: tuple[dict[str, Any], ...] = ()
    if hasattr(recipes, "ObjectiveConfig"):
        loss = (given_flags(options, recipes.ObjectiveConfig),)
    pictures = read_shards(open_shards(options.data), config.crop, log)
    if options.validate:
        validation = read_shards(open_shards(options.validate), 1, log).take(VALIDATION_PICTURES)
    else:
        validation = pictures.take(min(VALIDATION_PICTURES, len(pictures) // 8))
    if not len(pictures):
        raise StrataError("--data holds no picture of at least 16x16")
    started_from = options.init
    if (options.out / TRAINING_FILE).is_file():  # an interrupted run goes on as it began
        begun = TrainingFile.find(options.out).codec
        if begun != options.codec:
            raise StrataError(f"--out {options.out} holds a {begun} model: choose another folder")
        trainable = recipes.restore(options.out, *loss)
    elif options.init:
        trainable = recipes.restore(Path(options.init), *loss)
    else:
        trainable = recipes.build(recipe, pictures, config.seed, *loss)
    crops = centre_crops(validation)
    card = {"recipe": options.config, "started_from": started_from, "measured_on": len(crops)}
    counted = pictures.mixture(COUNTED_CROPS, np.random.default_rng(config.seed))
    save = saver(trainable, options.out, crops, options.device, card, counted)
    train(
        trainable.model,
        trainable.objective,
        pictures,
        config,
        options.out,
        save,
        device=options.device,
        log=log,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(parse(arguments))
    except (StrataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
