"""A small proxy in front of Ray Serve that ends slow connections, for a server on one machine.

Ray Serve waits forever for the rest of a request. Here the head of a request must arrive within
some seconds and kilobytes, and the client must read its answer. A whole head is passed on
unchanged. Requests have no bodies, because the server knows GET and HEAD only.
"""

import asyncio
import contextlib
import re
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from codec.errors import StrataError


@dataclass(frozen=True)
class FrontLimits:
    """Limits of a connection: seconds and bytes of a request's head, seconds without progress while
    an answer is sent; and how many connections are open at once.
    """

    head_seconds: float = 10.0
    head_bytes: int = 32 << 10
    stalled_seconds: float = 60.0
    connections: int = 1000


_END = b"\r\n\r\n"
_BODY = re.compile(rb"\r\n(?:content-length[ \t]*+:[ \t]*+(?!0++[ \t]*\r)|transfer-encoding)", re.I)
_PIECE = 1 << 16
_REFUSED = {
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


class _RefusedError(Exception):
    """The proxy answers this request itself, with ``status``, and closes the connection."""

    def __init__(self, status: int) -> None:
        self.status = status


class Front:
    """Listens at ``host``, ``port``, and passes requests on to ``behind``, a port of this machine.

    Raises StrataError where it cannot listen. Runs in a thread of its own until ``close``.
    """

    def __init__(
        self, host: str, port: int, behind: int, limits: FrontLimits = FrontLimits()
    ) -> None:
        self._behind, self._limits, self._open = behind, limits, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(
            self._connected, host, port, limit=limits.head_bytes, backlog=1024
        )
        try:
            self._server = self._do(listening)
        except OSError as error:
            self._end()
            reason = error.strerror or str(error)
            raise StrataError(f"--host {host} --port {port}: cannot listen: {reason}") from error

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """End all connections."""

        async def close() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(close())
        self._end()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > self._limits.connections:
                raise _RefusedError(503)
            await self._serve(reader, writer)
        except _RefusedError as refused:
            words = f"{refused.status} {_REFUSED[refused.status]}"
            head = f"HTTP/1.1 {words}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            with contextlib.suppress(OSError, TimeoutError):
                writer.write(head.encode())
                await asyncio.wait_for(writer.drain(), self._limits.head_seconds)
        except (OSError, EOFError, TimeoutError):  # the client is gone, or takes nothing
            pass
        finally:
            self._open -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on the requests of a connection, and their answers, until either side ends it."""
        head = await self._head(reader, b"")
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError as error:
            raise _RefusedError(502) from error
        try:
            asking = asyncio.create_task(self._ask(head, reader, requests))
            answering = asyncio.create_task(self._answer(answers, writer))
            try:
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                if asking.done() and not isinstance(asking.exception(), _RefusedError):
                    requests.write_eof()  # an answer may still be under way
                    await answering
            finally:
                for task in (asking, answering):
                    task.cancel()
                results = await asyncio.gather(asking, answering, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
        finally:
            requests.close()

    async def _head(self, reader: asyncio.StreamReader, begun: bytes) -> bytes:
        """A whole head, of which ``begun`` has arrived already."""
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                head = begun + await reader.readuntil(_END)
        except TimeoutError as error:
            raise _RefusedError(408) from error
        except asyncio.LimitOverrunError as error:
            raise _RefusedError(431) from error
        if _BODY.search(head):
            raise _RefusedError(413)
        return head

    async def _ask(
        self, head: bytes, reader: asyncio.StreamReader, requests: asyncio.StreamWriter
    ) -> None:
        while head:
            requests.write(head)
            await requests.drain()
            # There is no limit here: Ray Serve closes idle connections.
            begun = await reader.read(1)
            head = await self._head(reader, begun) if begun else b""

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(_PIECE):
            writer.write(data)
            async with asyncio.timeout(self._limits.stalled_seconds):
                await writer.drain()
