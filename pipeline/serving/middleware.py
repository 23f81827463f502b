"""Middleware of every request: HEAD, percent-encoded keys, common headers, metrics."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from .metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Scripts, styles and connections come from this server only, pictures also from blob: and data:.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_WITH_KEYS = ("/v1/images/", "/v1/originals/")


class Heads:
    """Answers HEAD like GET, without the body (RFC 9110, 9.3.2). The routes know only GET."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


class RawKeys:
    """Keeps the percent-encoding of paths with keys.

    A key may hold slashes: ``a%2Finfo`` is the picture ``a/info``, and ``a/info`` is the metadata
    of ``a``. Routes get the path as it was sent and decode the key themselves.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Below a prefix (Serve's route_prefix, uvicorn's --root-path) both paths begin with it.
        root = scope.get("root_path", "")
        if scope["type"] == "http" and scope["path"].removeprefix(root).startswith(_WITH_KEYS):
            raw = scope.get("raw_path")
            sent = raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])
            scope = {**scope, "path": sent}
        await self._app(scope, receive, send)


class Observed:
    """Counts requests and their seconds by route, and adds the headers of all answers."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *_HEADERS]
                if status == 405:  # the routes know only GET; see Heads
                    headers = [one for one in headers if one[0] != b"allow"]
                    headers.append((b"allow", b"GET, HEAD"))
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            # The route's pattern, not the path: otherwise each key would become a metric.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
