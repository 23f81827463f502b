"""Arguments that several command lines share: their types, their options, and how they are used."""

import argparse
import difflib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from codec.errors import printable
from codec.models.heads import DECODERS, head_file
from codec.models.zoo import DEFAULT_MODELS, model_file

from ..stores.gzip_limits import GzipLimits
from . import cluster
from .tasks import Policy

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def _number(kind: type, words: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A ``type`` for argparse: a number of this kind, of which ``holds`` is true."""

    def check(text: str) -> Any:
        number = kind(text)
        if not holds(number):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return number

    check.__name__ = kind.__name__  # argparse shows it if the text is no number at all
    return check


positive = _number(int, "at least 1", lambda number: number >= 1)
not_negative = _number(int, "at least 0", lambda number: number >= 0)
# Parquet allows less than 2 GiB for the fields of a row.
sample_bytes = _number(int, "1 to 2000000000", lambda number: 1 <= number <= 2_000_000_000)
port = _number(int, "from 1 to 65535", lambda number: 1 <= number < 1 << 16)
fraction = _number(float, "0 to 1", lambda number: 0 <= number <= 1)
above_zero = _number(float, "above 0", lambda number: 0 < number < math.inf)
zero_or_more = _number(float, "0 or more", lambda number: 0 <= number < math.inf)
decibels = _number(float, "a PSNR in dB, above 0 and below 200", lambda number: 0 < number < 200)


def log_path(text: str) -> str:
    """Refuse an event log that would be lost with the temporary folder of a submitted job."""
    if cluster.would_be_lost(text):
        raise argparse.ArgumentTypeError(f"{text}: {cluster.LOST}")
    return text


def storage_options(text: str) -> dict[str, Any]:
    """fsspec's storage options from JSON, or from ``@FILE`` with JSON in it.

    Messages never repeat the text, because it may hold secrets.
    """
    source = ""
    if text.startswith("@"):
        source = f"{text[1:]}: "
        try:
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise argparse.ArgumentTypeError(f"{source}cannot be read: {reason}") from None
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"{source}not JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            """write it as in '{"anon": true}'"""
        ) from None
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f"{source}cannot be read as JSON") from None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(
            f"""{source}must be a JSON object, such as '{{"anon": true}}', not {_kind(options)}"""
        )
    return options


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


class _Parser(argparse.ArgumentParser):
    """Refuses empty arguments: a variable that is not set must not mean the current folder."""

    _asked: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        # argparse says first what is missing, which may be there in another spelling.
        incomplete = message.startswith(("the following arguments are required", "unrecognized"))
        super().error(printable((incomplete and self._unknown()) or message))

    def _unknown(self) -> str:
        """A message about the options that do not exist; "" if all do."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        told = []
        for argument in self._asked:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            abbreviates = self.allow_abbrev and any(one.startswith(name) for one in known)
            if name.startswith("--") and name not in known and not abbreviates:
                near = difflib.get_close_matches(name, known, 1)
                told.append(
                    f"there is no option {name}{f': did you mean {near[0]}?' if near else ''}"
                )
        return "; ".join(told)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._asked = sys.argv[1:] if args is None else args
        option = ""
        for argument in self._asked:
            name, equals, value = argument.partition("=")
            option = name if name.startswith("--") else option
            if not (value if equals and name == option else argument).strip():
                self.error(f"{option}: its value is empty: is a variable not set?")
        return super().parse_known_args(args, namespace)


def new_parser(
    text: str | None,
    *,
    usage: str | None = None,
    allow_abbrev: bool = True,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """A job's parser; ``text`` is the docstring of its script."""
    return _Parser(
        usage=usage,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
        add_help=add_help,
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", dest="dataset", required=True, metavar="ARCHIVE", help="the archive's URL"
    )


def add_archive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="ARCHIVE", help="the archive's path or URL")


def add_input_format(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--input-format",
        choices=["tars", "files", "parquet"],
        help="what to take from a folder with several of these: tars, pictures as files, or "
        "Parquet files (default: the only kind there is)",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """The pictures for training or evaluation."""
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        metavar="URL",
        help="tars, folders of pictures, Parquet files with pictures",
    )
    add_input_format(parser)


def add_keys(group: argparse._ActionsContainer) -> None:
    """Two options that exclude each other; ``group`` is a mutually exclusive group."""
    group.add_argument(
        "--keys", nargs="+", default=[], metavar="KEY", help="the samples with these keys"
    )
    group.add_argument(
        "--keys-file",
        metavar="FILE",
        help="the samples with the keys in this file (a path, any fsspec URL, or - for standard "
        "input), one per line",
    )


def add_address(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--address",
        help="the Ray cluster to use (default: RAY_ADDRESS, the job's own cluster under ray job "
        "submit, or else a private one on this machine)",
    )


def add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto (default) uses the cluster's GPUs if it has any",
    )


def add_single_device(parser: argparse.ArgumentParser) -> None:
    """For commands without a cluster."""
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)"
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """For commands that write one file."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the output if it exists (but never the input)",
    )


def add_decoder(group: argparse._ActionsContainer) -> None:
    """The decoder that shows streams. Each model has some of these."""
    shipped = model_file(DEFAULT_MODELS["uqdm"])
    heads = [name for name in DECODERS if head_file(shipped, name).is_file()]
    uqdm = ", ".join(["mean", *heads])
    group.add_argument(
        "--decoder",
        choices=["mean", "eyes", "realistic", "flow", "fast", "diffusion"],
        help=f"how streams are shown. The shipped uqdm has {uqdm}; cdc-small has fast, diffusion. "
        "mean shows the expectation, eyes looks best, realistic adds "
        "likely detail at low rates, flow does so for the paper's models; fast takes one step, "
        "diffusion takes many (default: eyes from two layers on, if the model has it, or else "
        "mean; of cdc fast)",
    )


def add_scratch(group: argparse._ActionsContainer, size: str = "") -> None:
    """``size`` says how much room is needed there."""
    group.add_argument(
        "--scratch",
        metavar="DIR",
        help=f"local folder for temporary files{size} (default: the system's)",
    )


def add_log(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--log",
        type=log_path,
        metavar="FILE",
        help="append events to this local file, one JSON object per line "
        "(pipeline/running/progress/events.py lists them)",
    )


def add_storage_options(group: argparse._ActionsContainer, name: str, whose: str) -> None:
    group.add_argument(
        name,
        type=storage_options,
        default={},
        metavar="JSON",
        help=f"{whose} fsspec storage options, such as '{{\"anon\": true}}', or @FILE with them, "
        "which keeps secrets out of the shell's history",
    )


def add_max_bad_fraction(parser: argparse._ActionsContainer, files: str) -> None:
    parser.add_argument(
        "--max-bad-fraction",
        type=fraction,
        default=0.5,
        metavar="F",
        help="stop when more than this fraction of the samples (of at least 200) or of the "
        f"{files} (of at least 10) has failed; 1 never stops (default: %(default)s)",
    )


def add_running_options(
    parser: argparse.ArgumentParser, task: str = "a shard", shards: bool = True, output: bool = True
) -> argparse._ArgumentGroup:
    """Options that change how a job runs, but not what it writes; returns their group.

    ``task`` is what a worker does at a time, in words. ``shards`` and ``output`` say whether the
    job reads shards, and whether it has an output beside its input.
    """
    group = parser.add_argument_group("running (none of these changes the result)")
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="worker processes (default: one per GPU, or one per CPU as far as memory reaches)",
    )
    group.add_argument(
        "--cpus-per-worker",
        dest="worker_cpus",
        type=positive,
        metavar="N",
        help="threads of each worker (default: its share of the machine); with --workers, a "
        "cluster that grows on demand is asked for machines that it does not have yet",
    )
    add_device(group)
    group.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="pictures that the codec takes at once (default: %(default)s)",
    )
    add_address(group)
    group.add_argument(
        "--attempts",
        type=positive,
        default=Policy().attempts,
        metavar="N",
        help=f"how often {task} is tried if its worker dies or times out (default: %(default)s)",
    )
    group.add_argument(
        "--shard-timeout",
        type=above_zero,
        default=Policy().timeout,
        metavar="SECONDS",
        help=f"a worker that finishes no sample for this long is stopped, and {task} that it had "
        "is tried again (default: %(default)g)",
    )
    group.add_argument(
        "--drain-seconds",
        type=zero_or_more,
        default=Policy().drain,
        metavar="S",
        help="time to finish or save what is running after SIGTERM or Ctrl-C "
        "(default: %(default)g; Kubernetes kills 30 s after SIGTERM)",
    )
    add_scratch(group)
    if shards:
        _add_gzip_limits(group)
    add_log(group)
    add_storage_options(group, "--input-options", "the input's")
    if output:
        add_storage_options(group, "--output-options", "the output's")
    return group


def _add_gzip_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-gzip-ratio",
        type=above_zero,
        default=GzipLimits.ratio,
        metavar="R",
        help="a gzip shard fails if it unpacks to more than R times its size "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--max-unpacked-gib",
        type=above_zero,
        default=GzipLimits.gib,
        metavar="G",
        help="... or to more than G GiB, for which --scratch must have room (default: %(default)g)",
    )


def running_options(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``RunningOptions`` that ``options_of`` cannot take from the arguments."""
    unpacked = "max_gzip_ratio" in given
    gzip = GzipLimits(given.max_gzip_ratio, given.max_unpacked_gib) if unpacked else GzipLimits()
    return {
        "gzip": gzip,
        "policy": Policy(given.attempts, given.shard_timeout, given.drain_seconds),
        # Absolute, because workers may run in other folders.
        "scratch": given.scratch and os.path.abspath(given.scratch),
    }


def options_of(kind: type[Options], given: argparse.Namespace, /, **changes: Any) -> Options:
    """A dataclass of options: the arguments with the names of its fields, then ``changes``."""
    values = {
        item.name: tuple(value) if isinstance(value, list) else value
        for item in fields(kind)
        if (value := getattr(given, item.name, None)) is not None
    }
    return kind(**values | changes)


def given_options(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options of a codec that were given. The model chooses the others."""
    values = {name: getattr(given, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def output_url(parser: argparse.ArgumentParser, url: str) -> str:
    """Refuse an output that would be lost: a relative path inside a submitted job."""
    if cluster.would_be_lost(url):
        parser.error(f"--output {url}: {cluster.LOST}")
    return url
