#!/usr/bin/env python
"""Serve previews of a compressed dataset over HTTP: a page, and pictures at any quality.

Examples:
    python jobs/serve_previews.py --input archive
    python jobs/serve_previews.py --input s3://bucket/archive --host 0.0.0.0 --replicas 4
    curl 'http://127.0.0.1:8000/v1/images/some%2Fkey?layers=1&max_side=256' > preview.webp

Runs on Ray Serve until SIGTERM or Ctrl-C: on a Ray of its own, or on a cluster (--address, or under
ray job submit). Whoever reaches the port sees every picture: put access control in front of it.
Exit code 0: it was told to end; 1: it ended by itself; 2: it could not begin, the message says why.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.errors import StrataError
from pipeline.reader.dataset import open_dataset
from pipeline.running import cluster
from pipeline.running.command_line import positive, seconds, storage_options
from pipeline.serving.limits import SLOWER, Limits

NAME = "previews"  # of the application on Serve
# Two threads in one process decode a preview hardly faster than one, two processes nearly twice as
# many: but each takes a quarter of a gigabyte.
MOST_CPU_REPLICAS = 4
_LOOK_EVERY = 5.0  # seconds between looks at whether the server still lives
_LOOKS = 3  # in vain, until it counts as gone


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    limits = Limits()
    parser.add_argument("--input", required=True, metavar="DATASET", help="the dataset's URL")
    parser.add_argument(
        "--input-options",
        type=storage_options,
        default={},
        metavar="JSON",
        help="the dataset's fsspec storage options, such as '{\"anon\": true}', or @FILE that "
        "holds them, which keeps secrets out of the shell's history",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, reached from this machine alone; "
        "0.0.0.0: from everywhere)",
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
        help="threads of each (default: its share of the machine)",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto (default) takes the cluster's GPUs if it has any",
    )
    group = parser.add_argument_group("limits of each replica")
    group.add_argument(
        "--max-running",
        type=positive,
        default=limits.running,
        metavar="N",
        help="pictures in work at once, of those quick to decode and of the others each "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--max-queued",
        type=positive,
        default=limits.waiting,
        metavar="N",
        help="requests that may wait; more are told to come back later, with 503 (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=limits.batch,
        metavar="N",
        help="pictures decoded together (default: %(default)s)",
    )
    group.add_argument(
        "--request-timeout",
        type=seconds,
        default=limits.deadline,
        metavar="SECONDS",
        help="a request that takes longer is given up; a picture that is slow to decode may take "
        f"{SLOWER} times as long (default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=positive,
        default=limits.max_pixels,
        metavar="N",
        help="of a picture, more is not decoded: width times height (default: %(default)s)",
    )
    group.add_argument(
        "--cache-mb",
        type=positive,
        default=limits.cache_bytes >> 20,
        metavar="MB",
        help="answers that are kept, in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--address",
        help="the Ray cluster to use (default: RAY_ADDRESS, the job's own cluster under ray job "
        "submit, or else a private one on this machine)",
    )
    return parser.parse_args(arguments)


def port(text: str) -> int:
    number = int(text)
    if not 1 <= number < 1 << 16:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, not {text}")
    return number


def check_port(host: str, port: int) -> None:
    """Raises StrataError where nobody can listen: Ray says so half a minute later, at length."""
    try:
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise StrataError(
            f"--host {host} --port {port}: nobody can listen there: {reason}"
        ) from error


def limits_of(given: argparse.Namespace) -> Limits:
    return replace(
        Limits(),
        running=given.max_running,
        waiting=given.max_queued,
        batch=given.batch_size,
        deadline=given.request_timeout,
        max_pixels=given.max_pixels,
        cache_bytes=given.cache_mb << 20,
    )


def serve_until_told(given: argparse.Namespace, told: threading.Event) -> int:
    """Start, print the address, wait. The exit code."""
    url = given.input
    if "://" not in url:
        if cluster.inside_ray_job() and not os.path.isabs(url):
            raise StrataError(
                f"--input {url}: a submitted job runs in a temporary copy of the folder; give an "
                "absolute path or a URL"
            )
        url = os.path.abspath(url)  # replicas run in other folders
    dataset = open_dataset(url, given.input_options)  # what is wrong with it is said at once
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise StrataError(f"{package} is not installed: pip install 'strata-images[serve]'")
    if not (given.address or os.environ.get("RAY_ADDRESS") or cluster.inside_ray_job()):
        check_port(given.host, given.port)
    cluster.connect(given.address)  # before anything else imports Ray, see there
    from ray import serve
    from ray.exceptions import RayError

    from pipeline.serving.deployment import QUIET, deploy
    from pipeline.serving.service import Settings

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    shape = replicas_of(given)
    settings = Settings(url, given.input_options, shape.device, limits_of(given))
    if told.is_set():
        return 0
    _check_serve(serve, given)
    try:
        try:
            serve.start(http_options={"host": given.host, "port": given.port}, logging_config=QUIET)
            serve.run(deploy(settings, shape.workers, shape.cpus, shape.gpus), name=NAME)
        except (RuntimeError, RayError) as error:
            raise StrataError(f"the server did not start: {error}") from error
        shown = "127.0.0.1" if given.host in ("0.0.0.0", "::") else given.host
        shown = f"[{shown}]" if ":" in shown else shown
        print(
            f"{len(dataset)} pictures of {url} are at http://{shown}:{given.port}/ "
            f"({shape.workers} x {shape.threads} {shape.device}); Ctrl-C ends it",
            flush=True,
        )
        return _wait(serve, told)
    finally:
        _end(serve, limits_of(given).deadline)


def replicas_of(given: argparse.Namespace) -> cluster.WorkerShape:
    """How many server processes, and what each owns of the connected cluster."""
    shape = cluster.share(given.replicas, given.device, 1 << 20, given.cpus_per_replica)
    if given.replicas is None and shape.device == "cpu":
        replicas = min(shape.workers, MOST_CPU_REPLICAS)
        shape = cluster.share(replicas, given.device, 1 << 20, given.cpus_per_replica)
    return shape


def _check_serve(serve: Any, given: argparse.Namespace) -> None:
    """Raises StrataError where a Serve that runs already would do something else than we say.

    It goes on to listen where it does, and an application of the same name it replaces.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    host, port = client.http_config.host, client.http_config.port
    if (host, port) != (given.host, given.port):
        raise StrataError(
            f"Ray Serve runs on this cluster already, and listens at {host}:{port}: give --host "
            f"{host} --port {port}, or end it with `serve shutdown`"
        )
    if NAME in serve.status().applications:
        raise StrataError(
            "this cluster serves previews already: end that job first (if it was killed, what it "
            "left ends with `serve shutdown`)"
        )


def _wait(serve: Any, told: threading.Event) -> int:
    """Until it is told to end, or has ended by itself. The exit code."""
    missed = 0
    while not told.wait(_LOOK_EVERY):
        try:
            application = serve.status().applications.get(NAME)
            missed = 0
        except Exception as error:  # Ray has many; the controller may be starting anew
            missed += 1
            if missed < _LOOKS:
                continue
            print(f"error: Ray does not answer any more: {error}", file=sys.stderr)
            return 1
        state = "gone" if application is None else application.status
        if state in ("gone", "DEPLOY_FAILED", "NOT_STARTED"):
            print(f"error: the server is {state}; Ray's logs say why", file=sys.stderr)
            return 1
    return 0


def _end(serve: Any, deadline: float) -> None:
    """Let requests under way finish, but not for ever: Serve waits for a Ray that is gone, too."""

    def end() -> None:
        with contextlib.suppress(Exception):
            serve.delete(NAME)

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(deadline + 5)


def main() -> int:
    given = parse()
    told = threading.Event()

    def stop(*_: object) -> None:
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        return serve_until_told(given, told)
    except StrataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        cluster.disconnect()


if __name__ == "__main__":
    sys.exit(main())
