"""What becomes of the dispatcher's commands at the gateway, and how a link's end is told to it."""

from __future__ import annotations

import pytest

from cluster.domain import Choice, Outcome, WaitReason
from cluster.engine.streams import TokenStream
from cluster.protocol.messages import Bye, CloseCode, Drain, Failed, Hello
from cluster.scheduler.commands import (
    AnnounceAttempt,
    AnnounceWait,
    AssignTask,
    CancelAttempt,
    DrainWorker,
    EvictWorker,
    FailTask,
    FenceAttempt,
)
from cluster.scheduler.events import AttemptFenced, Event, WorkerJoined, WorkerLost
from tests.factories import make_task
from tests.fakes import make_hello
from tests.unit.cluster.engine.rig import Rig, RigWorker


@pytest.fixture
def told(rig: Rig) -> list[Event]:
    """What the dispatcher is told; nobody answers."""
    told: list[Event] = []
    rig.broker.attach_dispatcher(told.append)
    return told


def losses(told: list[Event]) -> list[tuple[str, bool]]:
    return [(event.reason, event.clean) for event in told if isinstance(event, WorkerLost)]


def join(rig: Rig, **hello: object) -> RigWorker:
    """Return a worker that was let in, whoever listens."""
    worker = rig.dial()
    worker.say(make_hello(**hello))
    return worker


async def test_a_worker_that_says_goodbye_has_died_of_nothing(rig: Rig, told: list[Event]):
    join(rig).say(Bye(reason="drained"))

    assert losses(told) == [("bye", True)]


@pytest.mark.parametrize(
    ("code", "clean"),
    [
        (1000, True),
        (CloseCode.GOING_AWAY, True),
        (CloseCode.NO_TOKEN, True),
        (CloseCode.EVICTED, True),
        (CloseCode.BAD_FRAME, False),
        (CloseCode.SILENT, False),
        (CloseCode.NOT_YOURS, False),
    ],
)
async def test_who_is_sent_away_is_blamed_only_for_what_it_did(rig: Rig, told: list[Event], code: int, clean: bool):
    worker = join(rig)

    rig.gateway.hang_up(worker.link, code, "why")

    assert losses(told) == [("why", clean)]


async def test_a_link_that_breaks_is_no_goodbye(rig: Rig, told: list[Event]):
    rig.gateway.leave(join(rig).link, "link dropped")

    assert losses(told) == [("link dropped", False)]


async def test_a_link_that_breaks_while_the_node_drains_is_no_death(rig: Rig, told: list[Event]):
    worker = join(rig)
    rig.gateway.drain(5.0)

    rig.gateway.leave(worker.link, "link dropped")

    assert losses(told) == [("link dropped", True)]


async def test_a_worker_that_the_dispatcher_evicts_is_not_reported_to_it(rig: Rig, told: list[Event]):
    worker = join(rig)
    assert worker.link.worker is not None
    told.clear()

    rig.gateway.execute(EvictWorker("node-1", worker.link.worker.id, worker.link.id, CloseCode.SILENT, "silent"))
    rig.gateway.leave(worker.link, "closed")

    assert told == []


def specs(told: list[Event]) -> list[tuple[str, str]]:
    return [(event.worker.id, event.worker.lineage) for event in told if isinstance(event, WorkerJoined)]


async def test_a_restarted_process_is_another_worker_of_the_same_lineage(rig: Rig, told: list[Event]):
    join(rig, name="alice", instance="i-1")
    join(rig, name="alice", instance="i-2")

    (first, lineage), (second, again) = specs(told)
    assert first != second
    assert lineage == again != ""


async def test_another_name_or_another_token_is_another_lineage(rig: Rig, told: list[Event]):
    hello: Hello = make_hello(name="alice")
    join(rig, name="alice")
    join(rig, name="bob")
    rig.dial(token_id=2).say(hello)

    assert len({lineage for _, lineage in specs(told)}) == 3


async def test_what_befalls_a_task_is_noted_at_its_stream_with_the_token_it_came_at(rig: Rig):
    stream = rig.submit()
    (waited,) = stream.notes
    assert waited[1] == AnnounceWait("node-1", "req_1", WaitReason.NO_WORKER, 1)
    first = rig.join("alice", resumes=("sim-text:1",))
    first.push("req_1", 0, "a", "b")
    stream.take()
    rig.join("bob", instance="i-2", resumes=("sim-text:1",))

    rig.gateway.leave(first.link, "link dropped")

    notes = [(type(command).__name__, seq) for _, command, seq in stream.notes]
    assert notes == [("AnnounceWait", 0), ("AnnounceAttempt", 0), ("FenceAttempt", 2), ("AnnounceAttempt", 2)]
    fenced, again = stream.notes[2][1], stream.notes[3][1]
    assert isinstance(fenced, FenceAttempt) and fenced.why == "worker_lost"
    assert isinstance(again, AnnounceAttempt) and (again.worker_name, again.choice) == ("bob", Choice(1, 1.0, 1.0))
    times = [at_s for at_s, _, _ in stream.notes]
    assert times == sorted(times)
    assert times[-1] == stream.progress_at_s


async def test_streams_do_not_share_their_notes(rig: Rig):
    first, second = rig.submit("req_1"), rig.submit("req_2")

    assert [note[1].task_id for note in first.notes] == ["req_1"]
    assert [note[1].task_id for note in second.notes] == ["req_2"]


async def test_a_task_goes_on_at_another_worker_from_the_token_that_is_due(rig: Rig):
    first = rig.join("alice", resumes=("sim-text:1",))
    stream = rig.submit()
    first.push("req_1", 0, "a", "b")
    stream.take()
    second = rig.join("bob", instance="i-2", resumes=("sim-text:1",))

    first.say(Failed(task="req_1", attempt=1, code="engine_error"))

    assign = second.take()
    assert (assign.attempt, assign.resume_from) == (2, 2)
    second.push("req_1", 2, "c", attempt=2)
    assert stream.take() == ["c"]


async def test_a_worker_that_is_to_leave_is_told_so_over_its_link(rig: Rig):
    alice, bob = rig.join("alice"), rig.join("bob", instance="i-2")
    assert alice.link.worker is not None

    rig.gateway.execute(DrainWorker("node-1", alice.link.worker.id, alice.link.id))

    assert (alice.hear(), bob.hear()) == ([Drain()], [])
    assert not rig.gateway.draining


async def test_commands_for_streams_and_links_that_are_gone_are_nobodys(rig: Rig, told: list[Event]):
    task = make_task("req_gone")
    for command in (
        AnnounceAttempt("node-1", "req_gone", 1, "wrk_1", "alice", 0.0),
        AnnounceWait("node-1", "req_gone", WaitReason.NO_SLOT, 1),
        AssignTask("node-1", "wrk_1", "lnk_gone", task, 1),
        CancelAttempt("node-1", "wrk_1", "lnk_gone", "req_gone", 1),
        FailTask("node-1", "req_gone", Outcome.FAILED, "timeout", "It took too long."),
        DrainWorker("node-1", "wrk_1", "lnk_gone"),
        EvictWorker("node-1", "wrk_1", "lnk_gone", CloseCode.SILENT, "silent"),
    ):
        rig.gateway.execute(command)

    assert told == []


async def test_the_fence_of_a_stream_that_is_gone_is_answered_all_the_same(rig: Rig, told: list[Event]):
    rig.gateway.execute(FenceAttempt("node-1", "req_gone", 1, "worker_lost"))

    assert told == [AttemptFenced("req_gone", 1, 0)]


async def test_a_failure_says_when_to_come_again(rig: Rig, told: list[Event]):
    stream: TokenStream = rig.submit()

    rig.gateway.execute(FailTask("node-1", "req_1", Outcome.FAILED, "rate_limit_exceeded", "Too many.", 7.5))

    assert stream.failure is not None
    assert (stream.failure.code, stream.failure.retry_after_s) == ("rate_limit_exceeded", 7.5)
