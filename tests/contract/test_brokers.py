"""What every broker promises, whatever carries its messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

from cluster.brokers.base import Broker
from cluster.brokers.memory import MemoryBroker
from cluster.domain import ClusterSnapshot
from cluster.scheduler.commands import CancelAttempt, Command
from cluster.scheduler.events import Event, TaskCancelled
from tests.client import until

T = TypeVar("T")


@pytest.fixture(params=[MemoryBroker])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    broker: Broker = request.param()
    await broker.start()
    yield broker
    await broker.stop()


class Inbox(list[T]):
    """Collects what a broker delivers, and waits for it."""

    async def expect(self, count: int) -> list[T]:
        await until(lambda: len(self) >= count, f"{count} messages")
        return self[:]


def cancel(node: str, task: str = "req_1") -> CancelAttempt:
    return CancelAttempt(node, "wrk_1", "lnk_1", task, 1)


async def test_events_reach_the_dispatcher_in_the_order_of_their_sender(broker: Broker):
    inbox: Inbox[Event] = Inbox()
    broker.attach_dispatcher(inbox.append)
    sent = [TaskCancelled(f"req_{number}") for number in range(100)]

    for event in sent:
        broker.publish_event(event)

    assert await inbox.expect(100) == sent


async def test_each_command_reaches_the_gateway_of_its_node_in_order(broker: Broker):
    first: Inbox[Command] = Inbox()
    second: Inbox[Command] = Inbox()
    broker.attach_gateway("node-1", first.append)
    broker.attach_gateway("node-2", second.append)

    broker.publish_commands([cancel("node-1", "a"), cancel("node-2", "b"), cancel("node-1", "c")])

    assert await first.expect(2) == [cancel("node-1", "a"), cancel("node-1", "c")]
    assert await second.expect(1) == [cancel("node-2", "b")]


async def test_a_command_for_a_node_that_is_not_there_is_lost_without_harm(broker: Broker):
    inbox: Inbox[Command] = Inbox()
    broker.attach_gateway("node-1", inbox.append)

    broker.publish_commands([cancel("node-9"), cancel("node-1")])

    assert await inbox.expect(1) == [cancel("node-1")]


async def test_a_snapshot_reaches_every_board(broker: Broker):
    boards: list[Inbox[ClusterSnapshot]] = [Inbox(), Inbox()]
    for board in boards:
        broker.attach_board(board.append)

    broker.publish_snapshot(ClusterSnapshot(version=7))

    for board in boards:
        assert [snapshot.version for snapshot in await board.expect(1)] == [7]


async def test_an_event_without_a_dispatcher_is_lost_without_harm(broker: Broker):
    broker.publish_event(TaskCancelled("req_1"))

    inbox: Inbox[Event] = Inbox()
    broker.attach_dispatcher(inbox.append)
    broker.publish_event(TaskCancelled("req_2"))

    assert (await inbox.expect(1))[-1] == TaskCancelled("req_2")


async def test_a_broker_is_well_once_there_is_a_dispatcher_to_hear(broker: Broker):
    hear: Callable[[Event], None] = Inbox().append

    assert not broker.healthy
    broker.attach_dispatcher(hear)

    assert broker.healthy
