"""A client of `/v1` on a bare socket, for tests that must see bytes and may leave at any moment.

And, for the other end, a worker that says and does what the test wants.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from typing import Any

from cluster.domain import Generation, Message
from cluster.simulation.text import natural_text
from cluster.worker.agent import Agent
from tests.fakes import FakeBackend
from tests.live import WORKER_TOKEN, LiveServer

CHAT = "/v1/chat/completions"
PROMPT = "Hello"
LONG_TOKENS = 700
"""Longer than any stream that a test reads to its end: answers end by themselves, too."""


class Call:
    """One request on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader = reader
        self._writer = writer

    @property
    def request_id(self) -> str:
        """The request's id; known once the head has been read."""
        return self.headers["x-request-id"]

    async def head(self) -> int:
        """Read status and headers and return the status."""
        lines = (await self._read(self._reader.readuntil(b"\r\n\r\n"))).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        return self.status

    async def event(self) -> str | None:
        """Return the data of the next event; None when the stream has ended well-formed."""
        while True:
            line = await self._read(self._reader.readline())
            if line.startswith(b"data: "):
                return line.removeprefix(b"data: ").decode().strip()
            if line.strip() == b"0":
                return None
            assert line, "the connection was cut in the middle of the stream"

    async def token(self) -> str:
        """Return the text of the next token."""
        while True:
            event = await self.event()
            assert event is not None, "the stream has ended"
            delta = json.loads(event)["choices"][0]["delta"]
            if delta.get("content"):
                return str(delta["content"])

    async def events(self) -> list[str]:
        """Return the data of all events that are still to come."""
        events = []
        while (event := await self.event()) is not None:
            events.append(event)
        return events

    async def answer(self) -> Any:
        """Read head and body and return the body, which is JSON."""
        if not self.status:
            await self.head()
        return json.loads(await self._read(self._reader.readexactly(int(self.headers["content-length"]))))

    def leave(self) -> None:
        """Say that nothing more will come, as a client does that closes its connection (FIN)."""
        self._writer.write_eof()

    def vanish(self) -> None:
        """Tear the connection down at once (RST)."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _read(self, reading: Any) -> bytes:
        async with asyncio.timeout(20):
            return bytes(await reading)


@cache
def seed_of_a_long_answer(model: str) -> int:
    """Return a seed with which a simulated worker says more than `LONG_TOKENS` tokens to `PROMPT`."""
    for seed in count():
        generation = Generation(messages=(Message("user", PROMPT),), max_tokens=1, seed=seed)
        if len(natural_text(model, generation)) > LONG_TOKENS:
            return seed
    raise AssertionError("unreachable")


@asynccontextmanager
async def call(server: LiveServer, *, key: str = "", **more: Any) -> AsyncIterator[Call]:
    """Send a chat completion and return the call at once; the answer is the caller's to read."""
    model = more.pop("model", "llama-3-8b")
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8} | more
    body.setdefault("seed", seed_of_a_long_answer(model))
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key or server.key}\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        + raw
    )
    try:
        yield Call(reader, writer)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # reset by either side: gone is gone


async def until(condition: Any, what: str, timeout_s: float = 10.0) -> Any:
    """Return the first true value of `condition`; fail with `what`. For facts about other processes."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while asyncio.get_running_loop().time() < deadline:
        if value := condition():
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


@asynccontextmanager
async def worker(server: LiveServer, *, capacity: int = 1) -> AsyncIterator[FakeBackend]:
    """A worker in the test's hands."""
    backend = FakeBackend(capacity=capacity)
    joined = server.log().count("worker joined: ours")
    agent = asyncio.create_task(Agent(backend, name="ours", gateway=server.url, token=WORKER_TOKEN).run())
    try:
        await until(lambda: server.log().count("worker joined: ours") > joined, "the worker joined")
        yield backend
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
