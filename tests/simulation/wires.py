"""A worker's connection without a socket: frames take time, and the network may do its worst.

The gateway's end is the ASGI pair `receive` and `send` that the product's consumer is called with;
the worker's end is `push_up` and the callbacks `on_frame` and `on_close`. Frames keep their order,
as TCP's do, unless a fault says otherwise.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

LATENCY_S = 0.002
INSTANT_S = 1e-6
DEAD_PEER_S = 2.0
"""How long TCP takes to give up on a peer that does not answer (15 s in the product)."""
FAREWELLS = (1000, 1001, 4409)
"""Close codes that blame nobody. 4409 among them: two dials of one worker may overtake each other."""

Scope = dict[str, Any]


class Wire:
    """One connection, both ways."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_frame: Callable[[Wire, bytes], None],
        on_close: Callable[[Wire, int], None],
        on_hang_up: Callable[[Wire, int, str], None],
    ) -> None:
        self.latency_s = LATENCY_S
        self.half_open = False
        self.down = False
        """Whether the connection is gone for both."""
        self.honest = True
        """Whether the gateway has no reason yet to hang up on this worker."""
        self.prompt = True
        """Whether nothing has delayed what is said here."""
        self.duplicate_next = False
        self.delay_next_s = 0.0
        self._loop = loop
        self._on_frame, self._on_close, self._on_hang_up = on_frame, on_close, on_hang_up
        self._up_at = self._down_at = 0.0
        self._inbox: deque[dict[str, Any]] = deque([{"type": "websocket.connect"}])
        self._reader: asyncio.Future[None] | None = None

    @property
    def scope(self) -> Scope:
        """What a worker's handshake looks like to the product."""
        return {"type": "websocket", "path": "/ws/worker/", "headers": [(b"authorization", b"Bearer wk-simulated")]}

    def push_up(self, frame: bytes) -> None:
        """Send a frame from the worker to the gateway."""
        if self.down or self.half_open:
            return
        self._up_at = max(self._loop.time() + self.latency_s, self._up_at + INSTANT_S)
        message = {"type": "websocket.receive", "bytes": frame}
        if self.duplicate_next:
            self.duplicate_next = False
            self._loop.call_at(self._up_at, self._arrive, message)
            self._up_at += INSTANT_S
        # A frame held back is overtaken by those behind it.
        delay_s, self.delay_next_s = self.delay_next_s, 0.0
        self._loop.call_at(self._up_at + delay_s, self._arrive, message)

    def drop(self, code: int = 1006) -> None:
        """Cut the connection: both ends hear of it, unless the network keeps it from them."""
        if not self.down:
            self.down, self.honest = True, False
            at_s = self._loop.time() + (DEAD_PEER_S if self.half_open else self.latency_s)
            disconnect = {"type": "websocket.disconnect", "code": code}
            self._loop.call_at(max(at_s, self._up_at + INSTANT_S), self._arrive, disconnect)
            self._loop.call_at(max(at_s, self._down_at + INSTANT_S), self._on_close, self, code)

    def break_silently(self) -> None:
        """Lose everything from now on, in both directions, without a word to either end."""
        self.half_open, self.honest, self.prompt = True, False, False

    async def receive(self) -> dict[str, Any]:
        """Return the gateway's next message, as an ASGI server would."""
        while not self._inbox:
            self._reader = self._loop.create_future()
            await self._reader
        return self._inbox.popleft()

    async def send(self, message: dict[str, Any]) -> None:
        """Take what the gateway says, as an ASGI server would."""
        if self.down:
            return
        if message["type"] == "websocket.send" and not self.half_open:
            self._down_at = max(self._loop.time() + self.latency_s, self._down_at + INSTANT_S)
            self._loop.call_at(self._down_at, self._deliver, message["bytes"])
        elif message["type"] == "websocket.close":
            code = message.get("code", 1000)
            self._on_hang_up(self, code, message.get("reason", ""))
            self.drop(code)

    def _arrive(self, message: dict[str, Any]) -> None:
        self._inbox.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _deliver(self, frame: bytes) -> None:
        if not self.half_open:
            self._on_frame(self, frame)
