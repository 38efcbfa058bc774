"""One connection of a worker to its gateway, from hello to bye.

Two loops share a `WorkerSession`: one reads, one writes. Nothing is written but by the writer:
whoever has something to say posts it, and all that was posted in one turn of the event loop
leaves in one frame. Dialling and coming back are the agent's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Literal, assert_never

import msgspec
from websockets.asyncio.client import ClientConnection

from cluster.protocol.codec import printable
from cluster.protocol.messages import (
    Assign,
    Bye,
    Cancel,
    CloseCode,
    Drain,
    Failed,
    Finished,
    FromGateway,
    FromWorker,
    Heartbeat,
    Hello,
    Step,
    Welcome,
)
from cluster.protocol.session import ProtocolViolation, State, WorkerSession
from cluster.worker.backends.base import Backend

log = logging.getLogger(__name__)

WELCOME_TIMEOUT_S = 10.0
MAX_OUTBOX_CHUNKS = 100_000
"""Chunks that may wait for a gateway that does not read; then the link is given up."""
MAX_MESSAGE_CHARS = 2_000


class Link:
    """A worker's end of one connection."""

    def __init__(self, socket: ClientConnection, backend: Backend, hello: Hello) -> None:
        self.welcome: Welcome | None = None
        self._socket = socket
        self._backend = backend
        self._hello = hello
        self._session = WorkerSession()
        self._loop = asyncio.get_running_loop()
        self._running: set[tuple[str, int]] = set()
        self._outbox: list[FromWorker] = []
        self._outbox_chunks = 0
        self._work = asyncio.Event()
        self._draining = False
        self._said_bye = False
        self._bye_timer: asyncio.TimerHandle | None = None

    async def open(self) -> Welcome:
        """Introduce the worker and return the gateway's welcome."""
        for frame in self._session.send([self._hello], self._loop.time()):
            await self._socket.send(frame)
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            while self.welcome is None:
                await self._read_frame()
        return self.welcome

    async def serve(self) -> None:
        """Run until one of the two has said bye; raise whatever else ends the link."""
        loops = {
            asyncio.create_task(self._read(), name="link-read"),
            asyncio.create_task(self._write(), name="link-write"),
        }
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            if self._bye_timer is not None:
                self._bye_timer.cancel()
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    def emit(self, messages: Sequence[Step | Finished | Failed]) -> None:
        """Take the backend's messages of one engine step."""
        for message in messages:
            if isinstance(message, Step):
                self._outbox_chunks += len(message.chunks)
            else:
                self._running.discard((message.task, message.attempt))
                if isinstance(message, Failed):
                    line = printable(message.message)[:MAX_MESSAGE_CHARS]
                    message = msgspec.structs.replace(message, message=line)
            self._post(message)
        if self._draining and not self._running:
            self._say_bye()
        if self._outbox_chunks > MAX_OUTBOX_CHUNKS:
            log.warning("worker=%s event=gave-up reason='the gateway does not read'", self._hello.name)
            self._socket.transport.abort()

    def drain(self, deadline_s: float, *, announce: bool = True) -> None:
        """Take no more work, let what runs finish within `deadline_s`, then say bye."""
        if self._draining:
            return
        self._draining = True
        if announce:
            self._post(Drain(deadline_s=deadline_s))
        if self._running:
            self._bye_timer = self._loop.call_later(deadline_s, self._say_bye)
        else:
            self._say_bye()

    def _say_bye(self) -> None:
        self._post(Bye(reason="drained"))
        self._said_bye = True

    def _post(self, message: FromWorker) -> None:
        if not self._said_bye:
            self._outbox.append(message)
            self._work.set()

    async def _read(self) -> None:
        while self._session.state is not State.CLOSED:
            await self._read_frame()

    async def _read_frame(self) -> None:
        frame = await self._socket.recv()
        if isinstance(frame, str):
            raise ProtocolViolation(CloseCode.BAD_FRAME, "text frame: expected binary msgpack")
        for message in self._session.receive(frame, self._loop.time()):
            self._handle(message)

    async def _write(self) -> None:
        while self._session.state is not State.CLOSED:
            await self._wait_for_work()
            now = self._loop.time()
            batch, self._outbox, self._outbox_chunks = self._outbox, [], 0
            self._work.clear()
            if self._session.next_heartbeat_at is not None and now >= self._session.next_heartbeat_at:
                batch.insert(0, self._heartbeat())
            for frame in self._session.send(batch, now):
                await self._socket.send(frame)

    async def _wait_for_work(self) -> None:
        """Return when there is something to write: what was posted, or a heartbeat that is due."""
        if not self._work.is_set():
            try:
                async with asyncio.timeout_at(self._session.next_heartbeat_at):
                    await self._work.wait()
            except TimeoutError:
                return
        # Past its pace a worker gathers more into each frame instead of sending more of them.
        if pause_s := self._session.pause_s(self._loop.time()):
            await asyncio.sleep(pause_s)

    def _handle(self, message: FromGateway) -> None:
        match message:
            case Welcome():
                self.welcome = message
            case Assign():
                self._assign(message)
            case Cancel():
                self._backend.cancel(message.task, message.attempt)
            case Drain():
                self.drain(message.deadline_s, announce=False)
            case Bye():
                pass  # the session is closed now, which ends both loops
            case _:
                assert_never(message)

    def _assign(self, assign: Assign) -> None:
        key = (assign.task, assign.attempt)
        if key in self._running:
            return
        if self._draining:
            self._post(Failed(task=assign.task, attempt=assign.attempt, code="draining", retryable=True))
            return
        self._running.add(key)
        try:
            self._backend.assign(assign)
        except Exception as error:
            # Its text may quote the prompt, so only its kind is told.
            log.error("worker=%s event=assign-failed error=%s", self._hello.name, type(error).__name__)
            self.emit([Failed(task=assign.task, attempt=assign.attempt, code="backend_error", retryable=True)])

    def _heartbeat(self) -> Heartbeat:
        reading, load = self._backend.read()
        return Heartbeat(status=self._status(), gpu=reading, load=load, timestamp=time.time())

    def _status(self) -> Literal["ready", "busy", "draining"]:
        if self._draining:
            return "draining"
        return "busy" if len(self._running) >= self._hello.capacity else "ready"
