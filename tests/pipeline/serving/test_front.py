"""The front of the server closes partial requests, endless heads and unread answers."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from codec.errors import StrataError
from pipeline.serving.front import Front, FrontLimits

LIMITS = FrontLimits(head_seconds=0.5, head_bytes=4096, stalled_seconds=0.5, connections=20)
LARGE = 40 << 20


class Behind(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(1.0)  # longer than a head may take
        body = bytes(LARGE) if self.path == "/large" else self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Behind) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        front = Front("127.0.0.1", 0, server.server_port, LIMITS)
        yield front
        front.close()
        server.shutdown()


def connect(front: Front) -> socket.socket:
    return socket.create_connection(("127.0.0.1", front.port), 10)


def ending(client: socket.socket) -> tuple[bytes, float]:
    """What comes until the other side ends the connection, and after how many seconds."""
    began, parts = time.monotonic(), []
    while True:
        try:
            part = client.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            return b"".join(parts), time.monotonic() - began
        parts.append(part)


def send_until_refused(client: socket.socket, part: bytes, pause: float = 0.0) -> int:
    """Send the same again and again for ten seconds at the most; how many bytes were taken."""
    sent, began = 0, time.monotonic()
    while time.monotonic() < began + 10:
        try:
            sent += client.send(part)
        except ConnectionError:
            return sent
        time.sleep(pause)
    raise AssertionError("it takes whatever is sent")


def test_requests_and_answers_are_passed_on(front: Front) -> None:
    client = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    for path in ("/a", "/slow", "/b?c", "/large", "/d"):  # on one connection
        client.request("GET", path)
        body = client.getresponse().read()
        assert body == (bytes(LARGE) if path == "/large" else path.encode())


def test_heads_that_arrive_together_or_in_parts(front: Front) -> None:
    with connect(front) as client:
        client.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHo")
        time.sleep(0.2)
        client.sendall(b"st: x\r\nConnection: close\r\n\r\n")
        told, _ = ending(client)
    assert told.count(b"200 OK") == 2
    assert told.endswith(b"/2")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_half_a_request_ends(front: Front, sent: bytes) -> None:
    with connect(front) as client:
        client.sendall(sent)
        told, seconds = ending(client)
    assert told.startswith(b"HTTP/1.1 408 ")
    assert 0.3 < seconds < 5


def test_half_a_second_request_ends(front: Front) -> None:
    with connect(front) as client:
        client.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HT")
        told, seconds = ending(client)
    assert b"408 " in told
    assert seconds < 5


def test_a_head_that_trickles_ends(front: Front) -> None:
    began = time.monotonic()
    with connect(front) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        send_until_refused(client, b"a: b\r\n", 0.05)
    assert time.monotonic() - began < 5


def test_an_endless_head_ends_after_kilobytes(front: Front) -> None:
    with connect(front) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        sent = send_until_refused(client, b"a: " + b"b" * 1000 + b"\r\n")
    assert sent < 16 << 20  # most of it in the system's buffers
    with connect(front) as client:
        client.sendall(b"GET / HTTP/1.1\r\na: " + b"b" * 4096)
        told, _ = ending(client)
    assert told.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"transfer-encoding: chunked"])
def test_bodies_are_refused(front: Front, field: bytes) -> None:
    with connect(front) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\nhello")
        told, _ = ending(client)
    assert told.startswith(b"HTTP/1.1 413 ")
    with connect(front) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        told, _ = ending(client)
    assert told.endswith(b"/x")


def test_an_answer_that_nobody_takes_ends(front: Front) -> None:
    with connect(front) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2.5)
        told, seconds = ending(client)
    assert len(told) < LARGE
    assert seconds < 5


def test_more_connections_than_allowed_are_told(front: Front) -> None:
    time.sleep(1.0)  # those of other tests have ended
    clients = [connect(front) for _ in range(40)]
    told = [ending(client)[0][:12] for client in clients]
    assert told.count(b"HTTP/1.1 408") == 20
    assert told.count(b"HTTP/1.1 503") == 20
    for client in clients:
        client.close()


def test_a_port_that_is_taken_and_a_server_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StrataError, match=r"--port \d+: cannot listen: "):
            Front("127.0.0.1", port, 1)
    front = Front("127.0.0.1", 0, port, LIMITS)
    with connect(front) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        told, _ = ending(client)
    assert told.startswith(b"HTTP/1.1 502 ")
    front.close()
