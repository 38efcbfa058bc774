"""Workers that do everything wrong, on the socket of a server that is busy with a good one.

Each of them loses its own socket, with the code that says why; a stream that is under way goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.protocol.messages import CloseCode
from cluster.worker.agent import Agent
from tests.client import Call, call, until
from tests.fakes import FakeBackend, make_hello
from tests.live import WORKER_TOKEN, LiveServer, live_server

HELLO_TIMEOUT_S = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("socket")
    with live_server(folder, GPUCLOUD_HELLO_TIMEOUT_S=str(HELLO_TIMEOUT_S)) as server:
        yield server


@asynccontextmanager
async def dial(server: LiveServer, path: str = "/ws/worker/", **headers: str) -> AsyncIterator[ClientConnection]:
    """Open a socket as a worker with a good token, unless told otherwise."""
    sent = {"Authorization": f"Bearer {WORKER_TOKEN}"} | headers
    url = f"ws://127.0.0.1:{server.port}{path}"
    async with connect(url, additional_headers=sent, compression=None, max_size=None) as socket:
        yield socket


async def send(socket: ClientConnection, frame: str | bytes) -> None:
    """Send a frame, though the server may hang up in the middle of it."""
    with suppress(ConnectionClosed):
        await socket.send(frame)


async def close_code(socket: ClientConnection) -> int | None:
    """Return the code with which the server closes the socket."""
    async with asyncio.timeout(10):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed:
            return socket.close_code


def packed(*messages: Any) -> bytes:
    return msgspec.msgpack.encode(list(messages))


@pytest.fixture
async def stream(server: LiveServer) -> AsyncIterator[Stream]:
    """A stream that is under way on a good worker; at the end it must be whole."""
    backend = FakeBackend()
    agent = Agent(backend, name="good", gateway=server.url, token=WORKER_TOKEN)
    joined = server.log().count("worker joined: good")
    running = asyncio.create_task(agent.run())
    await until(lambda: server.log().count("worker joined: good") > joined, "the good worker joined")
    async with call(server, stream=True) as client:
        await until(lambda: backend.assigned, "an assignment")
        stream = Stream(client, backend)
        await stream.goes_on()
        yield stream
        await stream.goes_on()
        backend.finish(stream.task, 1)
        assert (await client.events())[-1] == "[DONE]"
    agent.leave()
    await asyncio.wait_for(running, 10)


class Stream:
    """One stream between a client and a good worker."""

    def __init__(self, client: Call, backend: FakeBackend) -> None:
        self.task = backend.assigned[0].task
        self._client = client
        self._backend = backend
        self._seq = 0

    async def goes_on(self) -> None:
        """Have the worker say one more token and the client hear it."""
        self._backend.step(self.task, 1, self._seq, f"token {self._seq}")
        if not self._client.status:
            assert await self._client.head() == 200
        assert await self._client.token() == f"token {self._seq}"
        self._seq += 1


HELLO = packed(msgspec.to_builtins(make_hello()))
DEEP = b"\x91" * 100_000


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param("hello", CloseCode.BAD_FRAME, id="text"),
        pytest.param('[{"t": "hello"}]', CloseCode.BAD_FRAME, id="JSON"),
        pytest.param(b"", CloseCode.BAD_FRAME, id="empty"),
        pytest.param(b"\xff\x00garbage", CloseCode.BAD_FRAME, id="garbage"),
        pytest.param(DEEP, CloseCode.BAD_FRAME, id="deep"),
        pytest.param(packed({"t": "surprise"}), CloseCode.BAD_FRAME, id="unknown kind"),
        pytest.param(packed({"t": "heartbeat", "status": "ready"}), CloseCode.BAD_FRAME, id="no hello first"),
        pytest.param(packed({"t": "hello", "v": 99}), CloseCode.VERSION, id="version 99"),
        pytest.param(b"\xc4" * (2 * 1024 * 1024), 1009, id="2 MiB"),
        pytest.param("x" * (2 * 1024 * 1024), 1009, id="2 MiB of text"),
    ],
)
async def test_a_bad_first_frame_costs_the_socket(server: LiveServer, stream: Stream, frame: str | bytes, code: int):
    async with dial(server) as socket:
        await send(socket, frame)
        await stream.goes_on()

        assert await close_code(socket) == code


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param("text", CloseCode.BAD_FRAME, id="text"),
        pytest.param(b"\xc1", CloseCode.BAD_FRAME, id="garbage"),
        pytest.param(HELLO, CloseCode.BAD_FRAME, id="second hello"),
        pytest.param(b"\x00" * (2 * 1024 * 1024), 1009, id="2 MiB"),
        pytest.param(
            packed({"t": "step", "chunks": [[f"req_{n}", 1, 0, ["x"]] for n in range(200)]}),
            CloseCode.BAD_FRAME,
            id="many unknown tasks",
        ),
        pytest.param(
            packed(*[{"t": "heartbeat", "status": "ready"} for _ in range(200)]), CloseCode.TOO_MANY, id="heartbeats"
        ),
    ],
)
async def test_a_bad_frame_after_the_welcome_costs_the_socket(
    server: LiveServer, stream: Stream, frame: str | bytes, code: int
):
    async with dial(server) as socket:
        await socket.send(HELLO)
        await socket.recv()  # welcome

        await send(socket, frame)
        await stream.goes_on()

        assert await close_code(socket) == code


async def test_a_token_for_the_good_workers_task_costs_the_socket(server: LiveServer, stream: Stream):
    async with dial(server) as socket:
        await socket.send(HELLO)
        await socket.recv()

        await socket.send(packed({"t": "step", "chunks": [[stream.task, 1, 1, ["evil"]]]}))

        assert await close_code(socket) == CloseCode.NOT_YOURS
    await stream.goes_on()


async def test_who_says_no_hello_is_hung_up_in_time(server: LiveServer, stream: Stream):
    began_s = asyncio.get_running_loop().time()

    async with dial(server) as socket:
        assert await close_code(socket) == CloseCode.SILENT

    assert HELLO_TIMEOUT_S <= asyncio.get_running_loop().time() - began_s < HELLO_TIMEOUT_S + 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer wk-wrong"},
        {"Authorization": f"Basic {WORKER_TOKEN}"},
        {"Origin": "http://127.0.0.1"},
    ],
)
async def test_who_has_no_business_here_is_refused_before_the_handshake(server: LiveServer, headers: dict[str, str]):
    with pytest.raises(InvalidStatus) as refused:
        async with dial(server, **headers):
            pass

    assert refused.value.response.status_code == 403


async def test_a_token_in_the_query_string_does_not_count(server: LiveServer):
    with pytest.raises(InvalidStatus) as refused:
        async with dial(server, f"/ws/worker/?token={WORKER_TOKEN}", Authorization=""):
            pass

    assert refused.value.response.status_code == 403
    assert WORKER_TOKEN not in server.log()


@pytest.mark.parametrize("path", ["/ws/nope", "/ws/", "/", "/v1/chat/completions", "/ws/worker"])
async def test_a_socket_that_leads_nowhere_is_refused(server: LiveServer, path: str):
    with pytest.raises(InvalidStatus) as refused:
        async with dial(server, path):
            pass

    assert refused.value.response.status_code == 403
    assert "Traceback" not in server.log()


async def test_a_worker_that_never_reads_its_farewell_is_forgotten_all_the_same(server: LiveServer, stream: Stream):
    left = server.log().count("worker left: ")
    async with dial(server) as socket:
        await socket.send(HELLO)
        await socket.recv()
        socket.transport.pause_reading()

        await socket.send(b"\xc1")

        await until(lambda: server.log().count("worker left: ") > left, "the server has let go")
        await stream.goes_on()
        socket.transport.abort()


async def test_nothing_of_this_was_an_error_of_the_server(server: LiveServer, stream: Stream):
    assert "Traceback" not in server.log()
    assert "ERROR" not in server.log()
