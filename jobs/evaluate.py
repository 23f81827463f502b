#!/usr/bin/env python
"""Compare models with other codecs on pictures: how good do they look at how many bits?

Examples:
    strata evaluate --data kodak.tar --model uqdm cdc-small --output report
    strata evaluate --data 's3://bucket/{00..03}.tar' --model runs/mine --peers none \\
        --output s3://bucket/report
    strata evaluate --data kodak.tar --first 6 --output report --model \\
        cdc-small,quality=0+1 cdc-small,quality=0+1,decoder=diffusion,noise_scale=0.8,prefixes=no

A model is a shipped model's name, a model's file or folder, or the URL of an archive. Options may
follow after commas: quality=all (default) or quality=0+2, decode options of its codec (decoder; for
cdc also steps, noise_scale, seed), prefixes=no (only whole streams, not after every layer),
label=NAME.

The output folder gets report.html, report.json, results.md, a plot for each metric, and the records
from which they are made. Running the same command again does only what is missing; a command with
another model uses the same records. It needs the extra eyes (pip install -e '.[eyes]' -c
infra/constraints.txt). docs/evaluation.md explains the figures. Exit code 0: every picture was
measured with all contenders; 1: some were not, and the summary names them; 2: nothing was done, and
the message says why; 130: a signal stopped the job.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import EvaluateOptions, evaluate_models
from pipeline.running.arguments import (
    above_zero,
    add_data,
    add_running_options,
    new_parser,
    not_negative,
    options_of,
    output_url,
    positive,
    running_options,
)
from pipeline.running.command_line import run_job, stop_reason

SECRET = ("--input-options", "--output-options")


def command(arguments: Sequence[str]) -> str:
    """The command line for the report, without storage options, which may hold secrets."""
    shown, hide = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        secret = name in SECRET
        shown.append("..." if hide else f"{name}=..." if secret and equals else argument)
        hide = secret and not equals
    return shlex.join(["strata", "evaluate", *shown])


def parse(arguments: Sequence[str] | None = None) -> EvaluateOptions:
    parser = new_parser(__doc__, allow_abbrev=False)
    add_data(parser)
    parser.add_argument("--output", required=True, metavar="URL", help="the folder to write to")
    parser.add_argument(
        "--model",
        dest="models",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL[,OPTION=VALUE]...",
        help="models to measure",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        metavar="NAME",
        help="codecs to compare with: avif, avif_ssimulacra2 (tuned to that metric), jxl, webp, "
        "jpeg2000, jpeg; lossless ones: jxl_lossless, webp_lossless, jpeg2000_lossless, png; or "
        "none (default: all that are installed)",
    )
    parser.add_argument("--first", type=positive, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--layers", type=positive, metavar="K", help="only the first K layers of each model"
    )
    parser.add_argument(
        "--show",
        type=not_negative,
        default=2,
        metavar="N",
        help="pictures to show side by side in the report (default: %(default)s)",
    )
    parser.add_argument(
        "--show-bpp",
        nargs="+",
        type=above_zero,
        default=[0.1, 0.3, 1.0],
        metavar="X",
        help="bits per pixel at which to show them; the nearest layers of the first model are "
        "used (default: 0.1 0.3 1.0)",
    )
    add_running_options(parser, "a task")
    given = parser.parse_args(arguments)
    peers = None if given.peers is None else tuple(given.peers)
    if peers is not None and "none" in peers:
        if len(peers) > 1:
            parser.error("--peers: none must be the only name")
        peers = ()
    if not given.models and peers == ():
        parser.error("there is nothing to measure: give --model, or other --peers than none")
    return options_of(
        EvaluateOptions,
        given,
        output=output_url(parser, given.output),
        peers=peers,
        command=command(sys.argv[1:] if arguments is None else arguments),
        **running_options(given),
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run_job(lambda: evaluate_models(options, stop_reason))


if __name__ == "__main__":
    sys.exit(main())
