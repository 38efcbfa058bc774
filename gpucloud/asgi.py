"""The ASGI entry point: four planes, and the life of the node behind them.

`/v1` comes first and is plain ASGI; Channels' router is linear, so the busiest path must not walk
the others. Sockets have a catch-all, for an unrouted one would be a traceback. Whatever is left is
Django's.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gpucloud.settings")
django_application = get_asgi_application()

# Everything below needs Django's registry, which the call above has filled.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import re_path  # noqa: E402

from cluster.routing import panel_socket, worker_socket  # noqa: E402
from gpucloud.lib.asgi import Application, Receive, Scope, Send  # noqa: E402
from gpucloud.lifespan import Node  # noqa: E402
from gpucloud.probes import Probes  # noqa: E402


class Gpucloud:
    """The application: routes every connection, and starts its node when the server says so.

    A server that sends no lifespan (daphne) starts the node with its first connection.
    """

    def __init__(self) -> None:
        self.node: Node | None = None
        self._router: Application | None = None
        self._starting: asyncio.Lock | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        router = self._router or await self.start()
        await router(scope, receive, send)

    async def start(self) -> Application:
        """Start the node once per event loop and return the router before it."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._router is None:
                node = Node()
                await node.start()
                self.node = node
                self._router = build_router(node)
        return self._router

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
    """Return the router over a node's planes."""
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
                    route(r"^v1(?:/|$)", node.data_plane),
                    route(r"^(?:healthz|readyz)$", probes),
                    route(r"", people),
                ]
            ),
            "websocket": URLRouter(
                [
                    route(
                        r"^ws/worker/$",
                        worker_socket(
                            node.runtime.gateway, node.registrar, hello_timeout_s=node.runtime.settings.hello_timeout_s
                        ),
                    ),
                    route(r"^ws/panels/$", AllowedHostsOriginValidator(AuthMiddlewareStack(panel_socket(board)))),
                    route(r"", refuse_socket),
                ]
            ),
        }
    )
    return router


async def refuse_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket that no path leads to, before it is accepted: the server answers 403."""
    await receive()
    await send({"type": "websocket.close", "code": 4404})


application = Gpucloud()
