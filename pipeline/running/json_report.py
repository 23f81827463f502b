"""``--json``: writes the result of a job as JSON, to a file or to standard output."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .arguments import log_path
from .command_line import run_job
from .progress.summary import Summary
from .streams import streams_that_may_close

STDOUT = "-"
S = TypeVar("S", bound=Summary)


class Result(Protocol):
    """The result of a job."""

    def lines(self) -> list[str]:
        """For people."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""


def json_path(text: str) -> str:
    """Refuse a path that cannot be written, before the job starts."""
    if text == STDOUT:
        return text
    path = log_path(text)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path}: cannot be written")
    return path


def add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--json",
        type=json_path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write the result as JSON to FILE, or to standard output (see As JSON in "
        "docs/pipeline.md)",
    )


def print_result(result: Result, target: str | None) -> None:
    """Print a result for people, and write it as JSON if there is a ``target``."""
    if target != STDOUT:
        for line in result.lines():
            # A key may hold characters that the terminal cannot show.
            print(line.encode("utf-8", "backslashreplace").decode())
        sys.stdout.flush()
    if target is not None:
        write_json(result.to_json(), target)


def run_job_as_json(job: Callable[[], S], target: str | None) -> int:
    """``run_job``, then write the result as JSON if there is a ``target``."""
    done: list[S] = []

    def run() -> S:
        done.append(job())
        return done[0]

    # If the result goes to standard output, nothing else may go there.
    elsewhere = (
        contextlib.redirect_stdout(sys.stderr) if target == STDOUT else contextlib.nullcontext()
    )
    with elsewhere:
        code = run_job(run)
    if done and target is not None:
        write_json(done[0].to_json() | {"exit_code": code}, target)
    return code


def write_json(values: Mapping[str, Any], target: str) -> None:
    """Write to the file ``target``, or to standard output for ``-``. Prints errors."""
    text = json.dumps(values, indent=1) + "\n"
    with streams_that_may_close():
        try:
            if target == STDOUT:
                sys.stdout.write(text)
            else:
                Path(target).write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"error: the report cannot be written: {error}", file=sys.stderr)
