"""Requests without ASGI: what has come whole may be answered whole, with nothing made in between.

An application with a method `take` is offered each POST that has come in one piece, a `DirectRequest`,
before anything is made for it that ASGI wants: scope, cycle, event, task. What it takes it answers when it
likes, in one piece. What it does not take, and whatever has more parts to it (a body on its way, `Expect`,
an upgrade, a connection that is to close), goes the way of all requests, as if nothing had been.

While a request is taken `_direct` is set, and requests behind it wait in uvicorn's own pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gpucloud.onewrite import OneWriteProtocol, join_answer


class DirectRequest:
    """A request that has come whole, and its one answer."""

    __slots__ = ("_protocol", "body", "headers", "on_gone", "url")

    def __init__(self, protocol: DirectProtocol, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self._protocol = protocol
        self.url = url
        self.headers = headers
        self.body = b""
        self.on_gone: Callable[[], None] | None = None
        """Called once if the client leaves before it has its answer."""

    def take_body(self) -> bytes:
        """Return the whole body."""
        return self.body

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Send a whole answer, as a cycle does; False: the client is gone, or has one already."""
        return self._protocol.answer_directly(self, status, head, body)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._protocol.transport.abort()


class DirectProtocol(OneWriteProtocol):
    """Our HTTP protocol, with an application that may take requests."""

    _direct: DirectRequest | None = None
    """A request of which the head has come, or that was taken."""
    _pending = False
    """Whether it is the former, and what comes belongs to it."""
    _closes = False
    """Whether the connection ends with the answer to it."""
    heads = 0
    """Requests of which something has come."""
    in_head = True
    """Whether the next thing to come is a head, or the rest of one."""

    def on_message_begin(self) -> None:
        self.heads += 1
        self.in_head = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self.in_head = False
        parser = self.parser
        if (
            parser.get_method() == b"POST"
            and not self._is_answering()
            and parser.should_keep_alive()
            and not self.expect_100_continue
            and not parser.should_upgrade()
            and not self.flow.write_paused
        ):
            self._direct, self._pending = DirectRequest(self, self.url, self.headers), True
            self.headers = []  # trailers of a chunked body come by the same way, and are no headers
        else:
            self._open_cycle()

    def on_body(self, body: bytes) -> None:
        if self._pending and self._direct is not None:
            self._direct.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        request = self._direct
        if request is None or not self._pending:
            super().on_message_complete()
            return
        self._pending = False
        take: Callable[[DirectRequest], bool] | None = getattr(self.app, "take", None)
        if take is None or not take(request):
            self._withdraw(request)
            super().on_message_complete()

    def answer_directly(self, request: DirectRequest, status: int, head: bytes, body: bytes) -> bool:
        """Send the answer to a request that was taken."""
        if self._direct is not request:
            return False
        self._direct = None
        if self._closes:
            head += b"connection: close\r\n"
        self.transport.write(join_answer(status, head, self.server_state.default_headers, body))
        if self._closes:
            self.transport.close()
        self.on_response_complete()
        return True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._pending and self._direct is not None:
            self._withdraw(self._direct)  # its body is still on the way

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._abandon_direct()

    def shutdown(self) -> None:
        """Close the connection once what is under way on it has its answer."""
        if self._direct is None:
            super().shutdown()
        else:
            self._closes = True

    def _abandon_direct(self) -> None:
        """Tell whoever took a request that it needs no answer any more."""
        request, self._direct = self._direct, None
        if request is not None and request.on_gone is not None:
            request.on_gone()

    def _is_answering(self) -> bool:
        return self._direct is not None or super()._is_answering()

    def _withdraw(self, request: DirectRequest) -> None:
        """Serve a request that was not taken as any other."""
        self._direct, self._pending = None, False
        self.url, self.headers = request.url, request.headers
        self._open_cycle()
        super().on_body(request.body)

    def _open_cycle(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._direct is None:
            super()._start_asgi_task(cycle, app)
        else:
            # uvicorn queues what comes before the answer to a cycle; ours to a taken request is none.
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
