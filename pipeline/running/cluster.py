"""Connects to a Ray cluster, or starts a private one, and shares its devices among workers."""

import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from codec.errors import StrataError

# Pictures never pass through the object store, so Ray's default of 30 % of the memory is a waste.
OBJECT_STORE_BYTES = 512 << 20
# Threads help little with small pictures: two workers with one thread are up to twice as fast as
# one worker with two. Memory limits their number: a worker takes half a gigabyte, more for large
# pictures.
BYTES_PER_WORKER = 2 << 30
# glibc returns the memory of a large array to the system, and the next array then costs a page
# fault for each 4 KB: up to a fifth of a CPU's time. With these settings it keeps up to 256 MB.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
LOST = (
    "a submitted job runs in a temporary copy of the folder, so a relative path would be lost; "
    "give an absolute path or a URL"
)
ANSWER_SECONDS = 20.0  # a cluster that exists accepts a connection within this time
CLIENT_PORT = 10001  # of ray:// addresses without a port
# The longest path of a socket in Ray's folder, and the kernel's limit (sun_path of unix(7)).
_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
MAX_SOCKET_PATH = 107
SHORT_FOLDER = "/tmp"
CPUS_PER_GPU = 4  # for GPU machines that have not been started yet


class _OnlyOurs(list[str]):
    """The first entries of the workers' ``sys.path``. Ray cannot extend this list.

    Ray would add the folders of the script and of the user, which may contain other things called
    ``codec`` or ``pipeline``.
    """

    def extend(self, paths: Iterable[str]) -> None:
        pass


class ClusterError(StrataError):
    """There is no Ray cluster, or it does not have the requested devices."""


@dataclass(frozen=True)
class WorkerShape:
    """How many workers, and the resources of each. ``device`` is ``cpu`` or ``cuda``."""

    workers: int
    cpus: float
    gpus: float
    device: str

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a worker's process."""
        return {"OMP_NUM_THREADS": str(self.threads), **KEEP_FREED_MEMORY}


# With this variable set to false, Ray knows that there is only one machine and listens on localhost
# only. Otherwise it listens on all interfaces, with metrics that need no token. (Ray made it for
# Windows and macOS, whose firewalls ask the user.)
_REACHABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_PRIVATE = "false"


def inside_ray_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def would_be_lost(url: str) -> bool:
    """Whether this is a relative path inside a submitted job, whose folder is temporary."""
    return inside_ray_job() and "://" not in url and not os.path.isabs(url)


def connect(address: str | None) -> None:
    """Connect to ``address``, to the surrounding Ray job, or to a new private cluster.

    Raises ClusterError if the cluster cannot be reached.
    """
    wanted = address or os.environ.get("RAY_ADDRESS")
    if not wanted and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Without a token, Ray writes one into the home directory, and from then on sends it to
        # every other cluster of this user. A token in the environment leaves no trace.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a Ray warning
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # ``streams`` would escape the colours
    import ray
    from ray._common.utils import env_bool
    from ray._private import ray_constants

    if ray.is_initialized():
        return
    root = Path(__file__).resolve().parents[2]
    options: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": True}
    if not wanted:
        # Workers are children of this process and inherit the path of our packages.
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        options |= {
            "address": "local",
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": ray_folder(),
        }
    else:
        _check_that_somebody_listens(wanted)
        options["address"] = wanted
        if not inside_ray_job():
            # Workers on other machines need our two packages. Inside a job they have them already.
            options["runtime_env"] = {"py_modules": [str(root / "codec"), str(root / "pipeline")]}
    if not inside_ray_job() and not (wanted or "").startswith("ray://"):
        ours = _OnlyOurs([str(root)])
        options["job_config"] = ray.job_config.JobConfig(_py_driver_sys_path=ours)
    # Ray's processes inherit the variable; other children of this process must not.
    private = not wanted and _REACHABLE not in os.environ
    if private:
        os.environ[_REACHABLE] = _PRIVATE
    # Ray reads the variable only when it is imported.
    several = env_bool(_REACHABLE, not ray_constants.IS_WINDOWS_OR_OSX)
    ray_constants.ENABLE_RAY_CLUSTER = several
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
        # Ray replaces this handler with one that prints a C++ stack and ends the process at once.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    except Exception as error:  # Ray raises many classes
        reason = f"{type(error).__name__}: {error}"
        if wanted:
            raise ClusterError(f"no Ray cluster at {wanted}: {reason}") from error
        raise ClusterError(
            f"Ray does not start on this machine: {reason}. It needs memory, disk space and the "
            f"right to write to {options['_temp_dir'] or usual_folder()}, where its logs may say "
            "more; RAY_TMPDIR chooses another folder"
        ) from error
    finally:
        if private:
            del os.environ[_REACHABLE]


def _check_that_somebody_listens(address: str) -> None:
    """Raises ClusterError if nobody listens at ``address``. Ray would try for ten minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.hostname is None or (place.port is None and place.scheme != "ray"):
            return  # a word, such as auto
        port = place.port or CLIENT_PORT
        socket.create_connection((place.hostname, port), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at {address}: {error}. Use the host and port that `ray status` or "
            "`ray start` prints, or ray://host:10001"
        ) from error


def usual_folder() -> str:
    """Ray's default folder for sockets and logs."""
    return f"{os.environ.get('RAY_TMPDIR') or tempfile.gettempdir()}/ray"


def ray_folder() -> str | None:
    """A short folder for a private Ray, if the usual one is too long for its sockets; else None.

    Raises ClusterError if that folder cannot be used.
    """
    usual = usual_folder()
    if len(os.fsencode(usual + _SOCKET)) <= MAX_SOCKET_PATH:
        return None
    if not os.access(SHORT_FOLDER, os.W_OK | os.X_OK):
        longest = MAX_SOCKET_PATH - len(f"/ray{_SOCKET}")
        raise ClusterError(
            f"{usual}: too long for Ray's sockets: set RAY_TMPDIR to a folder of at most {longest} "
            "characters"
        )
    return f"{SHORT_FOLDER}/ray-{os.getuid()}"


def share(
    workers: int | None, device: str, tasks: int, worker_cpus: int | None = None
) -> WorkerShape:
    """Divide the connected cluster among at most ``tasks`` workers; see ``divide``."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return divide(nodes, workers, device, tasks, worker_cpus)


def divide(
    nodes: Sequence[Mapping[str, float]],
    workers: int | None,
    device: str,
    tasks: int,
    worker_cpus: int | None = None,
) -> WorkerShape:
    """How many workers to start, and the resources of each, so that a worker fits on a machine.

    ``nodes`` are the resources of the machines; ``device`` is ``auto``, ``cpu`` or ``cuda``. Each
    worker gets one GPU if there are GPUs. Otherwise it gets one CPU, or more if memory, tasks or
    ``workers`` allow fewer workers than CPUs. A cluster that grows on demand may have no machines
    yet, so ``cuda`` with ``workers``, or ``workers`` with ``worker_cpus``, is taken as given.
    Raises ClusterError for ``cuda`` without ``workers`` on a cluster without a GPU.
    """
    most = max(1, tasks)
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not with_gpus and workers is None:
        raise ClusterError(
            "--device cuda: this Ray cluster has no GPU; if it starts machines on demand, give the "
            "number of workers (--workers)"
        )
    if device == "cuda" or (with_gpus and device != "cpu"):
        gpus = sum(int(node["GPU"]) for node in with_gpus)
        if workers is None or device != "cuda":
            workers = min(workers or gpus, gpus)
        cpus = [_whole(node.get("CPU", 0) / int(node["GPU"])) for node in with_gpus]
        owned = worker_cpus or min(cpus, default=CPUS_PER_GPU)
        return WorkerShape(min(workers, most), float(owned), 1.0, "cuda")
    sizes = [node.get("CPU", 0) for node in nodes if node.get("CPU", 0) > 0]
    if worker_cpus is not None:
        fitting = sum(int(size / worker_cpus) for size in sizes)
        if not fitting and workers is None:
            raise ClusterError(
                f"--cpus-per-worker {worker_cpus}: no machine of this Ray cluster has so many CPUs"
            )
        return WorkerShape(min(workers or fitting, most), float(worker_cpus), 0.0, "cpu")
    if not sizes:
        raise ClusterError("this Ray cluster has no CPU")
    usual = sum(_room(node) for node in nodes if node.get("CPU", 0) > 0)
    count = max(1, min(workers or usual, int(sum(sizes)), most))
    return WorkerShape(count, _whole(min(sum(sizes) / count, max(sizes))), 0.0, "cpu")


def _room(node: Mapping[str, float]) -> int:
    """How many workers with one CPU fit on a machine; at least one."""
    return max(1, min(int(node["CPU"]), int(node.get("memory", 1e18) // BYTES_PER_WORKER)))


def _whole(cpus: float) -> float:
    return float(int(cpus)) if cpus >= 1 else cpus


def kill_processes() -> None:
    """Kill all descendants of this process, such as those of a private Ray, without waiting."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name is in brackets and may hold anything, so its end is the last bracket.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    below = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= found
    for pid in below - {os.getpid()}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def disconnect() -> None:
    """Leave the cluster; ends a private one."""
    if "ray" not in sys.modules:  # the job ended before it used Ray, whose import takes seconds
        return
    import ray

    if ray.is_initialized():
        ray.shutdown()
