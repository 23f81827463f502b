"""A small HTTP proxy between a client and an S3 server that does to requests what networks do.

It passes on everything as it is, the Host header too, so that signatures hold. Rules are added (and
taken away) while it runs; each is for the requests whose method and path match.
"""

import http.client
import io
import random
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

PIECE = 1 << 16
# Of one connection, not of the request or its answer; a proxy has its own on each side.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

Kind = Literal["slow_down", "truncate", "stall", "throttle", "delay", "call"]
When = Literal["before", "middle", "after"]


@dataclass
class Rule:
    """What becomes of requests that match, the first ``times`` times; ``hits`` counts them."""

    kind: Kind
    method: str
    path: str
    times: int | None = None
    fraction: float = 1.0
    amount: float = 0.0  # seconds of a delay, bytes per second of a throttle
    callback: Callable[[str], object] | None = None
    when: When = "before"
    cut: bool = False
    hits: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))


@dataclass
class Exchange:
    """A request, from when its head has come: its answer's status, and what of its bodies went."""

    method: str
    path: str
    status: int = 0
    uploaded: int = 0
    downloaded: int = 0


class _Cut(Exception):
    """Both connections are to be closed now, whatever was promised."""


class FaultProxy:
    """``with FaultProxy(server.endpoint) as proxy``: its ``endpoint`` stands for the server's.

    ``method`` and ``path`` of a rule are regular expressions; the path is searched with the query.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.rules: list[Rule] = []
        self.exchanges: list[Exchange] = []
        self.errors: list[Exception] = []  # of callbacks; the first is raised at the end
        self.lock = threading.Lock()
        self.closing = threading.Event()

        class Handler(_Handler):
            proxy = self

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        if self.errors and kind is None:
            raise self.errors[0]

    def slow_down(
        self,
        fraction: float = 1.0,
        *,
        seed: int = 0,
        method: str = "",
        path: str = "",
        times: int | None = None,
    ) -> Rule:
        """Answer this fraction of the requests with 503 SlowDown, and do not pass them on."""
        chance = random.Random(seed)
        return self._add(Rule("slow_down", method, path, times, fraction, chance=chance))

    def truncate(self, *, path: str = "", times: int | None = None) -> Rule:
        """Promise the whole body of a GET, send half of it and close the connection."""
        return self._add(Rule("truncate", "GET", path, times))

    def stall(self, *, path: str = "", times: int | None = None) -> Rule:
        """Send half of the body of a GET, and then nothing, for as long as the client waits."""
        return self._add(Rule("stall", "GET", path, times))

    def throttle(self, bytes_per_second: float, *, method: str = "", path: str = "") -> Rule:
        """Pass bodies on at this rate in each direction, every request by itself."""
        return self._add(Rule("throttle", method, path, amount=bytes_per_second))

    def delay(self, seconds: float, *, method: str = "", path: str = "") -> Rule:
        """Wait before passing a request on."""
        return self._add(Rule("delay", method, path, amount=seconds))

    def call(
        self,
        callback: Callable[[str], object],
        *,
        method: str,
        path: str,
        when: When = "before",
        times: int | None = 1,
        cut: bool = False,
    ) -> Rule:
        """Call ``callback(path)`` before a request is passed on, amid its body or after its answer.

        The middle is that of the uploaded body where there is one, otherwise of the downloaded one;
        ``after`` is when the server has answered and the client has not heard of it. With ``cut``
        both connections are closed then: what a killed client has left in the buffers of its
        connection would still arrive.
        """
        rule = Rule("call", method, path, times, callback=callback, when=when, cut=cut)
        return self._add(rule)

    def clear(self) -> None:
        """Take all rules away; from now on everything goes through."""
        with self.lock:
            self.rules.clear()

    @property
    def counts(self) -> Counter[str]:
        """Requests per method so far."""
        with self.lock:
            return Counter(exchange.method for exchange in self.exchanges)

    def bytes(self, method: str, path: str = "") -> tuple[int, int]:
        """Bytes of bodies (uploaded, downloaded) of the requests of a method and matching path."""
        with self.lock:
            chosen = [e for e in self.exchanges if e.method == method and re.search(path, e.path)]
        return sum(e.uploaded for e in chosen), sum(e.downloaded for e in chosen)

    def _add(self, rule: Rule) -> Rule:
        with self.lock:
            self.rules.append(rule)
        return rule

    def matching(self, method: str, path: str) -> list[Rule]:
        """The rules that a request meets, each counted as a hit."""
        found = []
        with self.lock:
            for rule in self.rules:
                if rule.times is not None and rule.hits >= rule.times:
                    continue
                if not re.match(rule.method, method) or not re.search(rule.path, path):
                    continue
                if rule.fraction < 1 and rule.chance.random() >= rule.fraction:
                    continue
                rule.hits += 1
                found.append(rule)
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what this is for; nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    """One client connection: each request is met by its rules and passed on."""

    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        rules = self.proxy.matching(self.command, self.path)
        self.seen = Exchange(self.command, self.path)
        with self.proxy.lock:
            self.proxy.exchanges.append(self.seen)
        with suppress(_Cut, ConnectionError, http.client.HTTPException):
            self._meet(rules)
            return
        self.close_connection = True

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _meet(self, rules: list[Rule]) -> None:
        """Pass one request on as its rules allow. Raises _Cut to end the connection."""
        for rule in rules:
            if rule.kind == "delay":
                self.proxy.closing.wait(rule.amount)
        self._call(rules, "before")
        rate = min((rule.amount for rule in rules if rule.kind == "throttle"), default=None)
        if any(rule.kind == "slow_down" for rule in rules):
            for _ in self._request_body(None):
                pass
            self._answer(503, [("Content-Type", "application/xml")], len(SLOW_DOWN))
            self._send(SLOW_DOWN)
            return
        target = self.proxy.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=120)
        try:
            response = self._forward(connection, rules, rate)
            self._call(rules, "after")
            self._pass_back(response, rules, rate)
        finally:
            connection.close()

    def _forward(
        self, connection: http.client.HTTPConnection, rules: list[Rule], rate: float | None
    ) -> http.client.HTTPResponse:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        chunked = "Transfer-Encoding" in self.headers
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.putheader("Connection", "close")
        connection.endheaders()
        length = int(self.headers.get("Content-Length", 0))
        for piece in self._request_body(rate):
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if length and self.seen.uploaded == length // 2:
                self._call(rules, "middle")
        if chunked:
            connection.send(b"0\r\n\r\n")
        return connection.getresponse()

    def _request_body(self, rate: float | None) -> Iterator[bytes]:
        """The client's body in pieces, one of which ends at its half."""
        if "Transfer-Encoding" in self.headers:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.seen.uploaded += size
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return
        length = int(self.headers.get("Content-Length", 0))
        for end in (length // 2, length):
            while self.seen.uploaded < end:
                wanted = _piece(end - self.seen.uploaded, rate)
                piece = self.rfile.read(wanted)
                if len(piece) < wanted:
                    raise _Cut("the client has gone")
                self.seen.uploaded += wanted
                yield piece
                self._pause(wanted, rate)

    def _pass_back(
        self, response: http.client.HTTPResponse, rules: list[Rule], rate: float | None
    ) -> None:
        headers = [(k, v) for k, v in response.headers.items() if k.lower() not in HOP_BY_HOP]
        if self.command == "HEAD" or response.status in (204, 304):
            self._answer(response.status, headers, None)
            return
        length = response.length
        source: Callable[[int], bytes] = response.read
        if length is None:  # no length was given, but clients like to have one
            whole = io.BytesIO(response.read())
            length, source = whole.getbuffer().nbytes, whole.read
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        self._answer(response.status, headers, length)
        self._pass(source, length // 2, rate)
        if self.command == "GET" and length:
            if any(rule.kind == "truncate" for rule in rules):
                raise _Cut
            if any(rule.kind == "stall" for rule in rules):
                self._wait_for_the_client_to_go()
                raise _Cut
            self._call(rules, "middle")
        self._pass(source, length, rate)

    def _pass(self, source: Callable[[int], bytes], end: int, rate: float | None) -> None:
        while self.seen.downloaded < end:
            piece = source(_piece(end - self.seen.downloaded, rate))
            if not piece:
                raise _Cut("the server has gone")
            self._send(piece)
            self._pause(len(piece), rate)

    def _answer(self, status: int, headers: list[tuple[str, str]], length: int | None) -> None:
        self.seen.status = status
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, piece: bytes) -> None:
        self.seen.downloaded += len(piece)
        self.wfile.write(piece)

    def _call(self, rules: list[Rule], when: When) -> None:
        for rule in rules:
            if rule.callback is not None and rule.when == when:
                try:
                    rule.callback(self.path)
                except Exception as error:
                    self.proxy.errors.append(error)
                    raise _Cut from error
                if rule.cut:
                    raise _Cut

    def _pause(self, sent: int, rate: float | None) -> None:
        if rate is not None:
            time.sleep(sent / rate)

    def _wait_for_the_client_to_go(self) -> None:
        while not self.proxy.closing.is_set():
            if select.select([self.connection], [], [], 0.1)[0]:
                return  # nothing else than its end can come from it now


def _piece(left: int, rate: float | None) -> int:
    """Bytes to pass on at once: a twentieth of a second's worth where there is a rate."""
    return min(left, PIECE if rate is None else max(1, int(rate / 20)))
