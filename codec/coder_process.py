"""The second half of encoding, from symbols to bytes, in this process or in helper processes.

constriction holds Python's lock while it codes: two threads code no faster than one, and the thread
that feeds a GPU waits for them. So a ``Helper`` codes in a process of its own, without torch and
without a model. It gets the symbols of each picture, and each table once.

    python -m codec.coder_process    is such a process; it reads requests from its standard input
"""

import contextlib
import io
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np

from .base import EncodedImage
from .batches import taken, windows
from .scheme import LayerSymbols
from .stream import bitstream, entropy

# Small pictures are sent together, because each message takes time.
_REQUEST_PIXELS, _MOST_PICTURES = 1 << 18, 1 << 12
_LARGE = 1 << 16  # bytes; larger arrays go through shared memory
_ALIGN = 64
_PATIENCE = 3  # helpers in a row that end without an answer, before all is coded here
_LENGTH = struct.Struct("<Q")
AVAILABLE = hasattr(os, "memfd_create")  # only on Linux
_shared: list[type] = [entropy.Tables]

Kind = TypeVar("Kind", bound=type)


def shared(kind: Kind) -> Kind:
    """Decorator of classes whose objects belong to a model: a helper gets each object once."""
    _shared.append(kind)
    return kind


@dataclass(frozen=True)
class Quantised:
    """A picture after the device's half of encoding: its header, and the symbols of its layers.

    ``layers`` may be computed lazily and are read once. They are pickled as they are.
    """

    model_id: str
    header: bytes
    layers: Iterable[LayerSymbols]

    def code(self) -> EncodedImage:
        protected = bitstream.unpack_header(self.header).protected
        packed = (self._pack(number, layer, protected) for number, layer in enumerate(self.layers))
        return EncodedImage(self.header, tuple(packed))

    def pixels(self) -> int:
        size = bitstream.unpack_header(self.header)
        return size.width * size.height

    def _pack(self, number: int, symbols: LayerSymbols, protected: bool) -> bytes:
        index = symbols.index_bytes()
        check = bitstream.check24(index, symbols.symbol_bytes())
        layer = bitstream.Layer(
            entropy.encode(symbols.parts(), check),
            index_check=bitstream.check16(index) if protected else None,
            protection=symbols.protection,
        )
        return bitstream.pack_layer(self.model_id, self.header, number, layer)


@dataclass
class Coding:
    """The second half of ``encode``, from ``Codec.begin_encode``. Call it once for the streams."""

    pictures: list[Quantised]

    def __call__(self) -> list[EncodedImage]:
        return [picture.code() for picture in taken(self.pictures)]

    def by(self, helper: "Helper") -> list[EncodedImage]:
        """Code in another process."""
        groups = windows(taken(self.pictures), Quantised.pixels, _REQUEST_PIXELS, _MOST_PICTURES)
        return [stream for group in groups for stream in helper.code(group)]


class Helper:
    """A process that codes, if ``AVAILABLE``. It takes one request at a time, and ends with this
    object.

    If it does not answer, its pictures are coded here. After ``_PATIENCE`` such failures in a row,
    all pictures are coded here.
    """

    def __init__(self) -> None:
        self._unanswered = 0  # in a row
        self._process: subprocess.Popen[bytes] | None = None
        self._memory: _Memory | None = None
        self._known: dict[int, Any] = {}  # shared objects that were sent to it, by id
        self._end: Callable[[], Any] = lambda: None

    def code(self, pictures: Sequence[Quantised]) -> list[EncodedImage]:
        """The pictures' streams. Raises the errors of coding them."""
        if self._unanswered == _PATIENCE:
            return [picture.code() for picture in pictures]
        try:
            answer, error = self._ask(pictures)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._unanswered += 1
            self.close()
            return [picture.code() for picture in pictures]
        self._unanswered = 0
        if error is not None:
            raise error
        return [EncodedImage(*stream) for stream in answer]

    def close(self) -> None:
        """End the process. The next request starts another one."""
        self._end()
        self._process, self._memory, self._known = None, None, {}

    @property
    def pid(self) -> int | None:
        """The process id, None if no process runs."""
        return None if self._process is None else self._process.pid

    def _ask(self, pictures: Sequence[Quantised]) -> Any:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._memory is not None
        arrays: list[np.ndarray] = []

        def beside(buffer: pickle.PickleBuffer) -> bool:
            data = buffer.raw()
            if data.nbytes < _LARGE:
                return True
            arrays.append(np.frombuffer(data, np.uint8))
            return False

        request = io.BytesIO()
        pickler = pickle.Pickler(request, protocol=5, buffer_callback=beside)
        # Tables are the same in every request: they are sent once, and then referred to by name.
        pickler.dispatch_table = dict.fromkeys(_shared, self._name)
        pickler.dump(list(pictures))
        places = self._memory.put(arrays)
        self._send(request.getbuffer(), pickle.dumps(places))
        assert self._process.stdout is not None
        return pickle.loads(_read(self._process.stdout)[0])

    def _name(self, thing: Any) -> tuple[Any, ...]:
        name = id(thing)
        if name not in self._known:
            self._send(pickle.dumps((name, thing), protocol=5))
            self._known[name] = thing  # kept, so that no other object gets its id
        return _named, (name,)

    def _send(self, *parts: bytes | memoryview) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        _write(self._process.stdin, parts)

    def _start(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._memory = _Memory(os.memfd_create("coding"))
        file = self._memory.file
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file],
            # Not the current folder, which may contain something else called codec.
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        self._end = weakref.finalize(self, _end, self._process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process, even if it is stopped or busy."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    process.wait()


class _Memory:
    """Memory that both processes share: an anonymous file, which ends with them."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._view = np.empty(0, np.uint8)
        weakref.finalize(self, os.close, file)

    def put(self, arrays: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        """Copy arrays of bytes into the memory; returns start and end of each."""
        ends = np.cumsum([-(-len(array) // _ALIGN) * _ALIGN for array in arrays]).tolist()
        if ends and ends[-1] > len(self._view):
            os.ftruncate(self.file, ends[-1])
            self._map(ends[-1])
        places = []
        for array, start in zip(arrays, [0, *ends], strict=False):
            places.append((start, start + len(array)))
            np.copyto(self._view[slice(*places[-1])], array)
        return places

    def get(self, places: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        if places and places[-1][1] > len(self._view):
            self._map(os.fstat(self.file).st_size)
        return [self._view[start:end] for start, end in places]

    def _map(self, size: int) -> None:
        self._view = np.frombuffer(mmap.mmap(self.file, size), np.uint8)


_names: dict[int, Any] = {}  # in a helper: the shared objects that were sent to it


def _named(name: int) -> Any:
    return _names[name]


def _write(pipe: IO[bytes], parts: Sequence[bytes | memoryview]) -> None:
    pipe.write(_LENGTH.pack(len(parts)) + b"".join(_LENGTH.pack(len(part)) for part in parts))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _read(pipe: IO[bytes]) -> list[bytes]:
    (count,) = _LENGTH.unpack(_take(pipe, _LENGTH.size))
    lengths = [size for (size,) in _LENGTH.iter_unpack(_take(pipe, count * _LENGTH.size))]
    return [_take(pipe, length) for length in lengths]


def _take(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError("the other process has ended")
    return data


def _requests(pipe: IO[bytes], memory: _Memory) -> Iterator[list[Quantised]]:
    with contextlib.suppress(EOFError):  # the other process has closed the pipe
        while True:
            request, *beside = _read(pipe)
            if beside:
                yield pickle.loads(request, buffers=memory.get(pickle.loads(beside[0])))
            else:
                name, thing = pickle.loads(request)
                _names[name] = thing


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides when to end
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text must not mix with the answers
    for pictures in _requests(sys.stdin.buffer, _Memory(int(sys.argv[1]))):
        try:
            streams = [(one.header, one.layers) for one in (x.code() for x in pictures)]
            answer: tuple[Any, Exception | None] = (streams, None)
        except Exception as error:
            answer = (None, error)
        with contextlib.suppress(BrokenPipeError):
            _write(answers, [pickle.dumps(answer)])


if __name__ == "__main__":
    # Import the module by the name that pickled requests use, instead of ``__main__``.
    from codec.coder_process import main

    main()
