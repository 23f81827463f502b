"""The serving job: start the application on Ray Serve, wait, and end it."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from codec.errors import StrataError

from ..reader.dataset import open_dataset
from ..running import cluster
from ..running.options import check_codec_options
from .front import Front
from .options import APPLICATION, MOST_CPU_REPLICAS, ServeOptions

_CHECK_SECONDS = 5.0  # between checks whether the server is alive
_MOST_MISSED = 3  # checks without an answer, until Ray counts as gone


def serve_previews(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 1 if the server ended by itself.

    Raises StrataError if it cannot start. Must run in the main thread, because it handles signals.
    """
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: on_signal(ending, options.limits.timeout))
    try:
        code = _serve(_absolute(options), ending)
    finally:
        cluster.disconnect()
    if ending.is_set():
        print("the server has ended", file=sys.stderr, flush=True)
    return code


def on_signal(ending: threading.Event, timeout: float) -> None:
    """The first signal sets ``ending``, the second raises KeyboardInterrupt."""
    if ending.is_set():
        raise KeyboardInterrupt
    ending.set()
    # Not print: a signal may come while something is being printed.
    os.write(2, b"ending: running requests have %d s; Ctrl-C again ends at once\n" % timeout)


def _absolute(options: ServeOptions) -> ServeOptions:
    """The options with an absolute path, because replicas run in other folders."""
    url = options.dataset
    if cluster.would_be_lost(url):
        raise StrataError(f"--input {url}: {cluster.LOST}")
    return options if "://" in url else replace(options, dataset=os.path.abspath(url))


def _serve(options: ServeOptions, ending: threading.Event) -> int:
    """Start, print the address, wait. Returns the exit code."""
    dataset = open_dataset(options.dataset, options.input_options)  # raises before Ray starts
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise StrataError(f"{package} is not installed: pip install 'strata-images[serve]'")
    if options.decoder is not None:  # loads the model here, so only where it must be asked
        own = {"decoder": options.decoder}
        check_codec_options(dataset.codec(), "decode", own, options.dataset)
    host, port = options.host, options.port
    alone = not (options.address or os.environ.get("RAY_ADDRESS") or cluster.inside_ray_job())
    if alone:
        check_port(host, port)
    print(
        f"{len(dataset)} pictures of {options.dataset}: starting Ray and the server, which takes "
        "half a minute",
        file=sys.stderr,
        flush=True,
    )
    cluster.connect(options.address)  # it must run before anything imports Ray
    from ray import serve
    from ray.exceptions import RayError

    from .deployment import QUIET, deploy
    from .service import Settings

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    shape = replicas_of(options)
    access = replace(options.access, hosts=(*options.access.hosts, options.host))
    settings = Settings(
        options.dataset,
        options.input_options,
        shape.device,
        options.decoder,
        options.limits,
        access,
    )
    if ending.is_set():
        return 0
    check_serve(serve, options)
    if options.access.token is None and not _is_loopback(host):
        print(
            f"warning: --host {host}: everybody who can reach this port sees all pictures; "
            "--token-file protects them",
            file=sys.stderr,
            flush=True,
        )
    front: Front | None = None
    behind = _free_port() if alone else port
    listening = {"host": "127.0.0.1" if alone else host, "port": behind}
    try:
        try:
            serve.start(http_options=listening, logging_config=QUIET)
            serve.run(deploy(settings, shape.workers, shape.cpus, shape.gpus), name=APPLICATION)
        except (RuntimeError, RayError) as error:
            raise StrataError(f"the server did not start: {error}") from error
        if alone:  # on a cluster, clients talk to Ray Serve directly
            front = Front(host, port, behind)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        print(
            f"{len(dataset)} pictures of {options.dataset} are at http://{shown}:{port}/ "
            f"({shape.workers} x {shape.threads} {shape.device}); Ctrl-C ends it",
            flush=True,
        )
        return wait(serve, ending)
    finally:
        _end(serve, options.limits.timeout)
        if front is not None:
            front.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> None:
    """Raises StrataError if the port is taken. Ray would say so half a minute later, at length."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise StrataError(f"--host {host} --port {port}: cannot listen there: {reason}") from error


def replicas_of(options: ServeOptions) -> cluster.WorkerShape:
    """How many replicas, and what each gets of the connected cluster."""
    device, cpus = options.device, options.cpus_per_replica
    shape = cluster.share(options.replicas, device, 1 << 20, cpus)
    if options.replicas is None and shape.device == "cpu":
        shape = cluster.share(min(shape.workers, MOST_CPU_REPLICAS), device, 1 << 20, cpus)
    return shape


def check_serve(serve: Any, options: ServeOptions) -> None:
    """Raises StrataError if Serve runs on this cluster already and would not do what was asked.

    It would keep its own host and port, and it would replace an application of the same name.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    host, port = client.http_config.host, client.http_config.port
    if (host, port) != (options.host, options.port):
        raise StrataError(
            f"Ray Serve runs on this cluster already and listens at {host}:{port}: use --host "
            f"{host} --port {port}, or end it with `serve shutdown`"
        )
    if APPLICATION in serve.status().applications:
        raise StrataError(
            "this cluster serves previews already: end that job first, or, if it was killed, run "
            "`serve shutdown`"
        )


def wait(serve: Any, ending: threading.Event) -> int:
    """Wait until ``ending`` is set or the server has ended by itself. Returns the exit code."""
    missed = 0
    while not ending.wait(_CHECK_SECONDS):
        try:
            application = serve.status().applications.get(APPLICATION)
            missed = 0
        except Exception as error:  # Ray has many; the controller may be restarting
            missed += 1
            if missed < _MOST_MISSED:
                continue
            print(f"error: Ray does not answer any more: {error}", file=sys.stderr)
            return 1
        state = "gone" if application is None else application.status
        if state in ("gone", "DEPLOY_FAILED", "NOT_STARTED"):
            print(f"error: the server is {state}; Ray's logs say why", file=sys.stderr)
            return 1
    return 0


def _end(serve: Any, timeout: float) -> None:
    """Let running requests finish, but not forever: Serve would also wait for a lost Ray."""

    def end() -> None:
        with contextlib.suppress(Exception):
            serve.delete(APPLICATION)

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(timeout + 5)
