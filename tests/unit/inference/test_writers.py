"""Who is cut off for not reading, and who is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.domain import Outcome
from cluster.engine.streams import TOKEN_BYTES
from inference.completions import Completion
from inference.openai.http import Exchange
from inference.openai.writers import LOOKS, MAX_BYTES, Writers
from tests.unit.cluster.engine.rig import Rig, RigWorker
from tests.unit.inference.rig import Desk

STUCK_S = 30.0
LOOK_S = STUCK_S / LOOKS
NOW_S = 5_000.0
MOST = MAX_BYTES // (TOKEN_BYTES + 1)
"""Tokens of one character that may wait."""


class Connection:
    """A server's end of a connection that can be dropped."""

    def __init__(self) -> None:
        self.aborted = 0

    def take_body(self) -> None:
        raise AssertionError("not for a writer to ask")

    answer = take_body

    def abort(self) -> None:
        self.aborted += 1


class Stage:
    """A stream that a worker fills, the connection it is written to, and who looks after it."""

    def __init__(self, completion: Completion, desk: Desk, worker: RigWorker) -> None:
        self.completion = completion
        self.desk = desk
        self.worker = worker
        self.connection = Connection()
        self.exchange = make_exchange(self.connection)
        self.writers = Writers(stuck_s=STUCK_S)

    def generate(self, tokens: int) -> None:
        stream = self.completion.stream
        self.worker.push("req_1", stream.next_seq, *["x"] * tokens)


def make_exchange(connection: Any) -> Exchange:
    async def unused(*_: Any) -> Any:
        raise AssertionError("not for a writer to use")

    return Exchange("req_1", "POST", "/v1/chat/completions", [], unused, unused, connection)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    rig = Rig()
    desk = Desk(rig)
    worker = rig.join()
    stage = Stage(await desk.start(stream=True, max_tokens=8_000), desk, worker)
    stage.writers.add(stage.exchange, stage.completion)
    yield stage
    stage.writers.remove(stage.exchange)
    rig.stop()


async def test_a_write_that_waits_too_long_costs_the_client_its_connection(stage: Stage):
    stage.exchange.writing_since_s = NOW_S

    stage.writers.look(NOW_S + STUCK_S - 0.1)
    assert stage.connection.aborted == 0
    stage.writers.look(NOW_S + STUCK_S)

    assert stage.connection.aborted == 1
    assert (stage.desk.settlement.outcome, stage.desk.settlement.error_code) == (Outcome.CANCELLED, "client_too_slow")
    assert stage.completion.stream.abandoned


async def test_who_lets_too_much_pile_up_is_cut_off_before_that(stage: Stage):
    stage.exchange.writing_since_s = NOW_S
    stage.generate(MOST)
    stage.writers.look(NOW_S + LOOK_S)
    assert stage.connection.aborted == 0

    stage.generate(1)
    stage.writers.look(NOW_S + LOOK_S)

    assert stage.connection.aborted == 1
    assert stage.desk.settlement.error_code == "client_too_slow"


async def test_large_tokens_count_for_what_they_are(stage: Stage):
    stage.exchange.writing_since_s = NOW_S
    stage.worker.push("req_1", 0, *["x" * 10_000] * 27)

    stage.writers.look(NOW_S + LOOK_S)

    assert stage.connection.aborted == 1


async def test_a_pile_that_has_only_just_come_is_the_workers_haste_and_nobodys_fault(stage: Stage):
    stage.exchange.writing_since_s = NOW_S
    stage.generate(MOST + 1)

    stage.writers.look(NOW_S + LOOK_S - 0.01)

    assert stage.connection.aborted == 0


async def test_a_stream_that_is_not_being_written_may_wait_as_long_as_it_likes(stage: Stage):
    stage.generate(MOST + 1)

    stage.writers.look(NOW_S + 100 * STUCK_S)

    assert stage.connection.aborted == 0
    assert not stage.completion.stream.ended


async def test_who_is_let_go_is_not_looked_at_any_more(stage: Stage):
    stage.exchange.writing_since_s = NOW_S
    stage.writers.remove(stage.exchange)
    stage.writers.remove(stage.exchange)

    stage.writers.look(NOW_S + STUCK_S)

    assert stage.connection.aborted == 0


async def test_a_server_that_cannot_drop_connections_ends_the_stream_all_the_same(stage: Stage):
    exchange = make_exchange(None)
    exchange.writing_since_s = NOW_S
    stage.writers.add(exchange, stage.completion)

    stage.writers.look(NOW_S + STUCK_S)

    assert stage.completion.stream.abandoned


async def test_a_write_is_under_way_from_its_send_until_that_returns():
    since: list[float] = []

    async def send(message: Any) -> None:
        since.append(exchange.writing_since_s)

    exchange = make_exchange(None)
    exchange._send = send

    await exchange.send_part(b"part")
    assert exchange.writing_since_s == 0.0
    await exchange.end_stream()

    assert exchange.writing_since_s == 0.0
    assert all(since)


async def test_it_looks_by_itself_as_long_as_there_is_anybody():
    rig = Rig()
    desk = Desk(rig)
    rig.join()
    aborted = asyncio.Event()
    connection = Connection()
    connection.abort = aborted.set  # type: ignore[method-assign]
    completion, exchange = await desk.start(stream=True), make_exchange(connection)
    writers = Writers(stuck_s=0.03)
    exchange.writing_since_s = 1e-9  # since long ago

    writers.add(exchange, completion)
    await asyncio.wait_for(aborted.wait(), 5)
    writers.remove(exchange)

    assert desk.settlement.error_code == "client_too_slow"
    rig.stop()
