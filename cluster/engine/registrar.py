"""Keeps the rows about workers and the live links in step, off the loop.

Who may dial in is read from the database before the handshake; who has dialled in is written to
it; a token that dies takes its links along; what operators want of workers is told to the
dispatcher, or done here where it is about a link. All of it runs on one thread beside the loop, so
a slow database delays newcomers and never a running worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec
from django.db import Error as DatabaseError

from cluster.brokers.base import Broker
from cluster.engine.gateway import Gateway
from cluster.engine.links import WorkerLink
from cluster.protocol.messages import CloseCode
from cluster.scheduler.events import IntentsObserved
from cluster.selectors import Intents, get_intents, list_dead_token_ids, list_evicted_links
from cluster.services import WorkerCredential, authenticate_worker, record_worker_joined, record_workers_seen
from gpucloud.lib.dbthread import DatabaseThread

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
SEEN_EVERY_S = 60.0


class UnableToAuthenticate(Exception):
    """The database cannot say just now whether a token is good."""


class Findings(msgspec.Struct, frozen=True):
    """What the rows say about the links."""

    dead_tokens: set[int]
    evicted_links: set[str]
    intents: Intents


class Registrar:
    """The gateway's clerk: admits workers, writes down who came, passes on what operators want."""

    def __init__(self, gateway: Gateway, broker: Broker) -> None:
        self._gateway = gateway
        self._broker = broker
        self._thread = DatabaseThread("registrar")
        self._task: asyncio.Task[None] | None = None
        self._written: dict[str, float] = {}
        """When each live link was last written down, in loop time."""

    def start(self) -> None:
        """Begin to watch the links."""
        self._task = asyncio.create_task(self._watch(), name="registrar")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._thread.stop()

    async def authenticate(self, secret: str) -> WorkerCredential | None:
        """Return what a worker's token permits, None if nothing; or raise `UnableToAuthenticate`."""
        try:
            return await self._thread.run(lambda: authenticate_worker(secret))
        except DatabaseError as error:
            log.exception("a worker's token could not be checked")
            raise UnableToAuthenticate from error

    async def reconcile(self) -> None:
        """Bring rows and links into step once."""
        links = dict(self._gateway.links)
        now = asyncio.get_running_loop().time()
        new = [link for link in links.values() if link.id not in self._written]
        again = [link for link in links.values() if now - self._written.get(link.id, now) >= SEEN_EVERY_S]
        found = await self._thread.run(_write_and_read, new, again, list(links.values()))
        for link in links.values():
            if link.token_id in found.dead_tokens:
                self._gateway.hang_up(link, CloseCode.NO_TOKEN, "the worker's token was revoked or has expired")
            elif link.id in found.evicted_links:
                self._gateway.hang_up(link, CloseCode.EVICTED, "evicted by an operator")
        # Told again and again, changed or not: a message that is lost is made good a second later.
        self._broker.publish_event(IntentsObserved(found.intents.cordoned, found.intents.draining))
        written = {link.id: now for link in (*new, *again)}
        self._written = {link: at for link, at in (self._written | written).items() if link in links}

    async def _watch(self) -> None:
        while True:
            try:
                await self.reconcile()
            except Exception:
                # Whatever one row's trouble is: a watch that ended would leave revoked workers in.
                log.exception("workers could not be written down; trying again")
            await asyncio.sleep(INTERVAL_S)


def _write_and_read(new: list[WorkerLink], again: list[WorkerLink], links: list[WorkerLink]) -> Findings:
    """Write the workers down and return what their rows say. Runs in the thread."""
    for link in new:
        if link.worker:
            record_worker_joined(spec=link.worker, token_id=link.token_id, link=link.id)
    if again:
        record_workers_seen(worker_ids=[link.worker.id for link in again if link.worker])
    return Findings(
        dead_tokens=list_dead_token_ids({link.token_id for link in links if link.token_id is not None}),
        evicted_links=list_evicted_links([link.worker.id for link in links if link.worker]),
        intents=get_intents(),
    )
