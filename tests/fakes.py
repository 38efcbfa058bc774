"""Named, documented stand-ins for the parts that a test does not want to run for real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TypeVar

from websockets.asyncio.server import Request, Response, ServerConnection, serve

from cluster.domain import FinishReason, Generation, GpuInfo, GpuReading, Message, ModelOffer
from cluster.protocol.messages import (
    VERSION,
    Assign,
    Chunk,
    Finished,
    FromGateway,
    FromWorker,
    Hello,
    Load,
    Step,
    Welcome,
)
from cluster.protocol.session import GatewaySession
from cluster.worker.backends.base import Capabilities, Emit

M = TypeVar("M")


def make_hello(**changes: object) -> Hello:
    """Return a valid hello, with changes."""
    fields: dict[str, object] = {
        "v": VERSION,
        "name": "alice",
        "instance": "i-1",
        "gpu": GpuInfo(name="H100"),
        "models": (ModelOffer(id="llama-3-8b", context_tokens=8192, kv_bytes_per_token=131072),),
        "capacity": 4,
    }
    return Hello(**(fields | changes))  # type: ignore[arg-type]


def make_welcome(**changes: object) -> Welcome:
    """Return a valid welcome, with changes."""
    fields: dict[str, object] = {
        "v": VERSION,
        "worker": "wrk_1",
        "link": "lnk_1",
        "heartbeat_s": 5.0,
        "max_frame_bytes": 1024 * 1024,
    }
    return Welcome(**(fields | changes))  # type: ignore[arg-type]


def make_assign(task: str = "t-1", attempt: int = 1, **changes: object) -> Assign:
    """Return a valid assign, with changes."""
    fields: dict[str, object] = {
        "task": task,
        "attempt": attempt,
        "model": "llama-3-8b",
        "prompt_tokens": 3,
        "generation": Generation(messages=(Message("user", "a secret prompt"),), max_tokens=8, seed=7),
    }
    return Assign(**(fields | changes))  # type: ignore[arg-type]


class FakeBackend:
    """A backend without an engine: it remembers what it was told and emits what the test says."""

    def __init__(self, capacity: int = 4, model: str = "llama-3-8b") -> None:
        self.capacity = capacity
        self.model = model
        self.assigned: list[Assign] = []
        self.cancelled: list[tuple[str, int]] = []
        self.aborts = 0
        self.stopped = False
        self.emit: Emit = lambda messages: None
        self.on_assign: Callable[[Assign], None] = lambda assign: None
        self.on_abort: Callable[[], None] = lambda: None

    async def load(self) -> Capabilities:
        return Capabilities(
            gpu=GpuInfo(name="H100"),
            models=(ModelOffer(id=self.model, context_tokens=8192, kv_bytes_per_token=131072),),
            capacity=self.capacity,
            kv_bytes=0,
            simulated=True,
        )

    def start(self, emit: Emit) -> None:
        self.emit = emit

    def assign(self, assign: Assign) -> None:
        self.assigned.append(assign)
        self.on_assign(assign)

    def cancel(self, task: str, attempt: int) -> None:
        self.cancelled.append((task, attempt))
        self.finish(task, attempt, FinishReason.CANCELLED)

    def abort_all(self) -> None:
        self.aborts += 1
        self.on_abort()

    def read(self) -> tuple[GpuReading, Load]:
        return GpuReading(utilization=0.5), Load(running=len(self.assigned))

    async def stop(self) -> None:
        self.stopped = True

    def step(self, task: str, attempt: int, seq: int, *texts: str) -> None:
        """Emit new tokens of one attempt."""
        self.emit([Step([Chunk(task, attempt, seq, list(texts))])])

    def finish(self, task: str, attempt: int, reason: FinishReason = FinishReason.STOP) -> None:
        """Emit the end of one attempt."""
        self.emit([Finished(task=task, attempt=attempt, reason=reason, generated_tokens=1)])


class FakeLink:
    """The gateway's end of one connection, held by the test."""

    def __init__(self, socket: ServerConnection, hello_timeout_s: float = 5.0) -> None:
        self.socket = socket
        self.session = GatewaySession(now=0.0, hello_timeout_s=hello_timeout_s)
        self.frames = 0
        self._heard: list[FromWorker] = []

    async def receive(self) -> FromWorker:
        """Return the worker's next message, heartbeats included."""
        while not self._heard:
            frame = await self.socket.recv()
            assert isinstance(frame, bytes)
            self.frames += 1
            self._heard += self.session.receive(frame, asyncio.get_running_loop().time())
        return self._heard.pop(0)

    async def expect(self, kind: type[M]) -> M:
        """Return the worker's next message of this kind; what comes before it is skipped."""
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                return message

    async def welcome(self, heartbeat_s: float = 5.0) -> Hello:
        """Take the worker's hello and let it in."""
        hello = await self.expect(Hello)
        await self.send(make_welcome(heartbeat_s=heartbeat_s))
        return hello

    async def send(self, *messages: FromGateway) -> None:
        """Say this to the worker."""
        for frame in self.session.send(messages):
            await self.socket.send(frame)


class FakeGateway:
    """A gateway of sockets only: each connection is a `FakeLink` in the hands of the test."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens: list[str | None] = []
        self.refuse_with: list[HTTPStatus] = []
        """Answers to the next handshakes, used up one by one; then workers are let in."""
        self._links: asyncio.Queue[FakeLink] = asyncio.Queue()
        self._over = asyncio.Event()

    async def next_link(self) -> FakeLink:
        """Return the next connection that a worker opens."""
        async with asyncio.timeout(10):
            return await self._links.get()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[FakeGateway]:
        """Accept workers on a free port until the block ends."""
        async with serve(self._serve, "127.0.0.1", 0, process_request=self._admit, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            try:
                yield self
            finally:
                self._over.set()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        self.tokens.append(request.headers.get("Authorization"))
        if request.path != "/ws/worker/":
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        if self.refuse_with:
            return connection.respond(self.refuse_with.pop(0), "")
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        await self._links.put(FakeLink(socket))
        closed = asyncio.create_task(socket.wait_closed())
        over = asyncio.create_task(self._over.wait())
        await asyncio.wait({closed, over}, return_when=asyncio.FIRST_COMPLETED)
        for task in (closed, over):
            task.cancel()
