"""What happens when nothing happens: graces, time-outs, and when the next tick is due."""

from __future__ import annotations

import pytest

from cluster.domain import Outcome, WaitReason
from cluster.scheduler.commands import FailTask
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    TaskCancelled,
    Tick,
    WorkerDraining,
    WorkerLost,
)
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    beat,
    cancelled,
    codes,
    join,
    make_spec,
    make_task,
    started,
    submit,
    waits,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler

TASK = make_task("t1")
NO_WORKER = "The model llama-3-8b cannot be served now: no worker serves it."


def test_nothing_is_due_in_an_empty_cluster(scheduler: CheckedScheduler) -> None:
    assert scheduler.next_deadline() is None
    assert scheduler.handle(Tick(), 1e6) == []


def test_after_a_start_tasks_are_kept_for_workers_that_may_be_reconnecting(scheduler: CheckedScheduler) -> None:
    assert scheduler.handle(submit(TASK), 1.0) == [waits(TASK, WaitReason.NO_WORKER)]
    assert scheduler.next_deadline() == 10.0

    assert scheduler.handle(join(make_spec("a")), 9.0) == started(TASK, "a", queued_s=8.0)
    assert scheduler.handle(Tick(), 10.0) == []


def test_a_grace_that_passes_ends_who_waited_for_it(scheduler: CheckedScheduler) -> None:
    scheduler.handle(submit(TASK), 1.0)
    scheduler.handle(submit(make_task("t2", tenant="bob")), 9.5)

    assert scheduler.handle(Tick(), 9.9) == []
    assert scheduler.handle(Tick(), 10.0) == [
        FailTask("node-1", "t1", Outcome.EXPIRED, "no_worker_available", NO_WORKER, 5.0),
        FailTask("node-1", "t2", Outcome.EXPIRED, "no_worker_available", NO_WORKER, 5.0),
    ]
    assert scheduler.tasks == {} and scheduler.next_deadline() is None


def test_a_model_without_workers_is_refused_at_once_when_no_grace_is_left(scheduler: CheckedScheduler) -> None:
    assert scheduler.handle(submit(TASK), 10.0) == [
        FailTask("node-1", "t1", Outcome.FAILED, "no_worker_available", NO_WORKER, 5.0)
    ]
    assert scheduler.tasks == {}


def test_a_model_whose_last_worker_left_has_a_grace_of_its_own(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(join(make_spec("other", models=("mistral-7b",))), 95.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 100.0)

    assert scheduler.handle(submit(TASK), 109.9) == [waits(TASK, WaitReason.NO_WORKER)]
    assert codes(scheduler.handle(submit(make_task("t2")), 110.0)) == [("t2", "failed", "no_worker_available")]
    assert codes(scheduler.handle(Tick(), 110.0)) == [("t1", "expired", "no_worker_available")]


def test_tasks_in_line_when_the_last_worker_leaves_wait_for_its_return(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("running")), 1.0)
    scheduler.handle(submit(TASK), 1.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 2.0)
    scheduler.handle(AttemptFenced("running", 1, 0), 2.0)

    assert scheduler.next_deadline() == 12.0
    commands = scheduler.handle(join(make_spec("a", capacity=2), link="new"), 11.0)

    assert assigned(commands) == [("running", "a"), ("t1", "a")]
    assert scheduler.handle(Tick(), 12.0) == []


def test_a_drained_model_has_the_same_grace(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("running")), 15.0)
    scheduler.handle(submit(TASK), 15.0)
    scheduler.handle(beat("a"), 15.0)
    scheduler.handle(WorkerDraining("a", "link of a"), 20.0)
    scheduler.handle(beat("a"), 25.0)

    [failure] = scheduler.handle(Tick(), 30.0)

    assert isinstance(failure, FailTask) and failure.code == "no_worker_available"
    assert "draining" in failure.message and list(scheduler.tasks) == ["running"]


def test_a_grace_is_not_stretched_by_a_draining_worker_that_leaves_later(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(WorkerDraining("a", "link of a"), 20.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 28.0)

    assert codes(scheduler.handle(submit(TASK), 30.0)) == [("t1", "failed", "no_worker_available")]


@pytest.mark.parametrize("ticks", [True, False])
def test_a_task_that_comes_back_after_the_grace_is_told_at_once(scheduler: CheckedScheduler, ticks: bool) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 1.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 2.0)
    if ticks:
        assert scheduler.handle(Tick(), 12.0) == []

    assert codes(scheduler.handle(AttemptFenced("t1", 1, 0), 20.0)) == [("t1", "failed", "no_worker_available")]


def test_a_task_that_comes_back_too_large_for_who_is_left_is_told_the_arithmetic(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("large", kv_tokens=1_000)), 0.0)
    scheduler.handle(submit(make_task("t1", max_tokens=490)), 0.0)
    scheduler.handle(join(make_spec("small", kv_tokens=100)), 0.0)
    scheduler.handle(WorkerLost("large", "link of large", "closed"), 1.0)

    [failure] = scheduler.handle(AttemptFenced("t1", 1, 0), 1.0)

    assert isinstance(failure, FailTask) and "needs room for 500 tokens" in failure.message
    assert "has room for 100" in failure.message


def test_a_task_that_waits_too_long_expires(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("running")), 0.0)
    scheduler.handle(submit(TASK), 5.0)
    for second in (10.0, 20.0, 30.0):
        scheduler.handle(beat("a"), second)

    assert scheduler.handle(Tick(), 34.9) == []
    assert scheduler.handle(Tick(), 35.0) == [
        FailTask(
            "node-1",
            "t1",
            Outcome.EXPIRED,
            "queue_timeout",
            "No worker was free for the request within 30 s.",
            retry_after_s=15.0,
        )
    ]
    assert list(scheduler.tasks) == ["running"]


def test_a_wait_after_a_failed_attempt_is_a_new_wait(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(submit(make_task("fills b")), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 25.0)
    scheduler.handle(AttemptFenced("t1", 1, 0), 25.0)

    assert scheduler.handle(Tick(), 54.9) == []
    assert codes(scheduler.handle(Tick(), 55.0)) == [("t1", "expired", "queue_timeout")]


def test_who_stood_behind_a_task_that_expires_goes_if_it_fits(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a", capacity=8, kv_tokens=500)), 0.0)
    scheduler.handle(submit(make_task("running", max_tokens=290)), 0.0)
    scheduler.handle(submit(make_task("big head", max_tokens=390)), 0.0)
    behind = make_task("behind")
    assert scheduler.handle(submit(behind), 10.0) == [waits(behind, WaitReason.BEHIND_OTHERS, 2)]

    commands = scheduler.handle(Tick(), 30.0)

    assert codes(commands[:1]) == [("big head", "expired", "queue_timeout")]
    assert commands[1:] == started(behind, "a", queued_s=20.0)


def test_a_running_task_that_lives_too_long_is_ended_and_its_worker_told(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    waiting = make_task("t2")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    for second in (30.0, 100.0, 599.9):
        assert scheduler.handle(Tick(), second) == []
    scheduler.handle(submit(waiting), 599.9)

    assert scheduler.handle(Tick(), 600.0) == [
        FailTask("node-1", "t1", Outcome.EXPIRED, "timeout", "The request was not complete after 600 s."),
        cancelled(TASK, "a"),
    ]
    assert scheduler.handle(AttemptReleased("t1", 1, "a"), 600.1) == started(waiting, "a", queued_s=pytest.approx(0.2))


def test_a_task_whose_fence_is_never_answered_ends_by_its_total_time(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0)

    assert scheduler.handle(Tick(), 599.9) == []
    assert codes(scheduler.handle(Tick(), 600.0)) == [("t1", "expired", "timeout")]


def test_a_total_time_shorter_than_the_queue_s_counts_in_the_queue_too(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(total_timeout_s=5.0)
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("running")), 0.0)
    scheduler.handle(submit(TASK), 1.0)

    assert scheduler.next_deadline() == 5.0
    commands = scheduler.handle(Tick(), 6.0)

    assert sorted(codes(commands)) == [("running", "expired", "timeout"), ("t1", "expired", "timeout")]


def test_everything_that_is_due_happens_in_one_tick(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("running")), 0.0)
    for n in range(5):
        scheduler.handle(submit(make_task(f"w{n}")), 0.0)

    commands = scheduler.handle(Tick(), 31.0)

    assert {code for _, _, code in codes(commands)} == {"queue_timeout"} and len(codes(commands)) == 5
    assert scheduler.next_deadline() == 600.0


def test_the_next_deadline_is_the_soonest(scheduler: CheckedScheduler) -> None:
    scheduler.handle(submit(TASK), 1.0)
    assert scheduler.next_deadline() == 10.0  # the grace after a start

    scheduler.handle(join(make_spec("a")), 2.0)
    assert scheduler.next_deadline() == 18.0  # the worker's silence

    scheduler.handle(beat("a"), 12.0)
    scheduler.handle(TaskCancelled("t1"), 15.0)
    assert scheduler.next_deadline() == 17.0  # the answer to the cancel


def test_timers_of_ended_tasks_do_not_pile_up(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)

    for n in range(2_000):
        scheduler.handle(submit(make_task(f"t{n}")), n / 1_000)
        scheduler.handle(AttemptFinished(f"t{n}", 1, "a"), n / 1_000)

    assert scheduler.timers.entries < 100


@pytest.fixture
def outgrown(make_scheduler: MakeScheduler) -> CheckedScheduler:
    """A large task in line, whose only large worker has left."""
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("large", kv_tokens=1_000)), 0.0)
    scheduler.handle(join(make_spec("small", kv_tokens=100)), 0.0)
    scheduler.handle(submit(make_task("running", max_tokens=490)), 0.0)
    scheduler.handle(submit(make_task("on small", tenant="bob")), 0.0)
    scheduler.handle(submit(make_task("big", max_tokens=490)), 1.0)
    scheduler.handle(submit(make_task("behind")), 1.0)
    scheduler.handle(WorkerLost("large", "link of large", "closed"), 2.0)
    return scheduler


def test_a_task_in_line_that_fits_on_nobody_who_is_left_is_told_the_arithmetic_after_a_grace(
    outgrown: CheckedScheduler,
) -> None:
    assert outgrown.handle(Tick(), 11.9) == []
    [failure] = outgrown.handle(Tick(), 12.0)

    assert codes([failure]) == [("big", "expired", "no_worker_available")]
    assert isinstance(failure, FailTask) and "needs room for 500 tokens" in failure.message
    assert assigned(outgrown.handle(AttemptFinished("on small", 1, "small"), 12.0)) == [("behind", "small")]


def test_it_is_served_if_the_worker_is_back_in_time(outgrown: CheckedScheduler) -> None:
    commands = outgrown.handle(join(make_spec("large", kv_tokens=1_000), link="again"), 11.0)

    assert assigned(commands) == [("big", "large")]
    assert outgrown.handle(Tick(), 12.0) == []


def test_a_worker_that_comes_and_is_too_small_does_not_make_a_task_wait_for_ever(scheduler: CheckedScheduler) -> None:
    scheduler.handle(submit(make_task("big", max_tokens=490)), 1.0)
    scheduler.handle(join(make_spec("small", kv_tokens=100)), 2.0)

    assert codes(scheduler.handle(Tick(), 12.0)) == [("big", "expired", "no_worker_available")]
