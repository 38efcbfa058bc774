"""One request from its admission to its row: its tier, its story and its bill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.domain import Outcome, Tier, WaitReason
from cluster.engine.streams import StreamFailure
from cluster.protocol.messages import Cancel, Failed
from inference.openai.errors import ApiError, from_failure
from inference.records import Assigned, Queued, Retried
from tests.unit.cluster.engine.rig import Rig
from tests.unit.inference.rig import Desk


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    rig = Rig()
    yield Desk(rig)
    rig.stop()


@pytest.mark.parametrize(
    ("asked", "tier", "highest_tier", "served"),
    [
        (None, "default", "priority", "default"),
        ("auto", "default", "priority", "default"),
        ("default", "flex", "priority", "default"),
        ("flex", "default", "priority", "flex"),
        ("priority", "default", "priority", "priority"),
        (None, "flex", "priority", "flex"),
        ("auto", "flex", "default", "flex"),
        (None, "priority", "priority", "priority"),
        ("priority", "default", "default", "default"),
        ("priority", "flex", "flex", "flex"),
        ("default", "flex", "flex", "flex"),
        ("flex", "batch", "batch", "batch"),
        ("auto", "batch", "default", "batch"),
        ("default", "batch", "default", "default"),
        (None, "priority", "flex", "flex"),
    ],
)
async def test_a_request_is_served_in_the_tier_that_it_asks_for_if_its_key_may(
    desk: Desk, asked: str | None, tier: str, highest_tier: str, served: str
):
    more = {} if asked is None else {"service_tier": asked}

    completion = await desk.start(tier=tier, highest_tier=highest_tier, **more)

    assert completion.task.tier is Tier[served.upper()]
    assert desk.ledger.rows[0].opened.tier == served


@pytest.mark.parametrize("asked", ["batch", "scale", "PRIORITY", "", 1])
async def test_a_tier_that_openai_does_not_have_here_is_refused(desk: Desk, asked: object):
    with pytest.raises(ApiError) as refused:
        await desk.start(service_tier=asked)

    assert refused.value.status == 400
    assert desk.ledger.rows == []


async def test_the_story_of_a_request_is_told_from_what_befell_it(desk: Desk):
    completion = await desk.start(stream=True)
    first = desk.rig.join("alice", resumes=("sim-text:1",))
    first.push("req_1", 0, "a", "b")
    completion.delivered_tokens += len(completion.stream.take())
    second = desk.rig.join("bob", instance="i-2", resumes=("sim-text:1",))
    desk.rig.gateway.leave(first.link, "link dropped")
    second.push("req_1", 2, "c", attempt=2)
    second.finish("req_1", attempt=2)
    completion.delivered_tokens += len(completion.stream.take())

    await completion.complete()

    queued, assigned, retried, again = desk.settlement.timeline
    assert isinstance(queued, Queued) and (queued.why, queued.position) == (WaitReason.NO_WORKER, 1)
    assert isinstance(assigned, Assigned)
    assert (assigned.attempt, assigned.worker_name, assigned.worker_gpu, assigned.from_token) == (1, "alice", "H100", 0)
    assert isinstance(retried, Retried) and (retried.attempt, retried.why, retried.from_token) == (1, "worker_lost", 2)
    assert isinstance(again, Assigned) and (again.attempt, again.worker_name, again.from_token) == (2, "bob", 2)
    assert assigned.choice is not None and assigned.choice.candidates == 1
    times = [event.at_ms for event in desk.settlement.timeline]
    assert times == sorted(times) and times[0] >= 0
    assert (desk.settlement.attempts, desk.settlement.delivered_tokens) == (2, 3)


async def test_an_attempt_that_ended_with_its_task_is_no_retry(desk: Desk):
    completion = await desk.start(stream=True)
    worker = desk.rig.join()
    worker.push("req_1", 0, "a")
    completion.stream.take()

    worker.say(Failed(task="req_1", attempt=1, code="engine_error"))

    assert completion.stream.failure is not None
    completion.fail(from_failure(completion.stream.failure), completion.stream.failure.outcome)
    assert [type(event) for event in desk.settlement.timeline] == [Queued, Assigned]
    assert desk.settlement.error_code == "worker_failed"


async def test_a_whole_answer_that_its_client_leaves_is_billed_for_what_was_generated(desk: Desk):
    worker = desk.rig.join()
    completion = await desk.start()
    worker.take()
    worker.push("req_1", 0, "half ", "an ", "answer")

    completion.leave()

    settlement = desk.settlement
    assert (settlement.outcome, settlement.error_code) == (Outcome.CANCELLED, "client_closed")
    assert (settlement.generated_tokens, settlement.delivered_tokens, settlement.billed_tokens) == (3, 0, 3)
    assert worker.hear() == [Cancel(task="req_1", attempt=1)]


async def test_a_stream_that_its_client_leaves_is_billed_for_what_it_was_sent(desk: Desk):
    worker = desk.rig.join()
    completion = await desk.start(stream=True)
    worker.push("req_1", 0, "a", "b", "c")
    completion.stream.take()
    completion.delivered_tokens = 2

    completion.leave()

    assert (desk.settlement.generated_tokens, desk.settlement.billed_tokens) == (3, 2)


async def test_tokens_of_an_attempt_that_was_thrown_away_are_nobodys_to_pay(desk: Desk):
    first = desk.rig.join("alice")
    completion = await desk.start()
    first.push("req_1", 0, "a", "b", "c")
    desk.rig.gateway.leave(first.link, "link dropped")

    completion.leave()

    assert desk.settlement.billed_tokens == 0


async def test_a_whole_answer_is_decided_where_its_last_token_comes_in(desk: Desk):
    worker = desk.rig.join()
    completion = await desk.start()
    waiter = completion.completed_whole()
    worker.push("req_1", 0, "a", "b")
    assert not waiter.done()

    worker.finish("req_1")

    assert waiter.done()
    completion.leave()
    assert (desk.settlement.outcome, desk.settlement.billed_tokens) == (Outcome.COMPLETED, 2)


@pytest.mark.parametrize("before", [True, False])
async def test_a_whole_answer_that_fails_wakes_its_endpoint_undecided(desk: Desk, before: bool):
    completion = await desk.start()
    failure = StreamFailure(Outcome.EXPIRED, "queue_timeout", "No worker was free.")
    if before:
        completion.stream.fail(failure)
    waiter = completion.completed_whole()
    if not before:
        completion.stream.fail(failure)

    await asyncio.wait_for(waiter, 1)

    assert desk.ledger.rows[0].settlements == []
    completion.close()
    assert desk.settlement.outcome is Outcome.FAILED


async def test_who_waits_has_the_place_at_which_it_joined_until_a_snapshot_shows_another(desk: Desk):
    first, second = await desk.start("req_1"), await desk.start("req_2")
    assert (first.place, second.place) == ((1, None), (2, None))

    first.close()
    desk.publish_snapshot(1)
    assert second.place == (1, None)

    worker = desk.rig.join()
    assert worker.heard
    desk.publish_snapshot(2)
    assert second.place is None


async def test_whatever_becomes_of_a_request_it_is_settled_once(desk: Desk):
    completion = await desk.start()

    completion.leave("client_too_slow")
    completion.leave()
    completion.fail(ApiError(500, "late"))
    completion.close()

    assert desk.settlement.error_code == "client_too_slow"
    assert desk.rig.gateway.streams == {}
