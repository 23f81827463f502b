#!/usr/bin/env python
"""Train a model on tar shards of pictures: in this process, or on the workers of a Ray cluster.

Examples:
    python jobs/train.py --data 'photos-{000..007}.tar' --config small --out runs/mine --hours 2
    python jobs/train.py --data shards/ --init uqdm --out runs/better --device cuda
    python jobs/train.py --data s3://bucket/shards --out s3://bucket/run --workers 8 --device cuda
    python jobs/train.py --codec cdc --help      (each codec has recipes and flags of its own)

The same command again goes on from the last checkpoint in --out. Afterwards the model is there:
    python jobs/compress_dataset.py --model runs/mine ...

Needs no Ray without --workers; with local files as --data and a local --out, nothing beside torch,
numpy, Pillow and safetensors. docs/training.md tells more.
"""

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.errors import StrataError
from codec.models import zoo  # before torch, whose threads it sets
from codec.training.data import Open
from codec.training.flags import add_flags, given_flags
from codec.training.loop import TrainingConfig
from codec.training.recipe import TRAINING_FILE, TrainingFile
from codec.training.run import VALIDATION_PICTURES, RunSettings, recipes_of, run
from codec.training.run_folder import RunFolder
from codec.training.tracking import PACKAGES

import torch  # isort: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options, the codec among them. Raises StrataError where --init cannot be read."""
    family, init_path = _family(arguments)
    recipes = recipes_of(family)
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
    parser.add_argument(
        "--out", required=True, metavar="URL", help="the run's folder, such as s3://bucket/run"
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="go on from the weights of a shipped model or of another run, a path or a URL (of "
        "--config remains how long and how fast)",
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
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, ... (default: cpu); with --workers auto, cpu or cuda (default: "
        "auto, which takes the cluster's GPUs if it has any, one for each worker)",
    )
    parser.add_argument(
        "--threads",
        "--cpus-per-worker",
        type=_positive,
        metavar="N",
        help="CPU threads (default: torch's; a worker's share of its machine)",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        choices=sorted(PACKAGES),
        help="send figures there, besides the log.jsonl in --out",
    )
    _add_cluster_options(parser)
    speed = parser.add_argument_group("how long and how fast")
    add_flags(speed, TrainingConfig, "default: the recipe's; {} in most")
    if hasattr(recipes, "ObjectiveConfig"):
        loss = parser.add_argument_group(f"the loss of {family}")
        default = "default: the recipe's or, with --init, the model's; {} in most"
        add_flags(loss, recipes.ObjectiveConfig, default)
    given = parser.parse_args(arguments)
    given.init_path = init_path
    if given.workers and given.device not in (None, "auto", "cpu", "cuda"):
        parser.error(f"--device {given.device}: with --workers it is auto, cpu or cuda")
    if given.address and not given.workers:
        parser.error("--address: say how many workers to start there (--workers)")
    return given


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several workers, and stores")
    group.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="train on N workers of a Ray cluster, each on its share of the shards (default: in "
        "this process, without Ray)",
    )
    group.add_argument(
        "--address",
        help="the Ray cluster to use (default: RAY_ADDRESS, the job's own cluster under ray job "
        "submit, or else a private one on this machine)",
    )
    group.add_argument(
        "--restarts",
        type=int,
        default=3,
        metavar="N",
        help="how often the workers are started again from the last checkpoint when one is lost; "
        "-1: as often as it takes (default: %(default)s)",
    )
    group.add_argument(
        "--scratch", metavar="DIR", help="local folder for temporary files (default: the system's)"
    )
    for name, whose in (("--input-options", "the shards'"), ("--output-options", "the run's")):
        group.add_argument(
            name,
            type=_storage_options,
            default={},
            metavar="JSON",
            help=f"{whose} fsspec storage options, or @FILE that holds them",
        )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _storage_options(text: str) -> dict[str, Any]:
    # A machine for training may lack what this imports.
    from pipeline.running.command_line import storage_options

    return storage_options(text)


def _family(arguments: Sequence[str] | None) -> tuple[str, Path | None]:
    """The codec that --codec or --init names: the other options depend on it.

    Also where the model of --init lies on this machine.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--codec")
    parser.add_argument("--init")
    parser.add_argument("--output-options", type=_storage_options, default={})
    given, _ = parser.parse_known_args(arguments)
    path = None
    if given.init is not None:
        path = Path(given.init)
        if "://" in given.init:
            path = _fetch_model(given.init, given.output_options)
        family = TrainingFile.find(path).codec
        if given.codec not in (None, family):
            raise StrataError(f"--codec {given.codec}: {given.init} is a {family} model")
        given.codec = family
    return given.codec if given.codec in zoo.families() else "uqdm", path


_fetched: list[tempfile.TemporaryDirectory[str]] = []  # models for as long as this process lives


def _fetch_model(url: str, options: Mapping[str, Any]) -> Path:
    from pipeline.stores.store import Store, storage_errors

    _fetched.append(tempfile.TemporaryDirectory(prefix="strata-model-"))
    folder = Path(_fetched[-1].name)
    with storage_errors(url, f"its {TRAINING_FILE} cannot be read"):
        Store(url, options).fetch(TRAINING_FILE, folder / TRAINING_FILE)
    return folder


def shards_of(urls: Sequence[str], options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of single shards. Plain local files need no more than Python."""
    if all(Path(url).is_file() for url in urls):
        return tuple(urls)
    from pipeline.training.data import list_shards

    return list_shards(urls, options)


def opener(shards: Sequence[str], options: Mapping[str, Any]) -> Open:
    if all(Path(shard).is_file() for shard in shards):
        return lambda path: open(path, "rb")
    from pipeline.training.data import open_shard

    return partial(open_shard, options=options)


@contextmanager
def folder_of(options: argparse.Namespace) -> Iterator[RunFolder]:
    if "://" not in options.out:
        yield RunFolder(Path(options.out))
        return
    from pipeline.training.folders import open_folder

    with open_folder(options.out, options.output_options) as folder:
        yield folder


def log(line: str) -> None:
    print(line, flush=True)


def settings_of(options: argparse.Namespace) -> RunSettings:
    recipes = recipes_of(options.codec)
    loss = {}
    if hasattr(recipes, "ObjectiveConfig"):
        loss = given_flags(options, recipes.ObjectiveConfig)
    return RunSettings(
        codec=options.codec,
        recipe=options.config,
        init=options.init,
        data=shards_of(options.data, options.input_options),
        validation=shards_of(options.validate, options.input_options),
        training=given_flags(options, TrainingConfig),
        loss=loss,
        trackers=tuple(dict.fromkeys(options.log)),
    )


def run_here(options: argparse.Namespace) -> None:
    """In this process, without Ray."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StrataError("--device cuda: torch finds no GPU here")
    settings = settings_of(options)
    open_shard = opener((*settings.data, *settings.validation), options.input_options)
    with folder_of(options) as folder:
        run(settings, open_shard, folder, device=device, log=log, init=options.init_path)


def run_together(options: argparse.Namespace) -> None:
    """On the workers of a Ray cluster."""
    from pipeline.running import cluster
    from pipeline.training.together import train_together

    if (
        cluster.inside_ray_job()
        and "://" not in options.out
        and not Path(options.out).is_absolute()
    ):
        raise StrataError(
            f"--out {options.out}: a submitted job runs in a temporary copy of the folder, so a "
            "relative path would be lost; give an absolute path or a URL"
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        train_together(
            settings_of(options),
            options.out,
            options.workers,
            init=options.init_path,
            worker_cpus=options.threads,
            device=options.device or "auto",
            address=options.address,
            restarts=options.restarts,
            input_options=options.input_options,
            output_options=options.output_options,
            scratch=options.scratch,
            log=log,
        )
    finally:
        cluster.disconnect()


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parse(arguments)
        run_together(options) if options.workers else run_here(options)
    except (StrataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
