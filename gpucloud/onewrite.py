"""What `serve` adds to uvicorn's HTTP protocol: the same, with less work for each request.

An ASGI answer is two messages. uvicorn checks each header with two patterns and writes head and body
apart, which on the data plane's busiest path is a third of what the whole server may cost. An
application that has its answer complete, and names of headers that are its own constants, may call
`answer` on the cycle behind its `send` instead, and `take_body` for a body that has come already. They
say so where that is not possible now, and messages are as good; under another server there are no such
methods, and nothing else changes. `abort` is what ASGI has no word for: it drops a client that never reads.

And a kept-alive connection has one timer that looks now and then, instead of one for each answer.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle


class OneWriteCycle(RequestResponseCycle):
    """One request and its answer, as uvicorn keeps them."""

    def take_body(self) -> bytes | None:
        """Return the request's whole body if it has come; None: ask `receive`."""
        if self.more_body or self.waiting_for_100_continue or self.disconnected:
            return None
        self.flow.resume_reading()
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        return body

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Send a whole answer; `head` is header lines, each with its CR LF, and has the content-length."""
        if self.response_started or self.disconnected or self.flow.write_paused or not self.keep_alive:
            return False
        if self.more_body or self.scope["method"] == "HEAD":
            return False
        self.response_started = self.response_complete = True
        self.transport.write(join_answer(status, head, self.default_headers, body))
        self.message_event.set()
        self.on_response()
        return True

    def abort(self) -> None:
        """Drop the connection at once, with what it has not taken."""
        self.transport.abort()


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with cycles that can answer in one piece."""

    _idle_since_s: float | None = None
    """When the last answer was complete (loop time); None while a request is under way."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # The one place that every cycle passes; to have another class made, a hundred lines of
        # uvicorn's would have to be repeated here.
        cycle.__class__ = OneWriteCycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        idle_since_s, self._idle_since_s = self._idle_since_s, None
        super().data_received(data)
        if self._idle_since_s is None and not self._is_answering():
            # No request, or none that is whole: it does not keep the connection open.
            self._idle_since_s = idle_since_s

    def _is_answering(self) -> bool:
        """Return whether a request has come that has no answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over; from now on its time is the WebSocket's affair."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().handle_websocket_upgrade()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle long enough; look at any other later."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        idle_s = 0.0 if self._idle_since_s is None else self.loop.time() - self._idle_since_s
        if idle_s >= self.timeout_keep_alive:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive - idle_s, self.timeout_keep_alive_handler
            )

    def _unset_keepalive_if_required(self) -> None:
        """Do nothing on a request; the timer ends with the connection."""
        if self.timeout_keep_alive_task is not None and self.transport.is_closing():
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None


def join_answer(status: int, head: bytes, own_headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return an answer in one piece; `head` is header lines, each with its CR LF."""
    return b"%b%b%b\r\n%b" % (STATUS_LINE[status], head, _encode(own_headers), body)


def _encode(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the server's own headers (the date) as lines; they are the same list for a second."""
    global _encoded
    if _encoded[0] is not headers:
        _encoded = headers, b"".join([b"%b: %b\r\n" % header for header in headers])
    return _encoded[1]


_encoded: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")
