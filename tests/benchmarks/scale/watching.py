"""What a job does while it runs: its event log, and memory and processor time of its processes."""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def events(log: Path, kind: str = "") -> list[dict[str, Any]]:
    """The events of a log so far, ``time`` as seconds of POSIX time; a half line is left out."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if kind in ("", event["event"]):
            found.append(event | {"time": datetime.fromisoformat(event["time"]).timestamp()})
    return found


@dataclass(frozen=True)
class Sample:
    """One look at a process: POSIX time, resident bytes, processor seconds so far."""

    time: float
    resident: int
    cpu: float


@dataclass
class Watched:
    """Looks at the driver and at each worker (by number), in order of time."""

    driver: list[Sample] = field(default_factory=list)
    workers: dict[int, list[Sample]] = field(default_factory=dict)

    def cpu(self) -> float:
        """Processor seconds of all workers between the first look and the last."""
        return sum(looks[-1].cpu - looks[0].cpu for looks in self.workers.values() if looks)


@contextmanager
def watching(log: Path, seconds: float = 0.25) -> Iterator[Watched]:
    """Look at the processes that the event log names, every ``seconds``, until the block ends."""
    watched, done = Watched(), threading.Event()

    def watch() -> None:
        pids: dict[int, int] = {}
        driver, position = 0, 0
        while not done.wait(seconds):
            if log.exists() and log.stat().st_size != position:
                position = log.stat().st_size
                for event in events(log):
                    driver = event.get("driver_pid", driver)
                    if event["event"] == "worker_ready":
                        pids[event["worker"]] = event["pid"]
            _look(driver, watched.driver)
            for worker, pid in pids.items():
                _look(pid, watched.workers.setdefault(worker, []))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        done.set()
        thread.join()


def _look(pid: int, looks: list[Sample]) -> None:
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return  # it has gone
    looks.append(Sample(time.time(), resident, (int(fields[11]) + int(fields[12])) / _TICKS))


@contextmanager
def ray_with(cpus: int) -> Iterator[None]:
    """A private Ray that believes in ``cpus`` processors, whatever the machine has."""
    import ray

    from pipeline.running.cluster import OBJECT_STORE_BYTES

    os.environ["RAY_AUTH_MODE"] = "disabled"
    # Ray's default is 15: beside other programs workers would lose against a codec in this process.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's spelling
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.WARNING,
    )
    try:
        yield
    finally:
        ray.shutdown()


def load() -> float:
    """The machine's load of the last minute: what else was going on."""
    return round(os.getloadavg()[0], 2)


def say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
