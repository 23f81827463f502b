#!/usr/bin/env python
"""Serve previews of an archive over HTTP: a page, and pictures at any quality.

Examples:
    strata serve --input archive
    strata serve --input s3://bucket/archive --host 0.0.0.0 --replicas 4
    curl 'http://127.0.0.1:8000/v1/images/some%2Fkey?layers=1&max_side=256' > preview.webp

Runs on Ray Serve until SIGTERM or Ctrl-C: on a Ray of its own, or on a cluster (--address, or under
ray job submit). Every client that can reach the port sees all pictures, unless there is a
--token-file.
Exit code 0: a signal ended it; 1: it ended by itself; 2: it could not start, and the message says
why; 130: a second signal ended it without waiting for running requests.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import ServeOptions, serve_previews
from pipeline.running.arguments import (
    above_zero,
    add_address,
    add_dataset,
    add_decoder,
    add_device,
    add_storage_options,
    new_parser,
    options_of,
    port,
    positive,
)
from pipeline.running.command_line import exit_code
from pipeline.serving.access import Access
from pipeline.serving.limits import SLOWER, Limits
from pipeline.serving.options import MOST_CPU_REPLICAS


def token(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: cannot be read: {error}") from None
    if len(text) < 16 or "\n" in text:
        raise argparse.ArgumentTypeError(f"{path}: must hold one line of 16 characters or more")
    return text


def parse(arguments: list[str] | None = None) -> ServeOptions:
    parser = new_parser(__doc__)
    limits = Limits()
    add_dataset(parser)
    add_storage_options(parser, "--input-options", "the archive's")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, only for clients on this machine; "
        "0.0.0.0: for all clients)",
    )
    parser.add_argument(
        "--host-names",
        nargs="+",
        default=[],
        metavar="NAME",
        help="host names in the URLs of clients, in addition to localhost, IP addresses and "
        "--host; requests for other names are refused, because a page of another site may have "
        "sent them (* allows all names: only behind a proxy that checks them)",
    )
    parser.add_argument(
        "--token-file",
        type=token,
        metavar="FILE",
        help="every client must send the token in this file, as Authorization: Bearer, or in a "
        "browser as the password of any user; use it behind TLS",
    )
    parser.add_argument("--port", type=port, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--replicas",
        type=positive,
        metavar="N",
        help="server processes, each with the model (default: one per GPU, or one per CPU, at most "
        f"{MOST_CPU_REPLICAS})",
    )
    parser.add_argument(
        "--cpus-per-replica",
        type=positive,
        metavar="N",
        help="threads of each replica (default: its share of the machine)",
    )
    add_device(parser)
    add_decoder(parser)
    group = parser.add_argument_group("limits of each replica")
    group.add_argument(
        "--max-running",
        dest="running",
        type=positive,
        default=limits.running,
        metavar="N",
        help="quick pictures that are processed at once, and as many slow ones (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--max-queued",
        dest="waiting",
        type=positive,
        default=limits.waiting,
        metavar="N",
        help="requests that may wait; more get 503, try again later (default: %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        dest="batch",
        type=positive,
        default=limits.batch,
        metavar="N",
        help="pictures decoded together (default: %(default)s)",
    )
    group.add_argument(
        "--request-timeout",
        dest="timeout",
        type=above_zero,
        default=limits.timeout,
        metavar="SECONDS",
        help="a request that takes longer ends; a slow picture may take "
        f"{SLOWER} times as long (default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=positive,
        default=limits.max_pixels,
        metavar="N",
        help="larger pictures (width times height) are not decoded (default: %(default)s)",
    )
    group.add_argument(
        "--cache-mb",
        type=positive,
        default=limits.cache_bytes >> 20,
        metavar="MB",
        help="size of the cache of answers, in MiB (default: %(default)s)",
    )
    add_address(parser)
    given = parser.parse_args(arguments)
    return options_of(
        ServeOptions,
        given,
        limits=options_of(Limits, given, cache_bytes=given.cache_mb << 20),
        access=Access(tuple(given.host_names), given.token_file),
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return exit_code(lambda: serve_previews(options), "interrupted: the server ended at once")


if __name__ == "__main__":
    sys.exit(main())
