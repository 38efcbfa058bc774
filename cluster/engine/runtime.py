"""Builds the engine of one node and owns its life: the only file that knows which broker it is.

One `Runtime` per application and event loop. Started by the lifespan, or by the first request
under a server that has none.
"""

from __future__ import annotations

import random
import time

import msgspec

from cluster.brokers.base import Broker
from cluster.brokers.memory import MemoryBroker
from cluster.engine.board import SnapshotBoard
from cluster.engine.dispatcher import MAX_SLEEP_S, PAUSED_S, Dispatcher
from cluster.engine.gateway import Gateway
from cluster.engine.progress import ProgressWatch
from cluster.scheduler.core import Scheduler, Settings

MAX_FRAME_BYTES = 1024 * 1024
MAX_LAG_S = 1.0


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's engine needs to know; `gpucloud.lifespan` reads it from the settings."""

    node: str
    heartbeat_s: float
    hello_timeout_s: float
    scheduler: Settings
    first_token_s: float = 30.0
    """An attempt without a first token stalls after this."""
    next_token_s: float = 10.0
    """One without the next."""
    paused_s: float = PAUSED_S


class Runtime:
    """The engine of one node: a gateway, a dispatcher, and the broker between them."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self.settings = settings
        self.board = SnapshotBoard()
        self.broker: Broker = MemoryBroker()
        self.gateway = Gateway(
            settings.node, self.broker, heartbeat_s=settings.heartbeat_s, max_frame_bytes=MAX_FRAME_BYTES
        )
        scheduler = Scheduler(settings.scheduler, random.Random(), now=time.monotonic())
        self.dispatcher = Dispatcher(scheduler, self.broker, paused_s=settings.paused_s)
        self._progress = ProgressWatch(
            self.gateway.streams,
            self.broker.publish_event,
            first_token_s=settings.first_token_s,
            next_token_s=settings.next_token_s,
            paused_s=settings.paused_s,
        )

    async def start(self) -> None:
        """Connect the parts and begin to schedule."""
        self.broker.attach_gateway(self.settings.node, self.gateway.execute)
        self.broker.attach_dispatcher(self.dispatcher.receive)
        self.broker.attach_board(self.board.publish)
        await self.broker.start()
        self.dispatcher.start()
        self._progress.start()

    async def stop(self) -> None:
        """Stop scheduling and disconnect."""
        self._progress.stop()
        self.dispatcher.stop()
        await self.broker.stop()

    def lag_s(self) -> float:
        """Return how late the event loop was of late, seconds."""
        return self.dispatcher.lag_s

    def ills(self) -> list[str]:
        """Return what keeps this node from working, one phrase each; empty when it is well."""
        ills = []
        if not self.broker.healthy:
            ills.append("broker: not connected")
        lag_s = time.monotonic() - self.dispatcher.last_tick_at_s
        if lag_s > MAX_SLEEP_S + MAX_LAG_S:
            ills.append(f"event loop: no tick for {lag_s:.1f} s")
        return ills
