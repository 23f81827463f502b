"""Memory of the process and the machine, and processes killed for lack of memory."""

import contextlib
import resource
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """Memory of this process that is in RAM, in bytes; its peak on systems without /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int | None:
    """Memory that this machine or container has left, in bytes; None if unknown."""
    found = []
    with contextlib.suppress(OSError, IndexError, ValueError):
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(facts["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # only a container with a limit has these files
        limit, used = (int((_CGROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(facts.get("inactive_file", 0)))
    return min(found, default=None)


def kernel_kills() -> int:
    """How many processes the kernel has killed for lack of memory; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(facts.get("oom_kill", 0))
    return 0
