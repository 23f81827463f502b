"""Standard streams that may be closed, full or read by nobody: the job goes on all the same."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from codec.errors import printable

_LINES = re.compile(r"([\n\r\t])")  # \r: of bars that other programs draw


class _MayClose:
    """A text stream that ignores errors. After the first error, nothing more is written.

    Its file descriptor is then redirected to /dev/null, because an error in Python's last flush
    would change the exit code. Control characters are escaped, except for line ends and tabs;
    ``with_controls`` is the same stream without escaping, for the display.
    """

    def __init__(self, stream: TextIO, escapes: bool = True) -> None:
        self._stream, self._escapes = stream, escapes

    @property
    def with_controls(self) -> "_MayClose":
        inner = getattr(self._stream, "with_controls", self._stream)
        return _MayClose(inner, escapes=False)

    def guard(self, stream: TextIO) -> "_MayClose":
        """Escape another stream in the same way."""
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
        except UnicodeEncodeError:  # the terminal's encoding has only some letters
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
    """Printing cannot fail inside the block.

    Closed descriptors 0 to 2 are opened to /dev/null. Otherwise the next file that is opened would
    get one of these numbers, and libraries would print into it.
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
