"""A gateway's end of one worker's socket, without the socket.

The consumer owns the socket: it feeds what it reads to `Gateway.receive` and writes what
`take_frames` returns. In between stand the protocol session, which knows what may be said, and an
outbox: messages of one loop tick leave in one frame, and a worker that does not read is cut off
instead of filling our memory.
"""

from __future__ import annotations

import asyncio

from cluster.domain import WorkerSpec
from cluster.protocol.messages import FromGateway
from cluster.protocol.session import GatewaySession

MAX_OUTBOX = 4_096
"""Messages that may wait for a worker that does not read. Its slots bound what is normal."""


class WorkerLink:
    """One connection of one worker."""

    def __init__(self, link: str, session: GatewaySession, *, token_id: int | None) -> None:
        self.id = link
        self.session = session
        self.token_id = token_id
        self.worker: WorkerSpec | None = None
        self.closing: tuple[int, str] | None = None
        """The close code and reason, once the gateway has decided to hang up."""
        self.assigned: set[tuple[str, int]] = set()
        """The `(task, attempt)` pairs that the worker holds."""
        self._outbox: list[FromGateway] = []
        self._strays = 0
        self._strays_since_s = 0.0
        self._work = asyncio.Event()

    def send(self, message: FromGateway) -> None:
        """Queue a message; it leaves with all others of this loop tick."""
        if self.closing is None:
            self._outbox.append(message)
            self._work.set()

    @property
    def congested(self) -> bool:
        """Whether more waits to be written than a worker that reads would ever leave."""
        return len(self._outbox) > MAX_OUTBOX

    def close(self, code: int, reason: str) -> None:
        """Hang up after what is queued; the first reason stands."""
        if self.closing is None:
            self.closing = (code, reason)
            self._work.set()

    def count_stray(self, now: float) -> int:
        """Note a message that fits nowhere; return how many there were within a minute."""
        if now - self._strays_since_s > 60:
            self._strays_since_s, self._strays = now, 0
        self._strays += 1
        return self._strays

    async def wait_for_work(self) -> None:
        """Return when there is a message to write or the link is to be closed."""
        await self._work.wait()

    def take_frames(self) -> list[bytes]:
        """Return the frames to write now."""
        self._work.clear()
        messages, self._outbox = self._outbox, []
        return self.session.send(messages) if messages else []
