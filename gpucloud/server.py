"""uvicorn with a listening socket and a shutdown of our own.

Why not uvicorn's: on SIGTERM it closes workers' sockets first and then waits for streams that can
no longer get a token, or kills them without their `finally`. So the node drains *before* uvicorn
hears of the signal: new requests get a 503, running ones finish, then the server goes.

The socket carries TCP_USER_TIMEOUT and keepalive, inherited by every connection: that is how a
client or worker that vanished without a word is noticed (Linux; elsewhere keepalive alone).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from gpucloud.asgi import Gpucloud
from gpucloud.guard import GuardedProtocol

BACKLOG = 2048
DEAD_PEER_MS = 15_000


class DrainingServer(uvicorn.Server):
    """A server whose first signal drains and whose second ends it."""

    def __init__(self, config: uvicorn.Config, application: Gpucloud, *, drain_s: float) -> None:
        super().__init__(config)
        self._application = application
        self._drain_s = drain_s
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; leave at once at the second."""
        # Called from a signal handler: between two bytecodes of the loop's thread, not in the loop.
        if self._loop is not None and self._drain is None and self._application.node is not None:
            self._loop.call_soon_threadsafe(self._start_drain, sig, frame)
        else:
            super().handle_exit(sig, frame)
            self.force_exit = True

    def _start_drain(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._drain_and_exit(sig, frame))

    async def _drain_and_exit(self, sig: int, frame: FrameType | None) -> None:
        node = self._application.node
        if node is not None:
            await node.drain(self._drain_s)
        super().handle_exit(sig, frame)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in (
            ("TCP_USER_TIMEOUT", DEAD_PEER_MS),
            ("TCP_KEEPIDLE", 5),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
        ):
            if option := getattr(socket, name, None):
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def run(
    application: Gpucloud, listener: socket.socket, *, drain_s: float, header_timeout_s: float, max_body_bytes: int
) -> None:
    """Serve until a signal ends it."""
    protocol: Any = partial(GuardedProtocol, header_timeout_s=header_timeout_s, max_body_bytes=max_body_bytes)
    config = uvicorn.Config(
        application,
        interface="asgi3",
        loop="uvloop",
        http=protocol,
        ws="websockets-sansio",
        ws_max_size=1024 * 1024,
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        # Streams that outlived the drain end here; the node has told their clients already.
        timeout_graceful_shutdown=2,
        access_log=False,
        log_config=None,
    )
    server = DrainingServer(config, application, drain_s=drain_s)
    # uvicorn raises the signal again once it is done; the drain was the answer to it.
    with contextlib.suppress(KeyboardInterrupt):
        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, handler)
    if not server.started:
        raise SystemExit(1)
