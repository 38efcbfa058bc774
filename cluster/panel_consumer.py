"""The browser's end of the live panels: `/ws/panels/?panels=workers,queue`, one socket per tab.

Text frames go one way, from us: HTML fragments that htmx morphs into the page by id. What they
hold is decided in `panels`; this file only waits, sends and lets go. The user is known once, at
connect; after that nothing here touches the database.

A tab that reads slowly holds up only itself: while its send is parked newer snapshots replace
each other on the board, and it continues with the latest one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer

from cluster.engine.board import SnapshotBoard
from cluster.panels import Audience, Painter, Painting, audience_for, parse_names

LOG = logging.getLogger(__name__)

NO_USER = 4401
UNKNOWN_PANEL = 4400
TRY_AGAIN = 1012

LIFE_S = 900.0
"""A socket is closed after this long; the tab reconnects, and so is authenticated anew."""


class PanelConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels has no types
    """Sends a tab the panels it asked for, whenever they change."""

    def __init__(self, *, board: SnapshotBoard, painter: Painter) -> None:
        super().__init__()
        self._board = board
        self._painter = painter
        self._pushing: asyncio.Task[None] | None = None

    @classmethod
    def as_asgi(cls, *, board: SnapshotBoard) -> Any:
        """Return the ASGI application; all its sockets share one painter."""
        return super().as_asgi(board=board, painter=Painter())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # Channels skips `disconnect` when a handler raises; `finally` runs whatever happened.
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._pushing is not None:
                self._pushing.cancel()
                await asyncio.wait([self._pushing])

    async def connect(self) -> None:
        """Refuse strangers and unknown panels before the handshake completes (HTTP 403)."""
        user = self.scope.get("user")
        if user is None or not (user.is_authenticated and user.is_active):
            await self.close(code=NO_USER)
            return
        query = parse_qs(self.scope.get("query_string", b"").decode("latin-1"))
        names = parse_names(query.get("panels", [""])[0])
        if names is None:
            await self.close(code=UNKNOWN_PANEL)
            return
        headers = dict(self.scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        audience = audience_for(user, host=host, secure=self.scope.get("scheme") == "wss")
        await self.accept()
        self._pushing = asyncio.create_task(self._push_for_a_while(names, audience), name="panel-push")

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Ignore what a tab says: there is nothing to ask for."""

    async def _push_for_a_while(self, names: tuple[str, ...], audience: Audience) -> None:
        try:
            async with asyncio.timeout(LIFE_S):
                await self._push(names, audience)
        except TimeoutError:
            await self.close(code=TRY_AGAIN)
        except OSError:
            pass  # the tab went away mid-send; its disconnect is on the way
        except Exception:
            LOG.exception("Drawing panels failed; the tab is asked to reconnect.")
            await self.close(code=TRY_AGAIN)

    async def _push(self, names: tuple[str, ...], audience: Audience) -> None:
        shown: dict[str, Painting] = {}
        snapshot = self._board.latest
        while True:
            painted = {name: self._painter.paint(name, snapshot, audience) for name in names}
            html = "".join(painting.changes_since(shown.get(name)) for name, painting in painted.items())
            if html:
                await self.send(text_data=html)
            shown = painted
            snapshot = await self._board.newer_than(snapshot.version)
