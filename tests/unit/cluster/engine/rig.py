"""The engine of one node without sockets: real gateway, dispatcher, scheduler and broker.

Workers are `RigWorker`s in the test's hands. What they say and hear passes both ends of the
protocol as real frames, so nothing can be said here that a socket could not carry.
"""

from __future__ import annotations

import random
import time
from itertools import count

from cluster.brokers.memory import MemoryBroker
from cluster.domain import FinishReason
from cluster.engine.board import SnapshotBoard
from cluster.engine.dispatcher import Dispatcher
from cluster.engine.gateway import Gateway
from cluster.engine.links import WorkerLink
from cluster.engine.streams import TokenStream
from cluster.protocol.messages import (
    Assign,
    Chunk,
    Finished,
    FromGateway,
    FromWorker,
    Hello,
    Step,
)
from cluster.protocol.session import GatewaySession, WorkerSession
from cluster.scheduler.core import Scheduler, Settings
from tests.factories import make_task
from tests.fakes import make_hello


class Rig:
    """One node's engine, started."""

    def __init__(self, **settings: float) -> None:
        self.broker = MemoryBroker()
        self.board = SnapshotBoard()
        self.gateway = Gateway("node-1", self.broker, heartbeat_s=5.0, max_frame_bytes=1024 * 1024)
        self.scheduler = Scheduler(Settings(**settings), random.Random(7), now=time.monotonic())
        self.dispatcher = Dispatcher(self.scheduler, self.broker)
        self.broker.attach_gateway("node-1", self.gateway.execute)
        self.broker.attach_dispatcher(self.dispatcher.receive)
        self.broker.attach_board(self.board.publish)
        self.dispatcher.start()
        self._numbers = count(1)

    def submit(self, id: str = "req_1", *, buffered: bool = False, **fields: object) -> TokenStream:
        """Accept a task."""
        return self.gateway.submit(make_task(id, **fields), buffered=buffered)

    def join(self, name: str = "alice", **hello: object) -> RigWorker:
        """Return a worker that has dialled in and said hello."""
        worker = self.dial()
        worker.say(make_hello(name=name, **hello))
        return worker

    def dial(self, *, token_id: int = 1) -> RigWorker:
        """Return a worker that has been let in and has said nothing yet."""
        return RigWorker(self.gateway, f"lnk_{next(self._numbers)}", token_id)

    def held(self) -> dict[str, int]:
        """Return by worker name how many slots the scheduler believes to be taken."""
        return {worker.spec.name: worker.held for worker in self.scheduler.placement.workers.values()}

    def stop(self) -> None:
        """Stop, and check that the scheduler does not contradict itself."""
        self.scheduler.check_invariants()
        self.dispatcher.stop()


class RigWorker:
    """A worker's end of a link: says what the test wants, whether it is right or not."""

    def __init__(self, gateway: Gateway, link: str, token_id: int) -> None:
        self.link = WorkerLink(link, GatewaySession(now=time.monotonic()), token_id=token_id)
        self.heard: list[FromGateway] = []
        """The answer to the hello."""
        self._gateway = gateway
        self._session = WorkerSession()

    @property
    def close_code(self) -> int | None:
        """The code with which the gateway has hung up; None while it has not."""
        return self.link.closing[0] if self.link.closing else None

    def say(self, *messages: FromWorker) -> None:
        """Send these messages as one frame."""
        now = time.monotonic()
        for frame in self._session.send(messages, now):
            self._gateway.receive(self.link, self.link.session.receive(frame, now))
        if any(isinstance(message, Hello) for message in messages):
            self.heard = self.hear()

    def hear(self) -> list[FromGateway]:
        """Return what the gateway has said since the last call."""
        return [
            message for frame in self.link.take_frames() for message in self._session.receive(frame, time.monotonic())
        ]

    def take(self) -> Assign:
        """Return the assignment that must be the next thing heard."""
        (message,) = self.hear()
        assert isinstance(message, Assign)
        return message

    def push(self, task: str, seq: int, *texts: str, attempt: int = 1) -> None:
        """Send new tokens of one task."""
        self.say(Step([Chunk(task, attempt, seq, list(texts))]))

    def finish(self, task: str, reason: FinishReason = FinishReason.STOP, *, attempt: int = 1) -> None:
        """Say that an attempt has ended."""
        self.say(Finished(task=task, attempt=attempt, reason=reason, generated_tokens=0))
