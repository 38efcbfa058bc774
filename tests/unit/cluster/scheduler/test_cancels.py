"""Tasks that nobody waits for any more, and slots that are free only when the worker says so."""

from __future__ import annotations

import pytest

from cluster.scheduler.commands import FenceAttempt, ProbeWorker
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    Event,
    ProbeAnswered,
    TaskCancelled,
    Tick,
)
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    beat,
    cancelled,
    join,
    make_spec,
    make_task,
    started,
    submit,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler

TASK = make_task("t1")
NEXT = make_task("t2")


def test_a_queued_task_just_leaves(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(submit(NEXT), 0.0)

    assert scheduler.handle(TaskCancelled("t2"), 1.0) == []
    assert list(scheduler.tasks) == ["t1"] and scheduler.waiting == 0
    assert scheduler.handle(AttemptFinished("t1", 1, "a"), 2.0) == []


@pytest.mark.parametrize(
    "answer",
    [AttemptReleased("t1", 1, "a"), AttemptFinished("t1", 1, "a"), AttemptFailed("t1", 1, "a", "backend_error")],
    ids=lambda answer: type(answer).__name__,
)
def test_a_running_task_ends_at_once_and_its_slot_when_the_worker_answers(
    scheduler: CheckedScheduler, answer: Event
) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(submit(NEXT), 0.0)

    assert scheduler.handle(TaskCancelled("t1"), 1.0) == [cancelled(TASK, "a")]
    assert list(scheduler.tasks) == ["t2"]
    assert scheduler.handle(answer, 1.5) == started(NEXT, "a", queued_s=1.5)
    assert scheduler.dropped == {}


def test_a_cancel_that_is_not_answered_gives_the_slot_back_after_two_seconds(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)

    assert scheduler.next_deadline() == 3.0
    assert scheduler.handle(Tick(), 2.9) == [] and scheduler.placement.workers["a"].held == 1
    assert scheduler.handle(Tick(), 3.0) == [] and scheduler.placement.workers["a"].held == 0
    assert scheduler.dropped == {"cancel_unanswered": 1}


def test_a_worker_that_does_not_answer_a_cancel_gets_nothing_until_it_has_answered_a_probe(
    scheduler: CheckedScheduler,
) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(submit(NEXT), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)

    assert scheduler.handle(Tick(), 3.0) == []
    assert scheduler.handle(Tick(), 8.0) == [ProbeWorker("node-2", "a", "link of a", 1, "llama-3-8b")]
    scheduler.handle(beat("a"), 8.1)
    assert scheduler.handle(ProbeAnswered("a", "link of a", 1, ok=True), 8.1) == started(NEXT, "a", queued_s=8.1)


def test_an_answer_after_the_slot_was_given_back_changes_nothing(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)
    scheduler.handle(Tick(), 3.0)
    scheduler.handle(submit(NEXT), 3.0)

    assert scheduler.handle(AttemptReleased("t1", 1, "a"), 3.5) == []
    assert scheduler.dropped == {"cancel_unanswered": 1, "attempt_released": 1}
    assert scheduler.placement.workers["a"].held == 0 and list(scheduler.tasks) == ["t2"]


def test_an_answered_cancel_leaves_no_timer(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)
    scheduler.handle(AttemptReleased("t1", 1, "a"), 1.5)

    assert scheduler.next_deadline() == 16.0
    assert scheduler.handle(Tick(), 5.0) == [] and scheduler.dropped == {}


def test_a_task_at_the_fence_leaves_and_the_stream_s_answer_is_late(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    assert scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0) == [FenceAttempt("node-1", "t1", 1)]

    assert scheduler.handle(TaskCancelled("t1"), 1.0) == []
    assert scheduler.tasks == {}
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.1) == []
    assert scheduler.dropped == {"attempt_fenced": 1}


def test_cancelling_twice_asks_the_worker_once(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)

    assert scheduler.handle(TaskCancelled("t1"), 1.0) == []
    assert scheduler.dropped == {"task_cancelled": 1}


def test_ten_thousand_cancels_from_the_front_of_a_line_leave_nothing(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(max_waiting=10_000, max_waiting_share=1.0)
    # Not checked after each event: this is about the end, and that it is reached quickly.
    tasks = [f"t{n}" for n in range(10_000)]
    for name in tasks:
        super(CheckedScheduler, scheduler).handle(submit(make_task(name)), 0.0)
    assert scheduler.waiting == 10_000
    for name in tasks:
        super(CheckedScheduler, scheduler).handle(TaskCancelled(name), 0.0)

    assert scheduler.tasks == {} and scheduler.waiting == 0
    assert scheduler.timers.entries < 100
