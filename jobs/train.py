#!/usr/bin/env python
"""Train a model on pictures, in this process or on the workers of a Ray cluster.

Examples:
    strata train --data 'photos-{000..007}.tar' --config small --out runs/mine --hours 2
    strata train --data shards/ --init uqdm --out runs/better --device cuda
    strata train --data s3://bucket/shards --out s3://bucket/run --workers 8 --device cuda
    strata train --codec cdc --help      (each codec has its own recipes and flags)

Running the same command again goes on from the last checkpoint in --out. Then use the model:
    strata compress --model runs/mine ...

Without --workers it needs no Ray. With local tars and a local --out it needs only torch, numpy,
Pillow and safetensors. docs/training.md explains more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.errors import StrataError
from codec.models import zoo
from codec.training.flags import add_flags, given_flags
from codec.training.tracking import PACKAGES
from pipeline.running.arguments import (
    add_address,
    add_data,
    add_scratch,
    add_storage_options,
    new_parser,
    options_of,
    positive,
)
from pipeline.running.command_line import STARTING, exit_code

if TYPE_CHECKING:
    from pipeline import TrainOptions

# Modules that need torch are imported where they are used: that takes seconds, and people should
# see a message before.


def parse(arguments: Sequence[str] | None = None) -> "TrainOptions":
    """The options. Raises StrataError if --init cannot be read."""
    from codec.training.loop import TrainingConfig
    from codec.training.run import VALIDATION_PICTURES, recipes_of
    from pipeline import TrainOptions

    family, init_path = _family(arguments)
    recipes = recipes_of(family)
    names = "; ".join(f"{name}: {recipe.about}" for name, recipe in recipes.RECIPES.items())
    parser = new_parser(__doc__, allow_abbrev=False)
    parser.add_argument(
        "--codec",
        choices=zoo.families(),
        default=family,
        help="the codec family (default: that of --init, or else uqdm); --help shows the options "
        "of this family",
    )
    add_data(parser)
    parser.add_argument(
        "--config",
        dest="recipe",
        default=recipes.DEFAULT_RECIPE,
        choices=recipes.RECIPES,
        help=names,
    )
    parser.add_argument(
        "--out", required=True, metavar="URL", help="the run's folder, such as s3://bucket/run"
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="start from the weights of a shipped model or of another run, a path or a URL "
        "(--config then only says how long and how fast)",
    )
    parser.add_argument(
        "--validate",
        dest="validation",
        nargs="+",
        action="extend",
        default=[],
        metavar="URL",
        help=f"shards for validation, on the middles of their first {VALIDATION_PICTURES} pictures "
        "(default: as many pictures of --data, at most an eighth, which are not trained on)",
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, ... (default: cpu); with --workers auto, cpu or cuda (default: "
        "auto, which takes the cluster's GPUs if it has any, one for each worker)",
    )
    parser.add_argument(
        "--threads",
        "--cpus-per-worker",
        type=positive,
        metavar="N",
        help="CPU threads (default: torch's; a worker's share of its machine)",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        choices=sorted(PACKAGES),
        help="also send figures there (they are always in log.jsonl in --out)",
    )
    _add_cluster_options(parser)
    speed = parser.add_argument_group("how long and how fast")
    add_flags(speed, TrainingConfig, "default: the recipe's; {} in most")
    objective = getattr(recipes, "ObjectiveConfig", None)
    if objective:
        loss = parser.add_argument_group(f"the loss of {family}")
        default = "default: the recipe's or, with --init, the model's; {} in most"
        add_flags(loss, objective, default)
    given = parser.parse_args(arguments)
    if given.workers and given.device not in (None, "auto", "cpu", "cuda"):
        parser.error(f"--device {given.device}: with --workers it must be auto, cpu or cuda")
    if given.address and not given.workers:
        parser.error("--address: also give the number of workers (--workers)")
    return options_of(
        TrainOptions,
        given,
        init_path=init_path,
        training=given_flags(given, TrainingConfig),
        loss=given_flags(given, objective) if objective else {},
        trackers=tuple(dict.fromkeys(given.log)),
    )


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several workers, and stores")
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="train on N workers of a Ray cluster, each on its share of the shards (default: in "
        "this process, without Ray)",
    )
    add_address(group)
    group.add_argument(
        "--restarts",
        type=int,
        default=3,
        metavar="N",
        help="how often the workers may be restarted from the last checkpoint when one is lost; "
        "-1: without limit (default: %(default)s)",
    )
    add_scratch(group)
    add_storage_options(group, "--input-options", "the shards'")
    add_storage_options(group, "--output-options", "the run's")


def _family(arguments: Sequence[str] | None) -> tuple[str, Path | None]:
    """The codec of --codec or --init, on which the other options depend; and the path of --init."""
    from codec.training.recipe import TrainingFile
    from pipeline.training.job import local_model

    parser = new_parser(None, allow_abbrev=False, add_help=False)
    parser.add_argument("--codec")
    parser.add_argument("--init")
    add_storage_options(parser, "--output-options", "")
    given, _ = parser.parse_known_args(arguments)
    path = None
    if given.init is not None:
        path = local_model(given.init, given.output_options)
        family = TrainingFile.find(path).codec
        if given.codec not in (None, family):
            raise StrataError(f"--codec {given.codec}: {given.init} is a {family} model")
        given.codec = family
    return given.codec if given.codec in zoo.families() else "uqdm", path


def main(arguments: Sequence[str] | None = None) -> int:
    def train() -> None:
        from pipeline import train_model

        train_model(parse(arguments))

    asked = sys.argv[1:] if arguments is None else arguments
    return exit_code(
        train,
        "interrupted: run the same command to go on from the last checkpoint",
        (StrataError, OSError, ValueError),
        starting="" if {"-h", "--help"} & {*asked} else STARTING,
    )


if __name__ == "__main__":
    sys.exit(main())
