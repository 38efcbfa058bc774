"""For browser tests: a live site, a board to publish to, and a tab that complains."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path
from playwright.async_api import Browser, Page

from cluster.domain import ClusterSnapshot
from cluster.engine.board import SnapshotBoard
from cluster.panel_consumer import PanelConsumer
from gpucloud.doors import own_pages_only


class _Server(uvicorn.Server):
    """Says when its port is open, and in which loop it runs."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.ready.set()


class LiveSite:
    """The site in a thread of its own, with its own event loop."""

    def __init__(self) -> None:
        self.board = SnapshotBoard()
        config = uvicorn.Config(
            _site(self.board),
            port=0,
            lifespan="off",
            ws="websockets-sansio",
            log_level="warning",
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, name="live-site")

    @property
    def url(self) -> str:
        """Where the site is reached, without a slash at the end."""
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def publish(self, snapshot: ClusterSnapshot) -> None:
        """Put a snapshot on the board, in the board's own loop."""
        self._call(lambda: self.board.publish(snapshot))

    def drop_sockets(self) -> None:
        """Cut every connection without a closing handshake, as a dying network would."""

        def abort_all() -> None:
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()

        self._call(abort_all)

    def start(self) -> None:
        """Serve, and return once the port is open."""
        self._thread.start()
        if not self._server.ready.wait(10):
            raise RuntimeError("The live site did not start within 10 s.")

    def stop(self) -> None:
        """Stop serving; idempotent."""
        self._server.should_exit = True
        self._thread.join(10)

    def _call(self, function: Callable[[], Any]) -> None:
        self._server.loop.call_soon_threadsafe(function)


def _site(board: SnapshotBoard) -> Any:
    django = get_asgi_application()

    async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await django(scope | {"gpucloud.board": board}, receive, send)

    sockets = URLRouter([path("ws/panels/", PanelConsumer.as_asgi(board=board))])
    return ProtocolTypeRouter({"http": http, "websocket": own_pages_only(AuthMiddlewareStack(sockets))})


@pytest.fixture
def live_site(transactional_db: None) -> Iterator[LiveSite]:
    """A running site on a free port, with the test's database."""
    site = LiveSite()
    site.start()
    yield site
    site.stop()


@pytest.fixture
async def page(chromium: Browser, live_site: LiveSite) -> AsyncIterator[Page]:
    """A tab that fails the test when the console complains or another origin is asked."""
    complaints: list[str] = []
    context = await chromium.new_context(viewport={"width": 1280, "height": 800})
    tab = await context.new_page()
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request", lambda sent: None if sent.url.startswith(live_site.url) else complaints.append(f"asked {sent.url}")
    )
    await context.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
    )
    yield tab
    await context.close()
    assert complaints == []
