"""A folder as an S3 bucket, to be read only: it counts, and answers each request after a delay.

For measuring readers. moto copies a whole object for each range of it, which takes longer than
everything a client does; here a range costs what its bytes cost, as in a real store.
"""

import asyncio
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
PAGE = 1000  # names in one answer to a listing, as in S3
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


class _Server:
    def __init__(self, folder: Path, delay: float, rate: float) -> None:
        self.folder, self.delay, self.rate = folder, delay, rate
        self.requests = self.bytes = 0
        self.etags: dict[Path, str] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request by request."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, target, *_ = head.split(b"\r\n", 1)[0].decode().split(" ")
                lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
                headers = {name.lower(): value for name, _, value in lines}
                await asyncio.sleep(self.delay)
                status, more, body = self.answer(target, headers.get("range", ""))
                length = len(body)
                await asyncio.sleep(length / self.rate)
                if method == "HEAD":
                    body = b""
                told = {"Content-Length": str(length), "Last-Modified": formatdate(0, usegmt=True)}
                told |= more
                answer = "".join(f"{name}: {value}\r\n" for name, value in told.items())
                writer.write(f"HTTP/1.1 {status}\r\n{answer}\r\n".encode() + body)
                self.requests += 1
                self.bytes += len(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    def answer(self, target: str, wanted: str) -> tuple[str, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        name = unquote(parts.path).removeprefix(f"/{BUCKET}").strip("/")
        if "list-type" in query:
            return "200 OK", {"Content-Type": "application/xml"}, self.listing(query).encode()
        path = self.folder / name
        if not path.is_file():
            error = f"{_XML}<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            return "404 Not Found", {"Content-Type": "application/xml"}, error.encode()
        if not wanted:
            return "200 OK", {"ETag": f'"{self.etag(path)}"'}, path.read_bytes()
        size = path.stat().st_size
        start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        with open(path, "rb") as file:
            body = os.pread(file.fileno(), end - start + 1, start)
        place = f"bytes {start}-{start + len(body) - 1}/{size}"
        more = {"Content-Range": place, "ETag": f'"{self.etag(path)}"'}
        return "206 Partial Content", more, body

    def listing(self, query: dict[str, list[str]]) -> str:
        """A page of the files in one folder, and of the folders in it, by their names."""
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        folder = self.folder / prefix
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        left = [one for one in entries if one.name > after]
        page = left[:PAGE]
        files = "".join(
            f"<Contents><Key>{escape(prefix + one.name)}</Key><Size>{one.stat().st_size}</Size>"
            "<LastModified>2025-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self.etag(one)}&quot;</ETag></Contents>"
            for one in page
            if one.is_file()
        )
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(prefix + one.name)}/</Prefix></CommonPrefixes>"
            for one in page
            if one.is_dir()
        )
        more = ""
        if len(left) > len(page):
            token = escape(page[-1].name)
            more = f"<NextContinuationToken>{token}</NextContinuationToken>"
        return (
            f"{_XML}<ListBucketResult><Name>{BUCKET}</Name>"
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
            f"{files}{folders}</ListBucketResult>"
        )

    def etag(self, path: Path) -> str:
        """The MD5 of a file, as S3 has it of what was uploaded at once."""
        if path not in self.etags:
            self.etags[path] = hashlib.md5(path.read_bytes()).hexdigest()
        return self.etags[path]


def _run(folder: Path, delay: float, rate: float, pipe: Connection) -> None:
    """Serve until told to stop; answers each message with what was counted since the last one."""
    counts = _Server(folder, delay, rate)

    async def main() -> None:
        server = await asyncio.start_server(counts.serve, "127.0.0.1", 0, backlog=256)
        pipe.send(server.sockets[0].getsockname()[1])
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()

        def listen() -> None:
            while pipe.recv():
                pipe.send((counts.requests, counts.bytes))
                counts.requests = counts.bytes = 0
            loop.call_soon_threadsafe(stopped.set)

        threading.Thread(target=listen, daemon=True).start()
        await stopped.wait()

    asyncio.run(main())


@contextmanager
def serving(
    folder: Path, delay: float, rate: float
) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
    """The endpoint of a server in a process of its own, and what tells (and forgets) its counts.

    Those are requests and bytes of their answers. Every request is answered after ``delay``
    seconds, every connection passes ``rate`` bytes per second.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(folder, delay, rate, theirs), daemon=True
    )
    process.start()
    port = ours.recv()

    def counted() -> tuple[int, int]:
        ours.send(True)
        requests, nbytes = ours.recv()
        return requests, nbytes

    try:
        yield f"http://127.0.0.1:{port}", counted
    finally:
        ours.send(False)
        process.join(10)
