"""The workers' socket as ASGI sees it: who is let in, and with which code each ending comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.brokers.memory import MemoryBroker
from cluster.consumers import WorkerConsumer
from cluster.engine.gateway import Gateway
from cluster.engine.registrar import UnableToAuthenticate
from cluster.protocol.messages import CloseCode, Heartbeat, Welcome
from cluster.protocol.session import WorkerSession
from cluster.scheduler.events import Event, HeartbeatReceived, WorkerJoined, WorkerLost
from cluster.services import WorkerCredential
from tests.fakes import make_hello

CREDENTIAL = WorkerCredential(token_id=1, name="rack 1", models=("llama-*",))
BEARER = (b"authorization", b"Bearer wk-secret")


class Door:
    """A gateway without a dispatcher, and the sockets that knock on it."""

    def __init__(self) -> None:
        broker = MemoryBroker()
        self.events: list[Event] = []
        broker.attach_dispatcher(self.events.append)
        self.gateway = Gateway("node-1", broker, heartbeat_s=5.0, max_frame_bytes=1024)
        self.shown: list[str] = []
        self.credential: WorkerCredential | Exception | None = CREDENTIAL

    async def authenticate(self, secret: str) -> WorkerCredential | None:
        self.shown.append(secret)
        if isinstance(self.credential, Exception):
            raise self.credential
        return self.credential

    @asynccontextmanager
    async def knock(
        self, *headers: tuple[bytes, bytes], hello_timeout_s: float = 5.0, max_sockets_per_token: int = 10
    ) -> AsyncIterator[Socket]:
        """Return a socket whose handshake is under way."""
        consumer = WorkerConsumer(
            gateway=self.gateway,
            authenticate=self.authenticate,
            hello_timeout_s=hello_timeout_s,
            max_sockets_per_token=max_sockets_per_token,
        )
        socket = Socket()
        scope = {"type": "websocket", "headers": headers or (BEARER,)}
        served = asyncio.create_task(consumer(scope, socket.inbox.get, socket.outbox.put))
        socket.inbox.put_nowait({"type": "websocket.connect"})
        try:
            yield socket
        finally:
            socket.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            await asyncio.wait_for(served, 5)


class Socket:
    """The server's view of one WebSocket."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._session = WorkerSession()

    async def next(self) -> dict[str, Any]:
        """Return what the server is told next."""
        return await asyncio.wait_for(self.outbox.get(), 5)

    async def closed(self) -> tuple[int, bool]:
        """Return the close code, and whether the handshake had been completed before."""
        accepted = False
        while (message := await self.next())["type"] != "websocket.close":
            accepted = accepted or message["type"] == "websocket.accept"
        return message["code"], accepted

    def say(self, *messages: Any) -> None:
        """Send messages as a worker does."""
        for frame in self._session.send(messages, 0.0):
            self.inbox.put_nowait({"type": "websocket.receive", "bytes": frame})

    async def join(self) -> None:
        """Say hello and wait for the welcome."""
        assert (await self.next())["type"] == "websocket.accept"
        self.say(make_hello())
        (welcome,) = self._session.receive((await self.next())["bytes"], 0.0)
        assert isinstance(welcome, Welcome)


@pytest.fixture
def door() -> Door:
    return Door()


async def test_a_worker_joins_speaks_and_leaves(door: Door):
    async with door.knock() as socket:
        await socket.join()
        socket.say(Heartbeat(status="ready"))

    assert door.shown == ["wk-secret"]
    assert [type(event) for event in door.events] == [WorkerJoined, HeartbeatReceived, WorkerLost]
    assert door.gateway.links == {}


@pytest.mark.parametrize(
    "headers",
    [
        ((b"host", b"x"),),
        ((b"authorization", b"Basic wk-secret"),),
        (BEARER, BEARER),
        (BEARER, (b"origin", b"https://evil.example")),
    ],
)
async def test_who_shows_no_token_is_refused_before_the_handshake_without_a_look_at_the_database(
    door: Door, headers: tuple[tuple[bytes, bytes], ...]
):
    async with door.knock(*headers) as socket:
        assert await socket.closed() == (CloseCode.NO_TOKEN, False)

    assert door.shown == []


async def test_a_wrong_token_is_refused_before_the_handshake(door: Door):
    door.credential = None

    async with door.knock() as socket:
        assert await socket.closed() == (CloseCode.NO_TOKEN, False)


async def test_while_the_gateway_drains_a_worker_is_told_to_come_again(door: Door):
    door.gateway.draining = True

    async with door.knock() as socket:
        assert await socket.closed() == (CloseCode.GOING_AWAY, True)


async def test_while_tokens_cannot_be_checked_a_worker_is_told_to_come_again(door: Door):
    door.credential = UnableToAuthenticate()

    async with door.knock() as socket:
        assert await socket.closed() == (CloseCode.TRY_AGAIN, True)


async def test_a_token_holds_only_so_many_sockets_open(door: Door):
    async with door.knock(max_sockets_per_token=2) as first, door.knock(max_sockets_per_token=2) as silent:
        await first.join()
        assert (await silent.next())["type"] == "websocket.accept"

        async with door.knock(max_sockets_per_token=2) as third:
            assert await third.closed() == (CloseCode.TOO_MANY, True)

        door.credential = WorkerCredential(token_id=2, name="rack 2", models=("llama-*",))
        async with door.knock(max_sockets_per_token=2) as other:
            await other.join()
    door.credential = CREDENTIAL
    async with door.knock(max_sockets_per_token=2) as again:
        await again.join()


async def test_text_is_a_violation(door: Door):
    async with door.knock() as socket:
        socket.inbox.put_nowait({"type": "websocket.receive", "text": "hello"})

        assert await socket.closed() == (CloseCode.BAD_FRAME, True)


async def test_a_worker_that_says_no_hello_is_hung_up(door: Door):
    async with door.knock(hello_timeout_s=0.01) as socket:
        assert await socket.closed() == (CloseCode.SILENT, True)

    assert door.events == []


async def test_a_model_that_the_token_does_not_permit_is_a_violation(door: Door):
    door.credential = WorkerCredential(token_id=1, name="rack 1", models=("mistral-*",))

    async with door.knock() as socket:
        socket.say(make_hello())

        assert await socket.closed() == (CloseCode.NOT_YOURS, True)


async def test_a_fault_of_ours_is_not_blamed_on_the_worker(door: Door, monkeypatch: pytest.MonkeyPatch):
    async with door.knock() as socket:
        await socket.join()
        monkeypatch.setattr(door.gateway, "receive", lambda link, messages: 1 / 0)
        socket.say(Heartbeat(status="ready"))

        assert await socket.closed() == (CloseCode.INTERNAL_ERROR, False)


async def test_a_link_that_cannot_be_written_to_does_not_live_on_mute(door: Door):
    async with door.knock() as socket:
        await socket.join()
        (link,) = door.gateway.links.values()

        link.send(make_hello())  # type: ignore[arg-type]  # nothing that a gateway can say

        assert await socket.closed() == (CloseCode.INTERNAL_ERROR, False)
        assert isinstance(door.events[-1], WorkerLost)


async def test_after_the_hang_up_nothing_is_heard(door: Door):
    async with door.knock() as socket:
        await socket.join()
        (link,) = door.gateway.links.values()
        door.gateway.hang_up(link, CloseCode.SILENT, "silent")
        socket.say(Heartbeat(status="ready"))

        assert await socket.closed() == (CloseCode.SILENT, False)

    assert [type(event) for event in door.events] == [WorkerJoined, WorkerLost]


@pytest.mark.parametrize("credential", [CREDENTIAL, None, UnableToAuthenticate()])
@pytest.mark.parametrize("error", [AssertionError(), OSError(), RuntimeError()])
async def test_a_worker_that_leaves_during_its_handshake_is_no_error_of_ours(
    credential: WorkerCredential | Exception | None, error: Exception
) -> None:
    door = Door()
    door.credential = credential
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    inbox.put_nowait({"type": "websocket.connect"})

    async def send(message: dict[str, Any]) -> None:
        raise error

    consumer = WorkerConsumer(gateway=door.gateway, authenticate=door.authenticate, hello_timeout_s=5.0)
    await asyncio.wait_for(consumer({"type": "websocket", "headers": (BEARER,)}, inbox.get, send), 5)

    assert door.gateway.links == {}
    assert door.events == []
