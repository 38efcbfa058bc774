"""HTTP for the data plane: reading a request and writing an answer over bare ASGI.

The data plane stands outside Django's middleware, so what middleware would do is done here: caps
on headers and body, a deadline for a body that trickles in, `nosniff`, `x-request-id`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Protocol

import msgspec

from gpucloud.lib.asgi import Message, Receive, Scope, Send
from inference.openai.chunks import encode
from inference.openai.errors import ApiError

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024


class Server(Protocol):
    """What a server may offer beyond ASGI (`gpucloud.onewrite`)."""

    def take_body(self) -> bytes | None:
        """Return the request's whole body if it has come; None: ask `receive`."""

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Send status, header lines and body in one write; False: use `send`."""

    def abort(self) -> None:
        """Drop the connection at once."""


class DirectRequest(Server, Protocol):
    """A POST that has come whole, and that can be answered in one piece without ASGI."""

    url: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    on_gone: Callable[[], None] | None
    """Called once if the client leaves before it has its answer."""


class ClientGone(Exception):
    """The client left before its request was read."""


class Exchange(msgspec.Struct, eq=False):
    """One request and its answer."""

    request_id: str
    method: str
    path: str
    _headers: list[tuple[bytes, bytes]]
    _receive: Receive
    _send: Send
    _server: Server | None
    started_at_s: float = msgspec.field(default_factory=time.monotonic)
    status: int = 0
    started: bool = False
    """Whether the status line has left; from then on an error is an event, not a status."""
    writing_since_s: float = 0.0
    """Since when a piece of the stream waits for the socket to take it (monotonic); 0 when none does."""
    written_at_s: float = 0.0
    """When the last piece was handed over that has been taken."""
    content_type: bytes = b""
    content_encoding: bytes = b""
    told: bytes = b""
    """Header lines that whatever is answered carries besides its own: where the key stands with its limits."""
    _authorization: bytes | None = None

    @property
    def receive(self) -> Receive:
        """The connection's `receive`, for a watcher."""
        return self._receive

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return (time.monotonic() - self.started_at_s) * 1000

    def read_headers(self) -> None:
        """Note the headers that matter; refuse too many or too large ones."""
        headers = self._headers
        found = dict(headers)
        if len(headers) > MAX_HEADERS or sum(map(len, chain.from_iterable(headers))) > MAX_HEADER_BYTES:
            raise ApiError(
                431, f"The headers are too large: at most {MAX_HEADERS} and {MAX_HEADER_BYTES} bytes in all."
            )
        self._authorization = found.get(b"authorization")
        if len(found) != len(headers) and sum([name == b"authorization" for name, _ in headers]) > 1:
            raise ApiError(400, "Send one Authorization header, not several.")
        self.content_type = found.get(b"content-type", b"")
        self.content_encoding = found.get(b"content-encoding", b"")

    def bearer(self) -> bytes | None:
        """Return the secret of `Authorization: Bearer …`; None when there is none."""
        if self._authorization is None:
            return None
        scheme, _, secret = self._authorization.partition(b" ")
        secret = secret.strip()
        return secret if scheme.lower() == b"bearer" and secret else None

    async def read_body(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """Return the whole body; refuse one that is too large or too slow."""
        # The whole body has nearly always come with the headers: then nothing is waited for.
        body = None if self._server is None else self._server.take_body()
        if body is None:
            body = await self._read_slowly(max_bytes=max_bytes, timeout_s=timeout_s)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body

    async def _read_slowly(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """Return the body, or at least so much of it as is too large."""
        length = dict(self._headers).get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > max_bytes):
            raise _too_large(max_bytes)
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(timeout_s):
                while more and size <= max_bytes:
                    message = await self._receive()
                    parts.append(_part(message))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(
                408,
                f"The request body did not arrive within {timeout_s:g} s.",
                code="request_timeout",
                headers=((b"connection", b"close"),),
            ) from None
        return b"".join(parts)

    async def send_json(self, value: object, *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with one JSON body."""
        body = encode(value)
        # Headers of its own may say that the connection is to close, which takes ASGI's server to do.
        if not headers and self.answer(body, status=status):
            return
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, b"application/json", (length, (b"cache-control", b"no-store"), *headers))
        await self._send({"type": "http.response.body", "body": body})

    def answer(self, body: bytes, *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
        """Answer with one JSON body at once; False where the server cannot, or the client is gone."""
        if self._server is None:
            return False
        self.status = status
        self.started = True
        head = _JSON_HEAD % (len(body), self.request_id.encode(), self.elapsed_ms) + self.told
        for header in headers:
            head += b"%b: %b\r\n" % header
        return self._server.answer(status, head, body)

    def answer_error(self, error: ApiError) -> bool:
        """Answer with an error at once, in OpenAI's envelope; False as `answer` does."""
        return self.answer(encode(error.envelope), status=error.status, headers=error.headers)

    async def send_error(self, error: ApiError) -> None:
        """Answer with an error, in OpenAI's envelope."""
        await self.send_json(error.envelope, status=error.status, headers=error.headers)

    async def start_stream(self) -> None:
        """Answer that an SSE stream follows."""
        await self._start(200, b"text/event-stream; charset=utf-8", _STREAM_HEADERS)

    async def send_part(self, body: bytes) -> None:
        """Send a piece of the stream; returns when the socket has room for more."""
        self.writing_since_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self.written_at_s, self.writing_since_s = self.writing_since_s, 0.0

    async def end_stream(self, body: bytes = b"") -> None:
        """Send the last piece and end the stream well-formed."""
        self.writing_since_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": body})
        self.writing_since_s = 0.0

    def abort(self) -> None:
        """Drop the connection with what it has not taken, where the server can; a `send` that waits returns."""
        if self._server is not None:
            self._server.abort()

    async def _start(self, status: int, content_type: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", content_type),
                    (b"x-request-id", self.request_id.encode()),
                    (b"openai-processing-ms", b"%d" % self.elapsed_ms),
                    (b"x-content-type-options", b"nosniff"),
                    *split_lines(self.told),
                    *headers,
                ],
            }
        )


def open_exchange(scope: Scope, receive: Receive, send: Send, request_id: str) -> Exchange:
    """Return the exchange for a connection's next request."""
    server = getattr(send, "__self__", None)
    if not hasattr(server, "take_body"):
        server = None
    return Exchange(request_id, scope["method"], scope["path"], scope["headers"], receive, send, server)


def split_lines(lines: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return header lines as ASGI wants them: pairs of name and value."""
    return tuple([(name, value) for name, _, value in (line.partition(b": ") for line in lines.splitlines())])


def open_direct_exchange(request: DirectRequest, path: str, request_id: str) -> Exchange:
    """Return the exchange for a request without ASGI, which therefore can only be answered in one piece."""
    return Exchange(request_id, "POST", path, request.headers, _never, _never, request)


async def _never(*_: object) -> Any:
    raise RuntimeError("There is no ASGI behind this request.")


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    return body


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {max_bytes} bytes.",
        code="request_too_large",
        headers=((b"connection", b"close"),),
    )


_JSON_HEAD = (
    b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
    b"openai-processing-ms: %d\r\nx-content-type-options: nosniff\r\ncache-control: no-store\r\n"
)
_STREAM_HEADERS = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
