"""A client that writes down what it saw, for `tests.history` to compare with the ledger."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.client import PROMPT, Call, call
from tests.history import Saw
from tests.live import LiveServer

MODEL = "llama-3-8b"


class Witness:
    """Makes requests, and keeps a line about each of them in a file."""

    def __init__(self, server: LiveServer, journal: Path, *, rng: random.Random | None = None) -> None:
        self.saw: list[Saw] = []
        self.enough = False
        """Set by a test to have `ask_many` begin nothing more."""
        self._server = server
        self._journal = journal
        self._rng = rng or random.Random(1)

    async def ask(
        self,
        *,
        leave: Callable[[Call], None] | None = None,
        after_tokens: int = 0,
        on_token: Callable[[int], Awaitable[None] | None] | None = None,
        **body: Any,
    ) -> Saw:
        """Make a request and see it to its end, or leave in the given way after some tokens."""
        body = {"stream": self._rng.random() < 0.7, "max_tokens": self._rng.randint(1, 40)} | body
        body.setdefault("seed", self._rng.randrange(2**31))
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        seen = _Seen(after_tokens if leave else None)
        connection: Call | None = None
        try:
            async with call(self._server, model=MODEL, **body) as connection:
                await seen.read(connection, stream=body["stream"], on_token=on_token)
                if leave is not None:
                    leave(connection)
                    seen.end = "left"
        except (OSError, EOFError, AssertionError, TimeoutError):
            # The connection broke: what was seen until then counts all the same.
            seen.end = "cut"
        headers = connection.headers if connection else {}
        saw = Saw(
            request=headers.get("x-request-id"),
            model=MODEL,
            prompt=PROMPT,
            max_tokens=body["max_tokens"],
            seed=body["seed"],
            stream=body["stream"],
            status=(connection.status or None) if connection else None,
            texts=seen.texts,
            done=seen.done,
            error=seen.error,
            end=seen.end,  # type: ignore[arg-type]
            usage_tokens=seen.usage_tokens,
        )
        self.saw.append(saw)
        with self._journal.open("ab") as lines:
            lines.write(msgspec.json.encode(saw) + b"\n")
        return saw

    async def ask_many(self, count: int, *, at_once: int = 8, **body: Any) -> None:
        """Make many requests, some of them at the same time, and see them all to their end."""
        numbers = iter(range(count))

        async def one_after_another() -> None:
            for _ in numbers:
                if self.enough:
                    return
                await self.ask(**body)

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))


class _Seen:
    """What one request has shown so far."""

    def __init__(self, leave_after: int | None) -> None:
        self.texts: list[str] = []
        self.done = False
        self.error: str | None = None
        self.end = "whole"
        self.usage_tokens: int | None = None
        self._leave_after = leave_after

    async def read(self, connection: Call, *, stream: bool, on_token: Any) -> None:
        """Read until the end, or until it is time to leave."""
        if self._leave_after == 0 and on_token is None:
            return
        if await connection.head() != 200 or not stream:
            self._take_whole(await connection.answer(), connection.status)
            return
        while self._leave_after is None or len(self.texts) < self._leave_after:
            event = await connection.event()
            if event is None:
                return
            before = len(self.texts)
            self._take_event(event)
            if on_token is not None and len(self.texts) > before:
                waits = on_token(len(self.texts))
                if waits is not None:
                    await waits

    def _take_whole(self, answer: Any, status: int) -> None:
        if status != 200:
            self.error = answer["error"]["code"]
            return
        self.texts = [answer["choices"][0]["message"]["content"]]
        self.usage_tokens = answer["usage"]["completion_tokens"]
        self.done = True

    def _take_event(self, event: str) -> None:
        if event == "[DONE]":
            self.done = True
            return
        said = json.loads(event)
        if "error" in said:
            self.error = said["error"]["code"]
            return
        self.texts += [text for choice in said["choices"] if (text := choice["delta"].get("content"))]
        if said.get("usage"):
            self.usage_tokens = said["usage"]["completion_tokens"]
