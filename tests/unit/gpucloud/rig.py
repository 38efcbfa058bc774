"""A running server with our protocol, and a client on a bare socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn

from gpucloud.guard import GuardedProtocol
from gpucloud.lib.asgi import Receive, Scope, Send
from gpucloud.onewrite import OneWriteProtocol
from inference.openai.http import Exchange, open_exchange
from tests.client import until

KEEP_ALIVE_S = 0.2
GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"

Application = Any
"""One that may take requests."""
Handler = Callable[[Exchange, Any], Awaitable[None]]


class Peer:
    """A client on a bare socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    def get(self, path: str = "") -> None:
        self.send(GET % path.encode())

    async def answer(self, *, bodiless: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the next answer."""
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            assert head[0].startswith("HTTP/1.1 "), head[0]
            status = int(head[0].split()[1])
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            length = 0 if bodiless or status == 100 else int(headers["content-length"])
            return status, headers, await self._reader.readexactly(length)

    async def rest(self) -> bytes:
        """Return what comes until the server closes."""
        async with asyncio.timeout(5):
            return await self._reader.read()

    @property
    def closed(self) -> bool:
        """Whether the server has closed."""
        return self._reader.at_eof()


class Server:
    """A running uvicorn with our protocol and an application of the test's."""

    def __init__(self, port: int, uvicorn_server: uvicorn.Server) -> None:
        self.port = port
        self.uvicorn = uvicorn_server

    @property
    def protocols(self) -> list[OneWriteProtocol]:
        return list(self.uvicorn.server_state.connections)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Peer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Peer(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass  # reset by the server: gone is gone


@asynccontextmanager
async def serve(handle: Handler | Application, *, keep_alive_s: float = 60.0, **bounds: Any) -> AsyncIterator[Server]:
    """Run a server whose application hands each request to `handle`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await greet_late(receive, send)
            return
        exchange = open_exchange(scope, receive, send, "req_1")
        exchange.read_headers()
        await handle(exchange, getattr(send, "__self__", None))

    config = uvicorn.Config(
        handle if hasattr(handle, "take") else app,
        interface="asgi3",
        http=partial(GuardedProtocol, **bounds),  # type: ignore[arg-type]
        ws="websockets-sansio",
        lifespan="off",
        timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server._serve([listener]))
    try:
        await until(lambda: server.started, "the server runs")
        yield Server(listener.getsockname()[1], server)
    finally:
        server.should_exit = True
        await asyncio.wait_for(running, 5)
        listener.close()


async def greet_late(receive: Receive, send: Send) -> None:
    """Accept a WebSocket and say something when a plain connection would have been closed long since."""
    await receive()
    await send({"type": "websocket.accept"})
    await asyncio.sleep(3 * KEEP_ALIVE_S)
    await send({"type": "websocket.send", "text": "still here"})
    await receive()


async def echo(exchange: Exchange, cycle: Any) -> None:
    """Answer with the path and the body, in one write where that is possible."""
    body = await exchange.read_body(max_bytes=1_000_000, timeout_s=5)
    await exchange.send_json({"path": exchange.path, "body": body.decode()})


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path.encode(), len(body), lines, body)
