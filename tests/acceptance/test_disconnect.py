"""A client that leaves, in every state of its request: the work stops, the slot comes back, the
ledger says what was delivered.

The worker is a real agent on a real link with a backend in the test's hands, and has one slot: a
request that is answered afterwards proves that the slot is free.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.protocol.messages import Assign
from cluster.worker.agent import Agent
from tests.client import Call, call, until
from tests.fakes import FakeBackend
from tests.live import WORKER_TOKEN, LiveServer, live_server

MAX_CANCEL_S = 0.25


class Stage:
    """A server and its only worker."""

    def __init__(self, server: LiveServer, backend: FakeBackend) -> None:
        self.server = server
        self.backend = backend
        self._seen = 0

    async def next_assign(self) -> Assign:
        """Return the next task that the worker is given."""
        await until(lambda: len(self.backend.assigned) > self._seen, "an assignment")
        self._seen += 1
        return self.backend.assigned[self._seen - 1]

    async def cancelled(self, task: str) -> None:
        """Return once the worker has been told to stop a task."""
        await until(lambda: (task, 1) in self.backend.cancelled, f"cancel of {task}")

    async def row(self, task: str) -> dict[str, Any]:
        """Return a request's row once it is in a final state."""
        sql = "SELECT * FROM inference_request WHERE id = ? AND ended_at IS NOT NULL"
        (row,) = await until(lambda: self.server.rows(sql, task), f"final row of {task}")
        return row

    async def assert_slot_is_free(self) -> None:
        """Have the worker answer one more request, for which it needs its only slot."""
        async with call(self.server) as other:
            task = (await self.next_assign()).task
            self.backend.step(task, 1, 0, "free")
            self.backend.finish(task, 1)
            answer = await other.answer()
        assert answer["choices"][0]["message"]["content"] == "free"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("disconnect")) as server:
        yield server


@pytest.fixture
async def stage(server: LiveServer) -> AsyncIterator[Stage]:
    async with only_worker(server) as backend:
        yield Stage(server, backend)


@asynccontextmanager
async def only_worker(server: LiveServer) -> AsyncIterator[FakeBackend]:
    backend = FakeBackend(capacity=1)
    agent = Agent(backend, name="only", gateway=server.url, token=WORKER_TOKEN)
    joined = server.log().count("worker joined: only")
    running = asyncio.create_task(agent.run())
    try:
        await until(lambda: server.log().count("worker joined: only") > joined, "the worker joined")
        yield backend
    finally:
        agent.leave()
        async with asyncio.timeout(10):
            await running


def go(client: Call, how: str) -> None:
    client.leave() if how == "FIN" else client.vanish()


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("tokens", [1, 3])
async def test_a_stream_that_is_left_ends_with_what_was_delivered(stage: Stage, how: str, tokens: int):
    async with call(stage.server, stream=True) as client:
        task = (await stage.next_assign()).task
        for seq in range(tokens):
            stage.backend.step(task, 1, seq, f"token {seq} ")
            if seq == 0:
                assert await client.head() == 200
            assert await client.token() == f"token {seq} "

        go(client, how)

        await stage.cancelled(task)
    row = await stage.row(task)
    assert (row["state"], row["error_code"], row["delivered_tokens"]) == ("cancelled", "client_closed", tokens)
    await stage.assert_slot_is_free()


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_left_before_its_first_token_bills_nothing(stage: Stage, how: str, stream: bool):
    async with call(stage.server, stream=stream) as client:
        task = (await stage.next_assign()).task

        go(client, how)

        await stage.cancelled(task)
    row = await stage.row(task)
    assert (row["state"], row["delivered_tokens"], row["attempts"]) == ("cancelled", 0, 1)
    await stage.assert_slot_is_free()


async def test_a_whole_answer_that_nobody_waits_for_bills_what_was_generated_and_delivers_nothing(stage: Stage):
    async with call(stage.server) as client:
        task = (await stage.next_assign()).task
        stage.backend.step(task, 1, 0, "half ", "an ", "answer")

        client.leave()

        await stage.cancelled(task)
    row = await stage.row(task)
    assert (row["state"], row["delivered_tokens"]) == ("cancelled", 0)
    assert row["completion_tokens"] == row["generated_tokens"] <= 3
    await stage.assert_slot_is_free()


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_left_in_the_queue_never_reaches_a_worker(stage: Stage, how: str, stream: bool):
    sql = "SELECT id FROM inference_request WHERE state = 'open'"
    async with call(stage.server) as running, call(stage.server, stream=stream) as waiting:
        task = (await stage.next_assign()).task
        await until(lambda: len(stage.server.rows(sql)) == 2, "both are on record")
        (left,) = (row["id"] for row in stage.server.rows(sql) if row["id"] != task)

        go(waiting, how)

        row = await stage.row(left)
        assert (row["state"], row["attempts"], row["worker_name"]) == ("cancelled", 0, "")
        stage.backend.finish(task, 1)
        await running.answer()
    await stage.assert_slot_is_free()
    assert left not in {assign.task for assign in stage.backend.assigned}


async def test_the_worker_hears_of_it_at_once(stage: Stage):
    delays_s = []
    for _ in range(5):
        async with call(stage.server, stream=True) as client:
            task = (await stage.next_assign()).task
            stage.backend.step(task, 1, 0, "hi")
            await client.head()
            await client.token()

            began_s = asyncio.get_running_loop().time()
            client.leave()
            await stage.cancelled(task)
            delays_s.append(asyncio.get_running_loop().time() - began_s)

    assert statistics.median(delays_s) < MAX_CANCEL_S, delays_s


async def test_a_client_that_leaves_harms_no_other(stage: Stage):
    async with call(stage.server, stream=True) as staying:
        task = (await stage.next_assign()).task
        stage.backend.step(task, 1, 0, "a")
        await staying.head()
        cancelled = "SELECT id FROM inference_request WHERE state = 'cancelled'"
        before = len(stage.server.rows(cancelled))
        for _ in range(5):
            async with call(stage.server, stream=True) as leaving:
                leaving.leave()
        await until(lambda: len(stage.server.rows(cancelled)) == before + 5, "all five are on record")
        stage.backend.step(task, 1, 1, "b")
        stage.backend.finish(task, 1)

        assert [await staying.token(), await staying.token()] == ["a", "b"]
        assert (await staying.events())[-1] == "[DONE]"
    await stage.assert_slot_is_free()


async def test_the_books_balance_after_all_that(stage: Stage):
    await stage.assert_slot_is_free()

    assert stage.server.manage("balance").splitlines()[-1] == "balance: 0"
    assert stage.server.rows("SELECT id FROM inference_request WHERE state = 'open'") == []
