"""The life of a job: signals, what it prints, and its exit code."""

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

STARTING = "starting: looking at options and inputs"
INTERRUPTED = "interrupted: what is committed stays, the same command goes on from there"
_LINES = re.compile(r"\s*\n\s*")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

LAST_SECONDS = 2.5  # from the second signal until everything is killed
_told = threading.Event()  # that the job was interrupted
_ending: list[threading.Timer] = []

draining = threading.Event()
"""Set by the first SIGTERM or SIGINT of a job."""


def stop_reason() -> str:
    """Why the job should finish what is under way and end; "" until a signal asks for it."""
    return "a signal asked for it" if draining.is_set() else ""


def exit_code(
    job: Callable[[], int | None],
    interrupted: str = INTERRUPTED,
    errors: tuple[type[Exception], ...] = (StrataError,),
    starting: str = STARTING,
) -> int:
    """Say that it is ``starting``, run ``job`` and return its exit code, by default 0.

    One of ``errors``, or a full disk, is printed and gives 2, a KeyboardInterrupt prints
    ``interrupted`` and gives 130. What cannot be printed, because nobody reads it any more, changes
    none of this.
    """
    with streams_that_may_close():
        if starting:
            print(starting, file=sys.stderr, flush=True)
        try:
            return job() or 0
        except errors as error:
            _tell(str(error))
            return 2
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _tell(f"{error}: make room, or choose other folders (--output, --scratch, TMPDIR)")
            return 2
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr, flush=True)
            _told.set()
            return 130


def _tell(error: str) -> None:
    print("error:", printable(_LINES.sub(" ", error)), file=sys.stderr)


def run_job(job: Callable[[], Summary]) -> int:
    """Run ``job``, print what came of it, and return the exit code.

    The first SIGTERM or SIGINT sets ``draining``, which the job is expected to look at (through
    ``stop_reason``) and end early with a summary whose ``stopped`` says so; the second raises
    KeyboardInterrupt in it, and the process is gone ``LAST_SECONDS`` later at the latest. Both end
    in exit code 130.
    """
    draining.clear()
    _told.clear()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    done: list[Summary] = []
    with streams_that_may_close():
        try:
            code = exit_code(lambda: done.append(job()))
        finally:
            # Ray's processes must be ended now: no signal may interrupt that.
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
    """End this process and those below it, whatever they wait for."""
    cluster.kill_processes()
    if not _told.is_set():
        with contextlib.suppress(OSError):
            os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


def _stop(number: int, frame: FrameType | None) -> None:
    if draining.is_set():
        # On a busy machine Ray takes its time to end.
        _ending.append(threading.Timer(LAST_SECONDS, _end_at_once))
        _ending[-1].daemon = True
        _ending[-1].start()
        raise KeyboardInterrupt
    draining.set()
    message = "stopping: finishing or saving the shards under way (again to stop at once)"
    try:
        print(message, file=sys.stderr, flush=True)
    except RuntimeError:  # the signal came in the middle of a write to this very stream
        os.write(2, f"{message}\n".encode())
