"""Local folders for temporary files. If a process is killed, the next one removes its folders."""

import contextlib
import fcntl
import functools
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from codec.errors import printable

from .filesystems import StorageError
from .passing import may_pass

SCRATCH, LOCK = "strata-scratch-", ".lock"


@contextmanager
def scratch_folder(parent: str | None) -> Iterator[Path]:
    """A local folder for temporary files, inside ``parent`` (made if missing) or the system's.

    The process that makes a folder holds a lock on it as long as it lives. The next call on the
    same machine removes the folders of killed processes. On a file system without locks (some
    network mounts) it removes none, and prints a warning. Raises StorageError if no folder can be
    made.
    """
    base = _scratch_base(parent)
    with scratch_errors(base):
        base.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(base)
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=base))
    try:
        with scratch_errors(base):
            lock = _lock(base, folder)
        with lock:
            yield folder
    finally:
        _remove_scratch(folder)


def _lock(base: Path, folder: Path) -> BinaryIO:
    """The lock of this process on a scratch folder in ``base``; raises OSError."""
    lock = open(folder / f"{LOCK}.new", "wb", buffering=0)  # noqa: SIM115 - closed by the caller
    lock.write("\n".join(_machine()).encode())
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        _warn_of_no_locks(base, error.strerror)
    else:
        os.rename(lock.name, folder / LOCK)  # it appears under this name with its lock held
    return lock


@contextmanager
def scratch_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the local file system, such as a full disk, into a StorageError."""
    try:
        yield
    except OSError as error:
        message = (
            f"{folder}: temporary files cannot be written: {error.strerror or error}: free some "
            "space, or give another folder (--scratch)"
        )
        raise StorageError(message, passing=may_pass(error)) from error


def clear_scratch(parent: str | None, patience: float = 0.0) -> None:
    """Remove the folders of killed processes in ``parent``, as ``scratch_folder`` does.

    Waits up to ``patience`` seconds for processes that are still dying.
    """
    deadline = time.monotonic() + patience
    while _remove_abandoned(_scratch_base(parent)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _scratch_base(parent: str | None) -> Path:
    return Path(parent or tempfile.gettempdir())


def _remove_abandoned(base: Path) -> int:
    """Remove folders of this machine's dead processes; returns how many have a living one."""
    living = 0
    for path in base.glob(f"{SCRATCH}*/{LOCK}"):
        # NFS only locks files that are open for writing.
        with contextlib.suppress(OSError), open(path, "r+b") as lock:
            # A lock that is held on another machine may be invisible here.
            if not _machine() & set(lock.read().decode(errors="replace").splitlines()):
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                living += 1
                continue
            _remove_scratch(path.parent)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # on NFS only now: an open file keeps its folder
    return living


def _remove_scratch(folder: Path) -> None:
    """Remove a folder, its lock last, so that another process can finish if this one is killed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _machine() -> frozenset[str]:
    """This machine's name and its kernel's boot id. One of them is enough to recognise it.

    A container has a name of its own, and a restart changes the boot id.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        boot = ""
    return frozenset({platform.node(), boot} - {""})


@functools.cache
def _warn_of_no_locks(base: Path, reason: str) -> None:
    """Print a warning, once in a process."""
    print(
        f"warning: {printable(str(base))}: this file system has no locks ({reason}). Folders of "
        f"killed processes ({SCRATCH}*) must be removed by hand, or choose another folder with "
        "--scratch",
        file=sys.stderr,
    )
