"""Plays the rows about sockets: workers that do everything wrong, and pages from elsewhere.

The rows speak JSON; here that becomes the protocol's own messages. Rows that need a task, a second worker
or a client are scenes at the end: each has a model of its own, so that its requests reach its worker.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from tests.bad_inputs.rows import Row
from tests.bad_inputs.stage import Stage
from tests.bad_inputs.wire import Answer

UNASKED = "llama-2-70b"
"""The rows' `$MODEL` here: one that nobody asks for."""
OPEN = 0
"""What stands for a socket that stays open."""
_instances = itertools.count()


def packed(*messages: Any) -> bytes:
    return msgspec.msgpack.encode(list(messages))


def offer(model: str) -> dict[str, Any]:
    return {"id": model, "context_tokens": 8192, "kv_bytes_per_token": 0}


def hello(model: str = UNASKED, **more: Any) -> dict[str, Any]:
    """Return a good hello, but for `more`."""
    described = {
        "t": "hello",
        "v": 1,
        "name": "w1",
        "instance": f"row-{next(_instances)}",
        "gpu": {"name": "H100"},
        "models": [offer(model)],
        "capacity": 4,
    }
    return described | more


def translate(stage: Stage, frame: Any) -> bytes | str:
    """Return a row's frame as the protocol has it: text stays text, messages become MessagePack."""
    match frame:
        case str():
            return frame
        case {"$gen": recipe}:
            return _FRAMES[recipe]()
        case {"type": "hello", **fields}:
            if "models" in fields:
                names = fields["models"]
                names = [f"m-{n}" for n in range(10_000)] if isinstance(names, dict) else names
                # Whoever is let in is given work: these must not get that of good requests.
                fields["models"] = [offer(stage.fill(name if name != "$MODEL" else UNASKED)) for name in names]
            return packed(hello(**fields))
        case {"type": "heartbeat", **fields}:
            load = {"NaN": float("nan")}.get(fields["load"], fields["load"])
            # A negative load has no translation: counts are counts. A boast is as wrong, and as idle.
            load = 1e9 if load == -5 else load
            beat = {"t": "heartbeat", "status": "ready", "load": {"tokens_per_s": load}}
            return packed(beat | ({"timestamp": 32_472_144_000.0} if "ts" in fields else {}))
        case {"t": _}:
            return packed(frame)
    raise AssertionError(frame)


async def play(stage: Stage, row: Row) -> int:
    """Do what a row says and return the status of the handshake, or the close code, or `OPEN`."""
    if scene := _SCENES.get(row.id):
        async with stage.models.take() as model:
            return await asyncio.wait_for(scene(stage, model), 60)
    deflate = "deflate" in json.dumps(row.body)
    try:
        async with dial(stage, row, compression="deflate" if deflate else None) as socket:
            for frame in row.body or []:
                frames = _SERIES.get(frame.get("$gen", "")) if isinstance(frame, dict) else None
                for each in frames() if frames else [translate(stage, frame)]:
                    with suppress(ConnectionClosed):
                        await socket.send(each)
                if isinstance(frame, dict) and frame.get("type") == "hello" and frame is not row.body[-1]:
                    with suppress(ConnectionClosed):
                        await socket.recv()  # the welcome: before it nothing more may be said
            # A socket that is expected to stay is asked a little later; others have all the time they need.
            return await ending(socket, 0.3 if not row.expect_status else 10)
    except InvalidStatus as refused:
        return refused.response.status_code
    except InvalidMessage:
        return 400


@asynccontextmanager
async def dial(stage: Stage, row: Row | None = None, **options: Any) -> AsyncIterator[ClientConnection]:
    """Open a socket with a row's credentials; a good worker's without one."""
    path, headers, token = "/ws/worker/", {}, stage.values["WORKER"]
    if row is not None:
        path, token = stage.fill(row.path), stage.token(row)
        headers = {name: stage.fill(value) for name, value in row.headers.items()}
    if token and "Authorization" not in headers:
        headers["Authorization"] = f"Bearer {token}"
    options = {"compression": None, "max_size": None, "proxy": None, "ping_interval": None} | options
    async with connect(f"ws://127.0.0.1:{stage.port}{path}", additional_headers=headers, **options) as socket:
        yield socket


async def ending(socket: ClientConnection, timeout_s: float) -> int:
    """Return the code with which the server closes, or `OPEN` if it has not after a time."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                await socket.recv()
    except ConnectionClosed:
        return socket.close_code or 1006
    except TimeoutError:
        return OPEN


_FRAMES: dict[str, Callable[[], bytes | str]] = {
    "binary frame 16 random bytes": lambda: bytes.fromhex("c1f9e28a07d35b6e1c4fa09d77b2e851"),
    "text frame of 2 MiB": lambda: "x" * (2 * 1024 * 1024),
    "binary frame of 2 MiB": lambda: b"\xc4" * (2 * 1024 * 1024),
    "permessage-deflate: 14 KB on the wire, 15 MB inflated": lambda: b"\0" * (15 * 1024 * 1024),
    "'['*100000": lambda: b"\x91" * 100_000,
    "map in map, 100000 deep": lambda: b"\x91" + b"\x81\xa1a" * 100_000 + b"\xc0",
    "depth in an unknown field": lambda: (
        b"\x91\x88" + msgspec.msgpack.encode(hello())[1:] + b"\xa1x" + b"\x91" * 50_000 + b"\xc0"
    ),
    "array said to have 2^32-1 messages": lambda: b"\xdd\xff\xff\xff\xff",
    "string said to have 4 GB": lambda: b"\x91\x81\xa1t\xdb\xff\xff\xff\xff",
    "empty frame": lambda: b"",
    "empty array": lambda: b"\x90",
    "no array": lambda: msgspec.msgpack.encode(hello()),
    "JSON instead of MessagePack": lambda: json.dumps([hello()]).encode(),
    "hello with a lone surrogate in a name": lambda: packed(hello(name="w1")).replace(b"\xa2w1", b"\xa3\xed\xa0\x80"),
    "hello with invalid UTF-8": lambda: packed(hello(name="w1")).replace(b"\xa2w1", b"\xa2\xff\xfe"),
    "hello with NaN for a capacity": lambda: packed(hello(capacity=float("nan"))),
    "hello": lambda: packed(hello()),
    "two hellos in one frame": lambda: packed(hello(), hello()),
    "hello with 5000 messages behind it": lambda: packed(hello(), *[{"t": "heartbeat", "status": "ready"}] * 5_000),
    "hello with a model twice": lambda: packed(hello(models=[offer(UNASKED)] * 2)),
    "hello with bytes for a name": lambda: packed(hello(name=b"w1")),
    "hello with a date for a name": lambda: packed(hello(name=msgspec.msgpack.Ext(1, b"w1"))),
    "hello of an upstream worker at the metadata service": lambda: packed(hello(upstream="file:///etc/passwd")),
}


def _many_unknown() -> list[bytes]:
    return [packed({"t": "step", "chunks": [[f"req_{n}", 1, 0, ["x"]] for n in range(200)]})]


def _many_finished() -> list[bytes]:
    ends = [
        {"t": "finished", "task": f"r{n}", "attempt": 1, "reason": "stop", "generated_tokens": 1} for n in range(200)
    ]
    return [packed(*ends)]


_SERIES: dict[str, Callable[[], list[bytes]]] = {
    "10000 heartbeats in 1 s": lambda: [packed({"t": "heartbeat", "status": "ready"})] * 10_000,
    "200 heartbeats in one frame": lambda: [packed(*[{"t": "heartbeat", "status": "ready"}] * 200)],
    "20000 empty steps": lambda: [packed({"t": "step", "chunks": []})] * 20_000,
    "tokens of 200 unknown tasks": _many_unknown,
    "ends of 200 unknown tasks": _many_finished,
}


class Actor:
    """A worker that has been let in and holds a task of a client's, and that client."""

    def __init__(self, socket: ClientConnection, asked: asyncio.Task[Answer]) -> None:
        self.socket = socket
        self.asked = asked
        self.task = ""

    async def say(self, *messages: dict[str, Any]) -> None:
        with suppress(ConnectionClosed):
            await self.socket.send(packed(*messages))

    async def step(self, seq: int, *texts: str, attempt: int = 1, task: str = "") -> None:
        await self.say({"t": "step", "chunks": [[task or self.task, attempt, seq, list(texts)]]})

    async def finish(self, tokens: int = 1, **more: Any) -> None:
        end = {"t": "finished", "task": self.task, "attempt": 1, "reason": "stop", "generated_tokens": tokens}
        await self.say(end | more)

    async def code(self, timeout_s: float = 0.3) -> int:
        return await ending(self.socket, timeout_s)

    async def text(self) -> str:
        """Return what the client was told."""
        answer = await self.asked
        assert answer.status == 200, answer.body
        return "".join(piece for piece in contents(answer))


def contents(answer: Answer) -> list[str]:
    """Return the pieces of text in a stream; an error among them raises."""
    events = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    chunks = [json.loads(event) for event in events]
    assert not [chunk for chunk in chunks if "error" in chunk], chunks
    return [c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]]


@asynccontextmanager
async def acting(stage: Stage, model: str, **more: Any) -> AsyncIterator[Actor]:
    """Have a worker of the row's own hold a task."""
    async with dial(stage) as socket:
        await socket.send(packed(hello(model, name=f"actor-{next(_instances)}")))
        await socket.recv()
        await socket.send(packed({"t": "heartbeat", "status": "ready"}))
        asked = asyncio.create_task(stage.chat(model=model, stream=True, **({"max_tokens": 8} | more)))
        actor = Actor(socket, asked)
        for message in msgspec.msgpack.decode(await asyncio.wait_for(socket.recv(), 5)):
            actor.task = message["task"]
        try:
            yield actor
        finally:
            await asyncio.gather(asked, return_exceptions=True) if asked.done() else asked.cancel()


async def _unknown_task(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.step(0, "stray", task="req_unknown")
        await actor.step(0, "a")
        await actor.finish()
        assert await actor.text() == "a"
        return await actor.code()


async def _others_task(stage: Stage, model: str) -> int:
    async with acting(stage, model) as honest, dial(stage) as rogue:
        await rogue.send(packed(hello("mixtral-8x7b", name="rogue")))
        await rogue.recv()
        await rogue.send(packed({"t": "step", "chunks": [[honest.task, 1, 0, ["evil"]]]}))
        code = await ending(rogue, 5)
        await honest.step(0, "a")
        await honest.finish()
        assert await honest.text() == "a"
        return code


async def _repeated(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        for seq, text in ((0, "a"), (1, "b"), (1, "b"), (2, "c")):
            await actor.step(seq, text)
        await actor.finish(3)
        assert await actor.text() == "abc"
        return await actor.code()


async def _gap(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.step(0, "a")
        await actor.step(2, "c")
        await actor.step(1, "b")
        code = await actor.code(5)
        answer = await actor.asked
        assert b"[DONE]" not in answer.body
        assert b'"c"' not in answer.body
        assert code == 4400
        return OPEN


async def _late_token(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.step(0, "a")
        await actor.finish()
        await actor.step(1, "late")
        assert await actor.text() == "a"
        return await actor.code()


async def _done_twice(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.step(0, "a")
        await actor.finish()
        await actor.finish()
        assert await actor.text() == "a"
        sql = "SELECT state, completion_tokens FROM inference_request WHERE id = ?"
        rows = stage.server.rows(sql, actor.task)
        assert rows == [{"state": "completed", "completion_tokens": 1}]
        return await actor.code()


async def _stale_attempt(stage: Stage, model: str) -> int:
    async with acting(stage, model) as slow, dial(stage) as next_:
        await next_.send(packed(hello(model, name="next")))
        await next_.recv()
        (assign,) = msgspec.msgpack.decode(await asyncio.wait_for(next_.recv(), 10))
        assert (assign["task"], assign["attempt"]) == (slow.task, 2), "the first has said nothing for too long"
        await slow.step(0, "stale")
        await slow.finish()
        chunk = [slow.task, 2, 0, ["fresh"]]
        end = {"t": "finished", "task": slow.task, "attempt": 2, "reason": "stop", "generated_tokens": 1}
        await next_.send(packed({"t": "step", "chunks": [chunk]}, end))
        assert await slow.text() == "fresh"
        return await slow.code()


async def _negative_usage(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.finish(-5)
        assert await actor.code(5) == 4400
        actor.asked.cancel()
        return OPEN


async def _huge_usage(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.step(0, "a")
        await actor.finish(2**53)
        assert await actor.text() == "a"
        (row,) = stage.server.rows("SELECT * FROM inference_request WHERE id = ?", actor.task)
        assert (row["completion_tokens"], row["generated_tokens"]) == (1, 8), "no more than was asked for"
        return await actor.code()


async def _surplus(stage: Stage, model: str) -> int:
    async with acting(stage, model, max_tokens=2) as actor:
        await actor.step(0, "a", "b", "c")
        actor.asked.cancel()
        return await actor.code(5)


def _says(text: str) -> Callable[[Stage, str], Awaitable[int]]:
    async def scene(stage: Stage, model: str) -> int:
        async with acting(stage, model) as actor:
            await actor.step(0, text)
            await actor.finish()
            assert await actor.text() == text
            answer = actor.asked.result()
            assert answer.body.isascii(), "some clients split lines at more than line feeds"
            assert answer.body.count(b"[DONE]") - answer.body.count(b"[DONE]\\n") == 1
            return await actor.code()

    return scene


async def _surrogate(stage: Stage, model: str) -> int:
    assert await _says("a\u2028b\u0085c\u2029")(stage, model) == OPEN
    async with acting(stage, model) as actor:
        await actor.socket.send(
            packed({"t": "step", "chunks": [[actor.task, 1, 0, ["x?"]]]}).replace(b"x?", b"\xed\xa0")
        )
        assert await actor.code(5) == 4400, "text is UTF-8"
        actor.asked.cancel()
        return OPEN


async def _huge_token(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        await actor.step(0, "x" * 900_000)
        assert await actor.code(5) == 4400
        actor.asked.cancel()
        return OPEN


async def _idle(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        async with dial(stage) as other:
            await other.send(packed(hello(model, name="other")))
            await other.recv()
            for _ in range(9):
                await actor.say({"t": "heartbeat", "status": "ready"})
                await asyncio.sleep(0.1)
            (assign,) = msgspec.msgpack.decode(await asyncio.wait_for(other.recv(), 10))
            end = {"t": "finished", "task": assign["task"], "attempt": 2, "reason": "stop", "generated_tokens": 1}
            await other.send(packed({"t": "step", "chunks": [[assign["task"], 2, 0, ["other"]]]}, end))
            assert await actor.text() == "other"
        return OPEN


async def _reads_nothing(stage: Stage, model: str) -> int:
    async with acting(stage, model) as actor:
        actor.socket.transport.pause_reading()
        for _ in range(32):
            await actor.say({"t": "heartbeat", "status": "ready"})
            await asyncio.sleep(1)
        # What is sent after the server has closed would take its farewell away.
        await asyncio.sleep(11)
        actor.socket.transport.resume_reading()
        actor.asked.cancel()
        return await actor.code(10)


async def _told_error(stage: Stage, model: str) -> int:
    secret = "Traceback /home/worker/secret.py $PROMPT hi"
    async with acting(stage, model) as actor:
        failed = {"t": "failed", "task": actor.task, "attempt": 1, "code": "oom", "message": secret, "retryable": False}
        await actor.say(failed)
        answer = await actor.asked
        assert answer.status == 500
        assert b"secret.py" not in answer.body
        return await actor.code()


_SCENES: dict[str, Callable[[Stage, str], Awaitable[int]]] = {
    "ws-20": _unknown_task,
    "ws-21": _others_task,
    "ws-22": _repeated,
    "ws-23": _gap,
    "ws-24": _late_token,
    "ws-25": _done_twice,
    "ws-26": _stale_attempt,
    "ws-27": _negative_usage,
    "ws-28": _says("\n\ndata: [DONE]\n\n"),
    "ws-29": _surrogate,
    "ws-30": _huge_token,
    "ws-32": _reads_nothing,
    "ws-33": _idle,
    "ws-34": _told_error,
    "our-ws-huge-usage": _huge_usage,
    "our-ws-surplus": _surplus,
    "our-ws-html": _says("<script>alert(1)</script>\u0000\u001b[31m"),
}
