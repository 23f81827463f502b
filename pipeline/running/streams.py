"""Standard streams that may be closed, full or read by nobody, while the job goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _MayClose:
    """A text stream whose failures to write are swallowed; from the first on, nothing is written.

    Its file descriptor then leads to nowhere, so that Python's own flush at its end, which would
    change the exit code, cannot fail either.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # closed, or a stream without a descriptor
            self._stream = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def streams_that_may_close() -> Iterator[None]:
    """For as long as the block takes, printing cannot fail.

    Descriptors 0 to 2 that were closed are opened to nowhere: the next file that is opened would
    get their numbers, and libraries print into these.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before = sys.stdout, sys.stderr
    streams = [
        _MayClose(stream or open(os.devnull, "w"))  # noqa: SIM115 - None where it was closed
        for stream in before
    ]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
