"""The fault proxy itself: each rule works, and without rules nothing changes."""

import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.exceptions import BotoCoreError

from tests.integration.faults import FaultProxy
from tests.integration.servers import BUCKET, S3Server

pytestmark = pytest.mark.integration
BODY = bytes(range(256)) * 400


class Plain(BaseHTTPRequestHandler):
    """Answers with BODY, or with the headers and the body that it was sent."""

    protocol_version = "HTTP/1.1"
    received: list[tuple[dict[str, str], bytes]]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_PUT(self) -> None:
        body = b""
        if "Transfer-Encoding" in self.headers:
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # as any store, it has no use for the half of something
                return
        self.received.append((dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def received() -> list[tuple[dict[str, str], bytes]]:
    return []


@pytest.fixture
def proxy(received: list[tuple[dict[str, str], bytes]]) -> Iterator[FaultProxy]:
    """A proxy before a plain HTTP server that keeps what it ``received``."""
    handler = type("Handler", (Plain,), {"received": received})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with FaultProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
        yield proxy
    server.shutdown()
    server.server_close()


def get(proxy: FaultProxy, path: str = "/x", timeout: float = 10) -> bytes:
    with urllib.request.urlopen(proxy.endpoint + path, timeout=timeout) as response:
        return bytes(response.read())


def connection(proxy: FaultProxy) -> HTTPConnection:
    return HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)


def test_without_rules_everything_passes(
    proxy: FaultProxy, received: list[tuple[dict[str, str], bytes]]
) -> None:
    assert get(proxy) == BODY
    http = connection(proxy)
    http.request("PUT", "/a?b=c", BODY, {"X-Mixed-Case": "Kept", "Expect": "100-continue"})
    assert http.getresponse().read() == b""
    http.request("PUT", "/again", iter([b"one", b"two"]), encode_chunked=True)
    assert http.getresponse().read() == b""
    (headers, body), (_, second) = received
    assert body == BODY
    assert second == b"onetwo"
    assert headers["X-Mixed-Case"] == "Kept"
    assert headers["Host"] == proxy.endpoint.removeprefix("http://")
    assert proxy.counts == {"GET": 1, "PUT": 2}
    assert proxy.bytes("GET") == (0, len(BODY))
    assert proxy.bytes("PUT", "^/a") == (len(BODY) + 6, 0)


def test_slow_down_answers_a_fraction_with_503(proxy: FaultProxy) -> None:
    rule = proxy.slow_down(0.25, seed=3)
    refused = 0
    for _ in range(80):
        http = connection(proxy)
        http.request("GET", "/x")
        response = http.getresponse()
        body = response.read()
        assert (response.status, body) == (200, BODY) or response.status == 503
        if response.status == 503:
            assert b"<Code>SlowDown</Code>" in body
            refused += 1
    assert refused == rule.hits
    assert 10 <= refused <= 30
    proxy.clear()
    assert get(proxy) == BODY


def test_truncated_bodies_promise_more_than_they_hold(proxy: FaultProxy) -> None:
    proxy.truncate(path="^/x$", times=2)
    assert get(proxy, "/other") == BODY
    for _ in range(2):
        with pytest.raises(IncompleteRead) as caught:
            get(proxy)
        assert caught.value.partial == BODY[: len(BODY) // 2]
    assert get(proxy) == BODY


def test_stalled_bodies_end_with_the_patience_of_the_client(proxy: FaultProxy) -> None:
    rule = proxy.stall(times=1)
    with pytest.raises(TimeoutError):
        get(proxy, timeout=0.5)
    assert rule.hits == 1
    assert get(proxy) == BODY


def test_throttle_and_delay_take_their_time(proxy: FaultProxy) -> None:
    proxy.throttle(len(BODY) / 0.5, path="^/slow")
    proxy.delay(0.5, path="^/late")
    for path in ("/slow", "/late"):
        started = time.monotonic()
        assert get(proxy, path) == BODY
        assert time.monotonic() - started >= 0.45


@pytest.mark.parametrize(
    ("when", "arrived", "answered"), [("before", 0, 0), ("middle", 0, 0), ("after", 1, 0)]
)
def test_a_cut_at_each_point_of_an_upload(
    proxy: FaultProxy, received: list[object], when: str, arrived: int, answered: int
) -> None:
    called: list[str] = []
    proxy.call(called.append, method="PUT", path="^/data", when=when, cut=True)  # type: ignore[arg-type]
    http = connection(proxy)
    http.request("PUT", "/other", BODY)
    http.getresponse().read()
    http.request("PUT", "/data/x", BODY)
    with pytest.raises((RemoteDisconnected, ConnectionError)):
        http.getresponse()
    assert called == ["/data/x"]
    assert len(received) == 1 + arrived
    assert proxy.bytes("PUT", "^/data")[0] == {"before": 0, "middle": len(BODY) // 2}.get(
        when, len(BODY)
    )


def test_the_middle_of_a_download(proxy: FaultProxy) -> None:
    called: list[str] = []
    proxy.call(called.append, method="GET", path="", when="middle", times=None)
    assert get(proxy) == get(proxy) == BODY
    assert called == ["/x", "/x"]


def test_errors_of_callbacks_are_not_lost() -> None:
    def fail(path: str) -> None:
        raise ValueError(path)

    def ask() -> None:
        with FaultProxy("http://127.0.0.1:9") as proxy:
            proxy.call(fail, method="GET", path="")
            with pytest.raises((RemoteDisconnected, ConnectionError)):
                get(proxy)

    with pytest.raises(ValueError, match="/x"):
        ask()


@pytest.mark.parametrize("store", ["moto_server", "swift_server"])
def test_s3_through_the_proxy(store: str, request: pytest.FixtureRequest) -> None:
    """Signatures hold, and half an upload leaves no object behind."""
    server: S3Server = request.getfixturevalue(store)
    with FaultProxy(server.endpoint) as proxy:
        fs = server.filesystem(proxy.endpoint, retries={"total_max_attempts": 1})
        fs.retries = 1  # s3fs has its own beside botocore's, which has none here
        large = os.urandom(300_000)
        fs.pipe_file(f"{BUCKET}/proxy/large", large)
        assert fs.cat_file(f"{BUCKET}/proxy/large") == large
        assert fs.cat_file(f"{BUCKET}/proxy/large", start=1000, end=2000) == large[1000:2000]
        assert fs.info(f"{BUCKET}/proxy/large")["size"] == len(large)
        assert fs.ls(f"{BUCKET}/proxy", detail=False) == [f"{BUCKET}/proxy/large"]
        assert proxy.counts["PUT"] == 1
        assert proxy.bytes("PUT") == (len(large), 0)
        rule = proxy.call(
            lambda path: None, method="PUT", path="half$", when="middle", times=None, cut=True
        )
        with pytest.raises((OSError, BotoCoreError)):
            fs.pipe_file(f"{BUCKET}/proxy/half", large, mode="create")
        assert rule.hits >= 1
        proxy.slow_down(0.3, seed=1)
        fs.retries = 10
        for number in range(20):
            part = fs.cat_file(f"{BUCKET}/proxy/large", start=number, end=100)
            assert part == large[number:100]
    assert not server.filesystem().exists(f"{BUCKET}/proxy/half")
