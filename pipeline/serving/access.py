"""Checks each request: its Host header, and a token if the server has one.

The check of Host prevents DNS rebinding: a web page anywhere can let its own host name point to
this machine, and then read with the visitor's browser what the server shows. The browser sends the
page's host name in Host. IP addresses cannot be rebound, so they are always allowed.
"""

import base64
import binascii
import hmac
import json
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from .middleware import App, Receive, Scope, Send

_OPEN = "/healthz"  # needs no token: for load balancers, and shows nothing
ANY_HOST = "*"


@dataclass(frozen=True)
class Access:
    """Who may send requests.

    ``hosts`` are the host names, beside localhost, that requests may name, or ``*`` for any.
    Clients must send ``token`` as ``Authorization: Bearer <token>`` or as the password of any user;
    None lets everybody in.
    """

    hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)

    def knows(self, host: str) -> bool:
        """Whether a Host header is an address, localhost or one of ``hosts``."""
        if ANY_HOST in self.hosts:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in map(str.lower, self.hosts):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header holds the token, if there is one."""
        if self.token is None:
            return True
        scheme, _, sent = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                sent = base64.b64decode(sent, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(sent.strip().encode(), self.token.encode())


OPEN_ACCESS = Access()


class Guard:
    """Refuses requests for other host names with 421, and those without the token with 401."""

    def __init__(self, app: App, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not self._access.knows(headers.get(b"host", "")):
            await _refuse(send, 421, "unknown host name: allow it with --host-names")
        elif path != _OPEN and not self._access.admits(headers.get(b"authorization", "")):
            asked = (b"www-authenticate", b'Basic realm="Strata: the token is the password"')
            await _refuse(send, 401, "a token is needed: Authorization: Bearer <token>", asked)
        else:
            await self._app(scope, receive, send)


async def _refuse(send: Send, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"detail": detail}).encode()
    sent = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})
