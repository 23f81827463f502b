"""A preview server without a dataset: any number of entries, drawn pictures, faults on demand.

It answers what ``docs/serving.md`` describes, as far as the page asks for it, and keeps a list of
what it was asked, as it came over the wire (``%2F`` is not a slash there).
"""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image

STATIC = Path(__file__).parents[2] / "pipeline" / "serving" / "static"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# what the real server sends
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
LAYERS = 6
BYTES = (300, 900, 3_000, 12_000, 40_000, 120_000)  # cumulative
PSNR = (21.5, 26.25, 31.75, 38.0, 45.5, None)
WIDTH, HEIGHT = 768, 512


def stream_color(layers: int) -> tuple[int, int, int]:
    """What a picture of so many layers is filled with."""
    return (40 * layers, 255 - 40 * layers, 60)


ORIGINAL_COLOR = (250, 250, 0)


@dataclass(frozen=True)
class Request:
    path: str  # as it came, encoded
    query: dict[str, str]
    time: float  # seconds, monotonic

    @property
    def key(self) -> str | None:
        """The key of a request for a picture."""
        head, _, last = self.path.rpartition("/")
        return unquote(last) if head == "/v1/images" else None

    @property
    def layers(self) -> int:
        return int(self.query.get("layers", LAYERS))


@dataclass
class FakeServer:
    """What the server has and how it behaves; the attributes may be changed while it runs."""

    keys: list[str]
    originals: bool = True
    stored: int = LAYERS  # layers of each picture; the original takes the place of the others
    size: tuple[int, int] = (WIDTH, HEIGHT)
    measured: bool = True  # PSNR
    captions: dict[str, str] = field(default_factory=dict)  # by key
    labels: dict[str, str] = field(default_factory=dict)
    fields: list[dict[str, Any]] = field(default_factory=list)  # of each picture
    formats: list[str] = field(default_factory=lambda: ["jpeg", "png"])
    unread: int = 0  # pictures of a page whose captions are not searched
    quick_layers: int = LAYERS
    scanned: int = 1_000_000  # keys that a page of a search looks at, at most
    delay: Callable[[Request], float] = lambda request: 0.0  # seconds
    fault: Callable[[Request], tuple[int, dict[str, str]] | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    # requests for pictures that are being answered now, and the most at one time
    running: int = 0
    busiest: int = 0
    answered: float = 0.0  # when the last of them was, monotonic
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pictures(self) -> list[Request]:
        """The requests for decoded pictures, in their order."""
        return [one for one in list(self.requests) if one.key is not None]

    def rests(self, seconds: float = 0.3) -> bool:
        """Whether nothing is asked for so long, after what was asked before has been answered."""
        with self.lock:
            last = self.requests[-1].time if self.requests else 0.0
            return not self.running and time.monotonic() - max(last, self.answered) > seconds

    def entry(self, place: int) -> dict[str, Any]:
        return {
            "key": self.keys[place],
            "width": self.size[0],
            "height": self.size[1],
            "layers": self.stored,
            "cumulative_bytes": BYTES[: self.stored],
            "psnr": PSNR[: self.stored] if self.measured else None,
            "has_original": self.originals,
            "caption": self.captions.get(self.keys[place]),
            "label": self.labels.get(self.keys[place]),
        }

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        limit, search = int(query.get("limit", 50)), query.get("search", "").lower()
        step = -1 if query.get("backwards") == "true" else 1
        at = len(self.keys) - 1 if step < 0 else 0
        if "next_to" in query:
            at = self.keys.index(query["next_to"]) + step
        at = int(query.get("after", at))
        items: list[dict[str, Any]] = []
        looked = 0
        while 0 <= at < len(self.keys) and looked < self.scanned and len(items) < limit:
            texts = [self.keys[at]]
            if query.get("captions") == "true":
                texts += [known.get(texts[0], "") for known in (self.captions, self.labels)]
            if any(search in text.lower() for text in texts):
                items.append(self.entry(at))
            at, looked = at + step, looked + 1
        more = 0 <= at < len(self.keys)
        return {"items": items, "next": str(at) if more else None, "unread": self.unread}

    def info(self, key: str) -> dict[str, Any]:
        pixels = self.size[0] * self.size[1]
        replaced = self.originals and self.stored < LAYERS
        return self.entry(self.keys.index(key)) | {
            "original_from": self.stored + 1 if replaced else None,
            "fields": {"items": self.fields, "more": 0},
            "bpp": [8 * total / pixels for total in BYTES[: self.stored]],
            "source_format": "png",
            "source_bytes": 600_000,
            "model_id": "0123456789abcdef",
            "codec": "uqdm",
            "notes": "orientation applied",
        }


@cache
def draw(color: tuple[int, int, int], side: int) -> bytes:
    size = (side, max(1, side * HEIGHT // WIDTH))
    with io.BytesIO() as file:
        Image.new("RGB", size, color).save(file, "PNG")
        return file.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        request = Request(split.path, query, time.monotonic())
        with self.fake.lock:
            self.fake.requests.append(request)
            self.fake.running += request.key is not None
            self.fake.busiest = max(self.fake.busiest, self.fake.running)
        try:
            self.answer(request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page no longer wanted it
        finally:
            with self.fake.lock:
                self.fake.running -= request.key is not None
                self.fake.answered = time.monotonic()

    def answer(self, request: Request) -> None:
        time.sleep(self.fake.delay(request))
        if fault := self.fake.fault(request):
            status, headers = fault
            if status == 0:  # as a server that is gone: no answer at all
                self.close_connection = True
                return
            self.send_json({"detail": f"fault {status}"}, status, headers)
            return
        parts = request.path.split("/")[1:]
        if request.path == "/":
            self.send_file(STATIC / "index.html")
        elif parts[0] == "static" and (STATIC / parts[-1]).is_file():
            self.send_file(STATIC / parts[-1])
        elif request.path == "/v1/dataset":
            told = {"name": "fake", "pictures": len(self.fake.keys), "layers": LAYERS}
            told |= {"quick_layers": self.fake.quick_layers, "version": "v1"}
            told |= {"captions": len(self.fake.captions), "formats": self.fake.formats}
            self.send_json(told | {"codec": "uqdm", "model_id": "0123456789abcdef"})
        elif request.path == "/v1/images":
            self.send_json(self.fake.page(request.query))
        elif unquote(parts[2]) not in self.fake.keys:
            self.send_json({"detail": "no picture has this key"}, 404)
        elif parts[-1] == "info":
            self.send_json(self.fake.info(unquote(parts[2])))
        elif parts[1] == "originals":
            self.send_bytes(draw(ORIGINAL_COLOR, WIDTH), "image/png")
        else:
            width = self.fake.size[0]
            side = min(int(request.query.get("max_side", width)), width)
            used = min(request.layers, self.fake.stored)
            told = {"X-Strata-Layers": str(used), "X-Strata-Bytes": str(BYTES[used - 1])}
            color = stream_color(used)
            if request.layers > used and self.fake.originals:
                told |= {"X-Strata-Original": "true", "X-Strata-Bytes": "600000"}
                color = ORIGINAL_COLOR
            self.send_bytes(draw(color, side), "image/png", headers=told)

    def send_file(self, path: Path) -> None:
        self.send_bytes(path.read_bytes(), TYPES[path.suffix])

    def send_json(
        self, told: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_bytes(json.dumps(told).encode(), "application/json", status, headers or {})

    def send_bytes(
        self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        sent = {"Content-Type": kind, "Content-Length": str(len(body))}
        sent |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        for name, value in (sent | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(keys: list[str]) -> Iterator[FakeServer]:
    """A server of these keys on a free port of this machine."""
    fake = FakeServer(keys)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
