"""Scripted clients: the ASGI connection of one request, and what its far end saw of the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inference.openai.chunks import DONE
from tests.simulation.ledger import SimEntry

if TYPE_CHECKING:
    from tests.simulation.world import World

TOKEN = b'"delta":{"content":'
"""What each streamed token has once."""


class DirectRequest:
    """A client's connection where all of the request has come: what `gpucloud.onewrite` makes of it."""

    url = b"/v1/chat/completions"

    def __init__(self, client: SimClient, headers: list[tuple[bytes, bytes]]) -> None:
        # As clients send it that want no stream: most do not say so.
        self.body = json.dumps({name: value for name, value in client.body.items() if name != "stream"}).encode()
        self.headers = headers
        self.on_gone: Callable[[], None] | None = None
        self.over: asyncio.Future[None] = client.gone.get_loop().create_future()
        self._client = client
        client.gone.add_done_callback(lambda _: self._leave())

    def take_body(self) -> bytes:
        """Return all of it."""
        return self.body

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        """Let the client have its answer, unless it is gone or has one."""
        if self.over.done():
            return False
        self.over.set_result(None)
        self._client.take_answer(status, body)
        return True

    def abort(self) -> None:
        """Nobody aborts a connection that nothing is written to."""
        raise AssertionError

    def _leave(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
            if self.on_gone is not None:
                self.on_gone()


class SimClient:
    """One request, from its connection to the last byte of its answer."""

    def __init__(self, world: World, number: int, body: dict[str, Any], *, key: str) -> None:
        self.id = f"req_{number}"
        self.body = body
        self.stream: bool = body["stream"]
        self.status = 0
        self.raw = bytearray()
        self.handed_tokens = 0
        """Tokens that were given to our socket, taken or not."""
        self.passed_tokens = 0
        """Those of them whose send had returned while we were there."""
        self.gone_at_s: float | None = None
        self.over = False
        """Whether the product is done with the request."""
        self.leave_after_tokens: int | None = None
        self.reading = True
        self._world = world
        self._key = key
        self._asked = False
        self._comes_directly = not self.stream and number % 2 == 0
        """Whether it is offered to the product without ASGI, as our own server does with what comes whole."""
        self.gone: asyncio.Future[None] = world.loop.create_future()
        self._reads: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Ask, and stay until the product is done."""
        headers = [(b"authorization", f"Bearer {self._key}".encode()), (b"content-type", b"application/json")]
        direct = DirectRequest(self, headers)
        if self._comes_directly and self._world.data_plane.take(direct):
            await direct.over
        else:
            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
            await self._world.data_plane(scope, self.receive, self.send)
        self.over = True
        self._world.note(self.id, lambda: f"is over: {self.status} {self.ending}")

    @property
    def entry(self) -> SimEntry | None:
        """Its row, if it was accepted."""
        return self._world.ledger.entries.get(self.id)

    def leave(self) -> None:
        """Close the connection."""
        if self.gone_at_s is None and not self.over:
            self.gone_at_s = self._world.loop.time()
            self.gone.set_result(None)
            self.read_on()
            self._world.on_left(self)

    def stop_reading(self) -> None:
        """Let the connection fill up: sends will not return."""
        self.reading = False

    def read_on(self) -> None:
        """Empty the connection."""
        self.reading = True
        if self._reads is not None and not self._reads.done():
            self._reads.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """Return the request, then the news of our departure."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": json.dumps(self.body).encode(), "more_body": False}
        # Not shielded, not shared: whoever drives this coroutine may drop it.
        waiter = self._world.loop.create_future()
        self.gone.add_done_callback(lambda _: waiter.done() or waiter.set_result(None))
        await waiter
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Take a piece of the answer; silently nothing once we are gone."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 200:
                self._check_on_record()
            return
        body: bytes = message.get("body", b"")
        tokens = body.count(TOKEN)
        self.handed_tokens += tokens
        if not message.get("more_body", False) and self.gone_at_s is None:
            self._check_farewell(body)
        if self.gone_at_s is None:
            self.raw += body
            while not self.reading:
                self._reads = self._world.loop.create_future()
                await self._reads
        if self.gone_at_s is None:
            self.passed_tokens += tokens
            if self.leave_after_tokens is not None and self.passed_tokens >= self.leave_after_tokens:
                self.leave()

    @property
    def ending(self) -> str:
        """How the answer ended, in a word: `done`, an error's code, or `cut`."""
        if not self.stream or self.status != 200:
            if not self.raw:
                return "cut"
            answer = json.loads(self.raw)
            return "done" if self.status == 200 else str(answer["error"]["code"])
        events = self._events()
        if events and events[-1] == "[DONE]":
            return "done"
        if events and events[-1].startswith('{"error"'):
            return str(json.loads(events[-1])["error"]["code"])
        return "cut"

    @property
    def text(self) -> str:
        """The answer's text as far as it came."""
        if not self.stream:
            return json.loads(self.raw)["choices"][0]["message"]["content"] if self.status == 200 and self.raw else ""
        deltas = [json.loads(event) for event in self._events() if event.startswith('{"id"')]
        return "".join(
            choice["delta"].get("content") or "" for delta in deltas for choice in delta["choices"] if choice["delta"]
        )

    def _events(self) -> list[str]:
        lines = self.raw.decode().split("\n") if self.status == 200 else []
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    def take_answer(self, status: int, body: bytes) -> None:
        """Take an answer that comes in one piece."""
        self.status = status
        if status == 200:
            self._check_on_record()
        self._check_farewell(body)
        self.raw += body

    def _check_on_record(self) -> None:
        if self.entry is None or not self.entry.on_record:
            self._world.violation(f"{self.id} gets a byte of its answer before it is on record")

    def _check_farewell(self, body: bytes) -> None:
        says_done = self.status == 200 and (body.endswith(DONE) if self.stream else True)
        if says_done and (self.entry is None or self.entry.committed_as != "completed"):
            self._world.violation(f"{self.id} is told that it is complete before that is on record")
