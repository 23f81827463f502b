"""Runs a job from the command line: signals, messages and exit codes."""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from codec.errors import StrataError, printable

from . import cluster
from .progress.summary import Summary
from .streams import streams_that_may_close

STARTING = "starting: checking options and inputs"
INTERRUPTED = "interrupted: what is committed stays; run the same command to go on from there"
_LINES = re.compile(r"\s*\n\s*")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

LAST_SECONDS = 2.5  # from the second signal until everything is killed
_printed = threading.Event()  # INTERRUPTED was printed
_ending: list[threading.Timer] = []

draining = threading.Event()
"""Set by the first SIGTERM or SIGINT of a job."""


def stop_reason() -> str:
    """Why the job should end after its running tasks; "" until there was a signal."""
    return "a signal asked for it" if draining.is_set() else ""


def exit_code(
    job: Callable[[], int | None],
    interrupted: str = INTERRUPTED,
    errors: tuple[type[Exception], ...] = (StrataError,),
    starting: str = STARTING,
) -> int:
    """Print ``starting``, run ``job`` and return its exit code, by default 0.

    One of ``errors``, or a full disk, is printed and gives 2. A KeyboardInterrupt prints
    ``interrupted`` and gives 130. It makes no difference if nobody reads the output any more.
    """
    with streams_that_may_close():
        if starting:
            print(starting, file=sys.stderr, flush=True)
        try:
            return job() or 0
        except errors as error:
            _print_error(str(error))
            return 2
        except OSError as error:
            if error.errno not in _FULL:
                raise
            room = "" if error.errno == errno.EROFS else "free some space, or "
            _print_error(f"{error}: {room}choose other folders (--output, --scratch, TMPDIR)")
            return 2
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr, flush=True)
            _printed.set()
            return 130


def _print_error(error: str) -> None:
    print("error:", printable(_LINES.sub(" ", error)), file=sys.stderr)


def run_job(job: Callable[[], Summary]) -> int:
    """Run ``job``, print its summary, and return the exit code.

    The first SIGTERM or SIGINT sets ``draining``. The job must check it through ``stop_reason`` and
    end early with a summary whose ``stopped`` is set. The second signal raises KeyboardInterrupt,
    and the process ends at most ``LAST_SECONDS`` later. Both give exit code 130.
    """
    draining.clear()
    _printed.clear()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    done: list[Summary] = []
    with streams_that_may_close():
        try:
            code = exit_code(lambda: done.append(job()))
        finally:
            # No signal may interrupt the end of Ray's processes.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            cluster.disconnect()
            while _ending:
                _ending.pop().cancel()
        if not done:
            return code
        (summary,) = done
        summary.print()
        if summary.stopped and draining.is_set():
            print(INTERRUPTED, file=sys.stderr)
            return 130
        return summary.exit_code


def _end_at_once() -> None:
    """End this process and its descendants, whatever they wait for."""
    cluster.kill_processes()
    if not _printed.is_set():
        with contextlib.suppress(OSError):
            os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


def _stop(number: int, frame: FrameType | None) -> None:
    if draining.is_set():
        # On a busy machine, Ray may take long to end.
        _ending.append(threading.Timer(LAST_SECONDS, _end_at_once))
        _ending[-1].daemon = True
        _ending[-1].start()
        raise KeyboardInterrupt
    draining.set()
    message = "stopping: finishing or saving the running shards (again to stop at once)"
    try:
        print(message, file=sys.stderr, flush=True)
    except RuntimeError:  # the signal came during a write to the same stream
        os.write(2, f"{message}\n".encode())
