"""The newest snapshot, for whoever reads it and whoever waits for it."""

from __future__ import annotations

import asyncio

import pytest

from cluster.domain import ClusterSnapshot, Tier, WaitingView
from cluster.engine.board import SnapshotBoard


def waiting(task: str, position: int) -> WaitingView:
    return WaitingView(
        task=task,
        model="llama-3-8b",
        tenant="usr_alice",
        tenant_label="Alice",
        tier=Tier.DEFAULT,
        position=position,
        waited_s=0.0,
    )


def snapshot(version: int, *head: WaitingView) -> ClusterSnapshot:
    return ClusterSnapshot(version=version, head=head)


def test_a_task_has_the_place_that_the_latest_snapshot_shows():
    board = SnapshotBoard()
    assert board.place_of("req_2") is None

    board.publish(snapshot(1, waiting("req_1", 1), waiting("req_2", 2)))
    assert (board.place_of("req_2"), board.place_of("req_9")) == (waiting("req_2", 2), None)

    board.publish(snapshot(2, waiting("req_2", 1)))
    assert (board.place_of("req_1"), board.place_of("req_2")) == (None, waiting("req_2", 1))


def test_many_may_ask_for_their_place_and_a_snapshot_is_gone_through_once():
    class Head(tuple[WaitingView, ...]):
        reads = 0

        def __iter__(self):
            Head.reads += 1
            return super().__iter__()

    board = SnapshotBoard()
    views = Head(waiting(f"req_{number}", number) for number in range(1, 101))
    board.publish(ClusterSnapshot(version=1, head=views))

    for number in range(1, 101):
        view = board.place_of(f"req_{number}")
        assert view is not None and view.position == number

    assert Head.reads == 1


async def test_who_waits_for_news_gets_the_newest_however_many_there_were():
    board = SnapshotBoard()
    reader = asyncio.create_task(board.newer_than(0))
    await asyncio.sleep(0)

    board.publish(snapshot(1))
    board.publish(snapshot(2))

    assert (await asyncio.wait_for(reader, 1)).version == 2
    assert (await board.newer_than(1)).version == 2


async def test_a_waiter_that_left_is_in_nobodys_way():
    board = SnapshotBoard()
    gone, staying = (asyncio.create_task(board.newer_than(0)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone

    board.publish(snapshot(1))

    assert (await asyncio.wait_for(staying, 1)).version == 1
