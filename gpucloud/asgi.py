"""The ASGI entry point: four planes, and the life of the node behind them.

`/v1` comes first and is plain ASGI. It is told by its prefix before Channels' routers are asked: they
walk patterns and copy the scope, which on the busiest path is a twelfth of what a request may cost.
Sockets have a catch-all, for an unrouted one would be a traceback. Whatever is left is Django's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gpucloud.settings")
django_application = get_asgi_application()

# Everything below needs Django's registry, which the call above has filled.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.urls import re_path  # noqa: E402

from cluster.routing import panel_socket, worker_socket  # noqa: E402
from gpucloud.doors import believe_proxies, own_pages_only  # noqa: E402
from gpucloud.intake import take_in  # noqa: E402
from gpucloud.lib.asgi import Application, Receive, Scope, Send  # noqa: E402
from gpucloud.lifespan import Node  # noqa: E402
from gpucloud.probes import Probes  # noqa: E402
from inference.openai.http import DirectRequest  # noqa: E402


class Gpucloud:
    """The application: routes every connection, and starts its node when the server says so.

    A server that sends no lifespan (daphne) starts the node with its first connection.
    """

    def __init__(self) -> None:
        self.node: Node | None = None
        self._router: Application | None = None
        self._starting: asyncio.Lock | None = None

    # `asgiref` and uvicorn would take a plain `__call__` for an application of ASGI 2.
    _asgi_single_callable = True

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that serves a connection: not one around it, for each costs every step."""
        if scope["type"] == "http" and self.node is not None and _is_data_plane(scope["path"]):
            return self.node.data_plane(scope, receive, send)
        return self._serve(scope, receive, send)

    def take(self, request: DirectRequest) -> bool:
        """Take on a request that has come whole, to be answered in one piece; False: call for it."""
        return self.node is not None and self.node.data_plane.take(request)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        node = self.node or await self.start()
        if scope["type"] == "http" and _is_data_plane(scope["path"]):
            await node.data_plane(scope, receive, send)
        else:
            assert self._router is not None
            await self._router(scope, receive, send)

    async def start(self) -> Node:
        """Start the node once per event loop and return it."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self.node is None:
                node = Node()
                await node.start()
                self._router = build_router(node)
                self.node = node
        return self.node

    async def stop(self) -> None:
        """Stop the node; a new loop may start another."""
        node, self.node, self._router, self._starting = self.node, None, None, None
        if node is not None:
            await node.stop()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


def build_router(node: Node) -> Application:
    """Return the router over all planes but `/v1`."""
    board = node.runtime.board
    probes = Probes(node)

    async def people(scope: Any, receive: Any, send: Any) -> None:
        scope["gpucloud.board"] = board
        await django_application(scope, receive, send)

    # Channels routes ASGI applications by Django's `re_path`, whose types know views only.
    route: Any = re_path
    router: Application = ProtocolTypeRouter(
        {
            "http": URLRouter(
                [
                    route(r"^(?:healthz|readyz)$", probes),
                    route(r"", take_in(people, timeout_s=settings.BODY_TIMEOUT_S)),
                ]
            ),
            "websocket": URLRouter(
                [
                    route(
                        r"^ws/worker/$",
                        worker_socket(
                            node.runtime.gateway,
                            node.registrar,
                            hello_timeout_s=node.runtime.settings.hello_timeout_s,
                            max_sockets_per_token=settings.MAX_SOCKETS_PER_TOKEN,
                        ),
                    ),
                    route(r"^ws/panels/$", own_pages_only(AuthMiddlewareStack(panel_socket(board)))),
                    route(r"", refuse_socket),
                ]
            ),
        }
    )
    return believe_proxies(router, settings.TRUSTED_PROXIES)


def _is_data_plane(path: str) -> bool:
    return path.startswith("/v1/") or path == "/v1"


async def refuse_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket that no path leads to, before it is accepted: the server answers 403."""
    await receive()
    await send({"type": "websocket.close", "code": 4404})


application = Gpucloud()
