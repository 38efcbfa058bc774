"""What `serve` bears from clients that are slow, fat or confused; ASGI sees them too late, or never.

- A head must be whole within `header_timeout_s` of the connection, or of its first byte: 408, or closed
  without a word where nothing came.
- A head may have so many headers and bytes: 431, while it arrives; also for a WebSocket's handshake.
- A URL may have so many bytes: 414.
- What is not HTTP is answered in the same words as on `/v1`: 400, JSON, with an `x-request-id`.
- A body may take so many bytes on the wire, with all that a chunked one can be padded with.
- An answer before its whole request has come is the last on its connection. What the client still sends
  is thrown away for a while: to close at once would be a reset, which takes the answer back.

None of this costs a request that arrives in one piece more than a glance. How long a *body* may take is
said by those who read it: `inference.openai.http` and `gpucloud.intake`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gpucloud.direct import DirectProtocol
from gpucloud.lib.ids import make_id
from gpucloud.onewrite import OneWriteCycle

MAX_HEADERS = 100
MAX_HEAD_BYTES = 48 * 1024
MAX_URL_BYTES = 16 * 1024
MAX_PADDING = 8
"""How many bytes one byte of a body may take on the wire."""
LINGER_S = 5.0
LISTEN_S = 0.05
"""How long a loop that has just woken up needs at most to read what its sockets hold."""


class LateCycle(OneWriteCycle):
    """A request whose body did not come with its head."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and self.more_body:
            self.keep_alive = False
            self.transport = _Lingering(self.transport)  # type: ignore[assignment]
        await super().send(message)


class GuardedProtocol(DirectProtocol):
    """Our HTTP protocol, with bounds on what a connection may do before there is a request to judge."""

    def __init__(
        self, *arguments: Any, header_timeout_s: float = 15.0, max_body_bytes: int = 4 * 1024 * 1024, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self._header_timeout_s = header_timeout_s
        self._max_wire_bytes = MAX_PADDING * max_body_bytes
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = self._body_bytes = 0
        self._is_malformed = False
        self._deaf = False
        """Whether what still comes is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        before = self.heads
        super().data_received(data)
        if self._is_malformed:
            self._refuse_malformed(data)
            return
        if self.in_head:
            # The first read of a later request may hold the end of the one before, too.
            self._look_at_head(0 if self.heads != before and self.heads > 1 else len(data))
        elif self._head_timer is not None:
            self._forget_head()
        if self.cycle is not None and self.cycle.more_body:
            self._look_at_body(0 if self.heads != before else len(data))

    def handle_websocket_upgrade(self) -> None:
        """Hand a handshake over, unless it is too large."""
        self._forget_head()
        size = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            self._refuse(431, _TOO_LARGE)
        else:
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Note that this is not HTTP; what to say depends on what came."""
        self._is_malformed = True

    def linger(self) -> None:
        """Say that nothing more will come, and close once the client had time to hear it."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        self._forget_head()
        self.flow.resume_reading()
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if len(cycle.scope["raw_path"]) + len(cycle.scope["query_string"]) > MAX_URL_BYTES:
            self._refuse(414, f"The URL is too long: at most {MAX_URL_BYTES} bytes.")
            return
        super()._start_asgi_task(cycle, app)
        if cycle.scope is self.scope and not self.parser.should_upgrade():
            # Trailers of a chunked body come by the same way, and would be taken for headers.
            self.headers = []

    def _look_at_head(self, bytes_: int) -> None:
        if self.transport.is_closing() or self._deaf:
            return
        self._head_bytes += bytes_
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers or ()) > MAX_HEADERS:
            self._refuse(431, _TOO_LARGE)
        elif self._head_timer is None:
            self._await_head()

    def _look_at_body(self, bytes_: int) -> None:
        if self.cycle.response_complete:
            self.linger()
            return
        if self.cycle.__class__ is OneWriteCycle:
            self.cycle.__class__ = LateCycle
            self._body_bytes = 0
        self._body_bytes += bytes_
        if self._body_bytes > self._max_wire_bytes or len(self.headers) > MAX_HEADERS:
            self.transport.abort()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._header_timeout_s, self._miss_head)

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _miss_head(self) -> None:
        # Not judged at once: if this process was paused, the rest lies unread in the socket.
        self._head_timer = self.loop.call_later(LISTEN_S, self._cut_head)

    def _cut_head(self) -> None:
        self._head_timer = None
        if self._is_answering():
            self._await_head()  # a client may send its next request meanwhile; this one's turn is later
        elif self._head_bytes or self.heads:
            self._refuse(408, f"The request's headers did not arrive within {self._header_timeout_s:g} s.")
        else:
            self.transport.close()

    def _refuse_malformed(self, data: bytes) -> None:
        if _ODD_KEY.search(data):
            self._refuse(401, "Incorrect API key provided: it has characters that no key has.", "invalid_api_key")
        else:
            self._refuse(400, "Invalid HTTP request received.")

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        """Answer, and hear no more. An answer that is under way is not to be got into."""
        if self._is_answering():
            if self.pipeline or (self._direct is None and self.cycle.response_started):
                self.transport.close()
                return
            if self._direct is not None:
                self._abandon_direct()
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = _HEAD % (STATUS_LINE[status], len(body), make_id("req_").encode())
        self.transport.write(head + body)
        self.linger()


class _Lingering:
    """A connection for one last answer: closed later than it is told to."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()

    def close(self) -> None:
        protocol = self._transport.get_protocol()
        if isinstance(protocol, GuardedProtocol):
            protocol.linger()
        else:
            self._transport.close()


_TOO_LARGE = f"The request's headers are too large: at most {MAX_HEADERS} and {MAX_HEAD_BYTES} bytes in all."
_ODD_KEY = re.compile(rb"^authorization:[^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", re.IGNORECASE | re.MULTILINE)
_HEAD = (
    b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
    b"x-content-type-options: nosniff\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
)
