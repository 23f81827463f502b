"""Publishes local files whole: a hidden part is written first and then gets the target's name.

A process locks its part while it writes. Parts of killed processes are known by the missing lock
on the same machine, and by their age on others, where locks may be invisible.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

OLD = 24 * 3600.0  # seconds since the last byte was written: no job waits as long
_NAME = re.compile(r"\.[0-9a-f]{32}\.part")
_TRIES = 5


def publish(target: Path, content: bytes | Path) -> bool:
    """Create ``target`` with all its bytes at once; False if the name is taken."""
    with _new_part(target.parent) as (part, out):
        if isinstance(content, Path):
            with open(content, "rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
        else:
            out.write(content)
        out.flush()
        os.fsync(out.fileno())
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        except OSError:  # no hard links here (FAT, some FUSE mounts)
            if target.exists():
                return False
            os.rename(part, target)
        return True


def clear_parts(folder: Path, deep: bool = False) -> None:
    """Remove parts of killed processes from a folder, with ``deep`` also from those below it."""
    for place, folders, names in os.walk(folder):
        for name in filter(_NAME.fullmatch, names):
            with contextlib.suppress(OSError):
                _remove_abandoned(Path(place, name))
        if not deep:
            folders.clear()


@contextmanager
def _new_part(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    for _ in range(_TRIES):
        part = folder / f".{_machine()}{uuid.uuid4().hex[:20]}.part"  # short: names have 255 bytes
        out = open(part, "xb")  # noqa: SIM115 - closed below
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(out, fcntl.LOCK_EX)
        if os.fstat(out.fileno()).st_nlink:
            break
        out.close()  # another process removed it before it was locked
    try:
        with out:
            yield part, out
    finally:
        part.unlink(missing_ok=True)


def _remove_abandoned(part: Path) -> None:
    if not part.name.startswith(f".{_machine()}"):
        if time.time() - part.stat().st_mtime > OLD:
            part.unlink()
        return
    with open(part, "r+b") as file:  # NFS locks only files that are open for writing
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


@cache
def _machine() -> str:
    """Twelve hex digits that identify this machine until it restarts."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:12]
