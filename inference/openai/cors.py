"""CORS for `/v1`: which pages of other origins may call it from a browser.

The data plane is outside Django's middleware, so this is ours. It stands around the data plane, and
only where origins are configured: off, it costs nothing, and a request without an `Origin` header
costs one look at its header names. Cookies mean nothing on `/v1`, so credentials are never allowed;
a page needs an API key, which it shows in the `Authorization` header.

A page of an unknown origin is answered as any client would be, without a word of CORS: its browser
then keeps the answer from it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from gpucloud.lib.asgi import Message, Receive, Scope, Send
from inference.openai.http import DirectRequest

METHODS = b"GET, POST"
MAX_AGE_S = 7200
"""As long as any browser remembers a preflight."""
MAX_ASKED_BYTES = 4096

_HEADERS = frozenset(
    {b"accept", b"accept-language", b"authorization", b"content-language", b"content-type", b"idempotency-key"}
)
_FAMILIES = re.compile(rb"(?:openai|x-stainless)-[a-z0-9-]{1,64}")
_EXPOSED = b", ".join(
    [
        b"openai-processing-ms",
        b"retry-after",
        b"retry-after-ms",
        *[b"x-ratelimit-%b-%b" % (a, b) for a in (b"limit", b"remaining", b"reset") for b in (b"requests", b"tokens")],
        b"x-request-id",
        b"x-should-retry",
    ]
)


class Plane(Protocol):
    """The data plane, with or without this around it."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve a request."""

    def take(self, request: DirectRequest) -> bool:
        """Take on a request that has come whole, or return False."""


def allow_origins(application: Plane, origins: Sequence[str]) -> Plane:
    """Return the data plane, open to pages of these origins; with none of them, as it is."""
    return Cors(application, origins) if origins else application


class Cors:
    """The data plane as browsers may see it."""

    def __init__(self, application: Plane, origins: Sequence[str]) -> None:
        self._application = application
        self._origins = frozenset([origin.encode() for origin in origins])

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        for name, _ in scope["headers"]:
            if name == b"origin":
                return self._serve_page(scope, receive, send)
        return self._application(scope, receive, send)

    def take(self, request: DirectRequest) -> bool:
        """Offer a request that no page has sent to the data plane; a page's answer takes more than one piece."""
        for name, _ in request.headers:
            if name == b"origin":
                return False
        return self._application.take(request)

    async def _serve_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        origin = origins[0] if len(origins) == 1 and origins[0] in self._origins else None
        headers = dict(scope["headers"])
        if origin and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await _answer_preflight(send, origin, headers.get(b"access-control-request-headers", b""))
            return
        await self._application(scope, receive, _Labelled(send, origin).send)


class _Labelled:
    """A server's `send` that adds what a browser must be told; with all that the server offers beyond ASGI."""

    def __init__(self, send: Send, origin: bytes | None) -> None:
        self._send = send
        self._server: Any = getattr(send, "__self__", None)
        self._headers = [(b"vary", b"Origin")]
        if origin:
            self._headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _EXPOSED),
            ]

    async def send(self, message: Message) -> None:
        """Send a message of ASGI."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *self._headers]}
        await self._send(message)

    def take_body(self) -> bytes | None:
        """Return the whole body, where the server has it and can tell."""
        body: bytes | None = self._server.take_body() if hasattr(self._server, "take_body") else None
        return body

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Leave it to `send`."""
        return False

    def abort(self) -> None:
        """Drop the connection, where the server can."""
        if hasattr(self._server, "abort"):
            self._server.abort()


async def _answer_preflight(send: Send, origin: bytes, asked: bytes) -> None:
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", b", ".join(sorted(_HEADERS | _known(asked)))),
        (b"access-control-max-age", b"%d" % MAX_AGE_S),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _known(asked: bytes) -> set[bytes]:
    """Return which of the headers that a page would send are of the families that OpenAI's clients use."""
    names = [name.strip().lower() for name in asked[:MAX_ASKED_BYTES].split(b",")]
    return {name for name in names if _FAMILIES.fullmatch(name)}
