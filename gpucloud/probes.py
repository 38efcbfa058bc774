"""`/healthz` and `/readyz`: for load balancers and people, without a key and without Django.

Alive is not ready: a process that answers at all is healthy; one that can take a request now, with
its database writing, its broker connected and its loop turning, is ready.
"""

from __future__ import annotations

import asyncio
import json

from django.db import Error as DatabaseError
from django.db import connection, transaction

from gpucloud import __version__
from gpucloud.lib.asgi import Receive, Scope, Send
from gpucloud.lib.dbthread import DatabaseThread
from gpucloud.lifespan import Node

WRITE_TIMEOUT_S = 2.0


class Probes:
    """The ASGI application behind both paths."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._thread = DatabaseThread("probe")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/healthz":
            await _answer(send, 200, {"status": "ok", "version": __version__})
            return
        ills = self._node.ills()
        if not ills and not await self._can_write():
            ills.append("database: cannot write")
        await _answer(send, 503 if ills else 200, {"status": "not ready" if ills else "ready", "ills": ills})

    async def _can_write(self) -> bool:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._thread.run(_begin_to_write)
        except (TimeoutError, DatabaseError):
            return False
        return True


def _begin_to_write() -> None:
    # On SQLite the transaction is IMMEDIATE: it takes the write lock and gives it back.
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def _answer(send: Send, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
