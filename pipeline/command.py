"""What the jobs' command lines share: running options, signals, messages and exit codes."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from codec.errors import StrataError

from . import cluster
from .progress import Summary


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return number


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Options that change how a job runs, but not what it writes."""
    group = parser.add_argument_group("running (none of these changes the result)")
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="worker processes (default: one per GPU, or one per four CPUs)",
    )
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto (default) takes the cluster's GPUs if it has any",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="pictures given to the codec at once (default: %(default)s)",
    )
    group.add_argument(
        "--address",
        help="the Ray cluster to use (default: RAY_ADDRESS, the job's own cluster under ray job "
        "submit, or else a private one on this machine)",
    )
    group.add_argument(
        "--attempts",
        type=positive,
        default=3,
        metavar="N",
        help="times a shard is tried when its worker dies or is late (default: %(default)s)",
    )
    group.add_argument(
        "--shard-timeout",
        type=seconds,
        default=3600.0,
        metavar="SECONDS",
        help="a shard that takes longer is stopped and tried again (default: %(default)s)",
    )
    group.add_argument(
        "--scratch", metavar="DIR", help="local folder for temporary files (default: the system's)"
    )


def given_options(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of a codec's options that were given: the others are for the model to choose."""
    values = {name: getattr(given, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def output_url(parser: argparse.ArgumentParser, url: str) -> str:
    """Refuse an output that would vanish: a relative path inside a submitted job."""
    if cluster.inside_ray_job() and "://" not in url and not os.path.isabs(url):
        parser.error(
            f"--output {url}: a submitted job runs in a temporary copy of the folder, so a "
            "relative path would be lost; give an absolute path or a URL"
        )
    return url


def run_job(job: Callable[[], Summary]) -> int:
    """Run ``job``, print what came of it, and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        summary = job()
    except StrataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: what is committed stays, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cluster.disconnect()
    summary.print()
    return summary.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
