"""Standard streams that may be closed, full or read by nobody, while the job goes on."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from codec.errors import printable

_LINES = re.compile(r"([\n\r\t])")  # \r: of bars that other programs draw


class _MayClose:
    """A text stream whose failures to write are swallowed; from the first on, nothing is written.

    Its file descriptor then leads to nowhere, so that Python's own flush at its end, which would
    change the exit code, cannot fail either. Control characters other than those that make lines
    are escaped, whoever writes them: ``with_controls`` is the same stream for what draws.
    """

    def __init__(self, stream: TextIO, escapes: bool = True) -> None:
        self._stream, self._escapes = stream, escapes

    @property
    def with_controls(self) -> "_MayClose":
        inner = getattr(self._stream, "with_controls", self._stream)
        return _MayClose(inner, escapes=False)

    def guard(self, stream: TextIO) -> "_MayClose":
        """Another stream, from which what is drawn here takes what others print."""
        return _MayClose(stream)

    def write(self, text: str) -> int:
        if self._escapes and not text.isprintable():
            parts = _LINES.split(text)
            parts[::2] = map(printable, parts[::2])
            self._write("".join(parts))
            return len(text)
        return self._write(text)

    def _write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # an older terminal, which can show only some letters
            return self._write(text.encode("ascii", "backslashreplace").decode())
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
