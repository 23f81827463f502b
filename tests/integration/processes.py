"""Find and kill processes by number: only those that descend from a test, or carry its mark."""

import os
import signal
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Processes that ``root`` has started, directly or not, and that still run."""
    children = defaultdict(list)
    for pid in _all():
        with suppress(OSError):
            # after the name, which may hold anything, in brackets: state, parent, ...
            state, parent, *_ = _read(pid, "stat").decode().rpartition(")")[2].split()
            if state != "Z":
                children[int(parent)].append(pid)
    found, queue = [], [root]
    while queue:
        below = children[queue.pop()]
        found += below
        queue += below
    return found


def marked(mark: str) -> list[int]:
    """Processes with ``mark`` ("NAME=value") in the environment that they were started with.

    It is inherited, also by those whose parents have gone, as Ray's are where a driver was killed.
    """
    found = []
    for pid in _all():
        with suppress(OSError):
            if mark.encode() in _read(pid, "environ").split(b"\0"):
                found.append(pid)
    return found


def actors(root: int, name: str = "ShardCompressor") -> list[int]:
    """Ray's worker processes below ``root`` that hold an actor of this class."""
    found = []
    for pid in descendants(root):
        with suppress(OSError):
            if f"ray::{name}".encode() in _read(pid, "cmdline"):
                found.append(pid)
    return found


def kill(pids: list[int]) -> None:
    """SIGKILL, and wait until they are gone (or zombies of a parent that does not look)."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return _read(pid, "stat").rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def _all() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _read(pid: int, file: str) -> bytes:
    return Path(f"/proc/{pid}/{file}").read_bytes()
