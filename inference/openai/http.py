"""HTTP for the data plane: reading a request and writing an answer over bare ASGI.

The data plane stands outside Django's middleware, so what middleware would do is done here: caps
on headers and body, a deadline for a body that trickles in, `nosniff`, `x-request-id`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from gpucloud.lib.asgi import Message, Receive, Scope, Send
from gpucloud.lib.ready import Rest, run_ready
from inference.openai.chunks import encode
from inference.openai.errors import ApiError

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024


class ClientGone(Exception):
    """The client left before its request was read."""


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_authorization",
        "_content_length",
        "_headers",
        "_receive",
        "_send",
        "content_encoding",
        "content_type",
        "method",
        "path",
        "request_id",
        "started",
        "started_at_s",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.request_id = request_id
        self.started_at_s = time.monotonic()
        self.status = 0
        self.started = False
        """Whether the status line has left; from then on an error is an event, not a status."""
        self.content_type = b""
        self.content_encoding = b""
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._authorization: list[bytes] = []
        self._content_length: int | None = None
        self._receive = receive
        self._send = send

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
        size = sum(map(len, found)) + sum(map(len, found.values()))
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            raise ApiError(
                431, f"The headers are too large: at most {MAX_HEADERS} and {MAX_HEADER_BYTES} bytes in all."
            )
        self._authorization = [value for name, value in headers if name == b"authorization"]
        self.content_type = found.get(b"content-type", b"")
        self.content_encoding = found.get(b"content-encoding", b"")
        length = found.get(b"content-length", b"")
        self._content_length = int(length) if length.isdigit() and len(length) < 16 else None

    def bearer(self) -> bytes | None:
        """Return the secret of `Authorization: Bearer …`; None when there is none."""
        if len(self._authorization) > 1:
            raise ApiError(400, "Send one Authorization header, not several.")
        if not self._authorization:
            return None
        scheme, _, secret = self._authorization[0].partition(b" ")
        secret = secret.strip()
        return secret if scheme.lower() == b"bearer" and secret else None

    async def read_body(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """Return the whole body; refuse one that is too large or too slow."""
        if self._content_length is not None and self._content_length > max_bytes:
            raise _too_large(max_bytes)
        try:
            # The whole body has nearly always come with the headers: then nothing is waited for.
            first = run_ready(self._receive())
            if not isinstance(first, Rest) and not first.get("more_body", False):
                parts = [_part(first)]
            else:
                async with asyncio.timeout(timeout_s):
                    parts = await self._read_parts(await first if isinstance(first, Rest) else first, max_bytes)
        except TimeoutError:
            raise ApiError(
                408,
                f"The request body did not arrive within {timeout_s:g} s.",
                code="request_timeout",
                headers=((b"connection", b"close"),),
            ) from None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body

    async def _read_parts(self, message: Message, max_bytes: int) -> list[bytes]:
        parts = [_part(message)]
        size = len(parts[0])
        while message.get("more_body", False) and size <= max_bytes:
            message = await self._receive()
            parts.append(_part(message))
            size += len(parts[-1])
        return parts

    async def send_json(self, value: object, *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with one JSON body."""
        body = encode(value)
        await self._start(status, b"application/json", ((b"content-length", b"%d" % len(body)), *headers))
        await self._send({"type": "http.response.body", "body": body})

    async def send_error(self, error: ApiError) -> None:
        """Answer with an error, in OpenAI's envelope."""
        await self.send_json(error.envelope, status=error.status, headers=error.headers)

    async def start_stream(self) -> None:
        """Answer that an SSE stream follows."""
        await self._start(200, b"text/event-stream; charset=utf-8", _STREAM_HEADERS)

    async def send_part(self, body: bytes) -> None:
        """Send a piece of the stream; returns when the socket has room for more."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self, body: bytes = b"") -> None:
        """Send the last piece and end the stream well-formed."""
        await self._send({"type": "http.response.body", "body": body})

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
                    *headers,
                ],
            }
        )


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


_STREAM_HEADERS = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
