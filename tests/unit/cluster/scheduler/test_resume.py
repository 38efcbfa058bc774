"""Answers that have begun go on where they stopped, on a worker that can continue this text."""

from __future__ import annotations

import pytest

from cluster.domain import Outcome, WaitReason
from cluster.scheduler.commands import FailTask, FenceAttempt
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptStalled,
    AttemptStarted,
    Tick,
    WorkerLost,
)
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
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
SIM = ("sim-text/1",)
LOST = WorkerLost("a", "link of a", "closed")
BROKEN_OFF = FailTask(
    "node-1", "t1", Outcome.FAILED, "worker_lost", "The worker was lost while it generated this answer."
)


def begin(scheduler: CheckedScheduler, resumes: tuple[str, ...] = SIM) -> None:
    scheduler.handle(join(make_spec("a", resumes=resumes)), 0.0)
    scheduler.handle(submit(TASK), 0.0)
    scheduler.handle(AttemptStarted("t1", 1), 0.5)


def test_a_worker_lost_mid_answer_is_continued_by_its_equal(scheduler: CheckedScheduler) -> None:
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)

    assert scheduler.handle(LOST, 1.0) == [FenceAttempt("node-1", "t1", 1)]
    assert scheduler.handle(AttemptFenced("t1", 1, 7), 1.0) == started(TASK, "b", attempt=2, resume_from=7)
    assert scheduler.handle(AttemptFinished("t1", 2, "b", 20), 2.0) == [] and scheduler.tasks == {}


def test_a_second_loss_goes_on_from_further_along(scheduler: CheckedScheduler) -> None:
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)
    scheduler.handle(LOST, 1.0)
    scheduler.handle(AttemptFenced("t1", 1, 7), 1.0)
    scheduler.handle(join(make_spec("a", resumes=SIM), link="again"), 2.0)  # it had only lost its link
    scheduler.handle(WorkerLost("b", "link of b", "closed"), 3.0)

    commands = scheduler.handle(AttemptFenced("t1", 2, 12), 3.0)

    assert commands == started(TASK, "a", attempt=3, resume_from=12, link="again")


@pytest.mark.parametrize("other", [(), ("sim-text/2",)])
def test_without_an_equal_the_client_is_told_at_once(scheduler: CheckedScheduler, other: tuple[str, ...]) -> None:
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=other)), 0.0)
    scheduler.handle(LOST, 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 7), 1.0) == [BROKEN_OFF]


def test_what_cannot_be_resumed_by_its_own_worker_cannot_be_by_another(scheduler: CheckedScheduler) -> None:
    begin(scheduler, resumes=())
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)
    scheduler.handle(LOST, 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 7), 1.0) == [BROKEN_OFF]


def test_an_equal_that_is_busy_is_waited_for_and_others_are_not_taken(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)
    scheduler.handle(submit(make_task("busy")), 0.0)
    scheduler.handle(join(make_spec("other kind", capacity=8)), 0.0)
    scheduler.handle(LOST, 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 7), 1.0) == [waits(TASK, WaitReason.RESUME)]
    assert scheduler.handle(AttemptFinished("busy", 1, "b"), 2.0) == started(
        TASK, "b", attempt=2, queued_s=1.0, resume_from=7
    )


def test_an_equal_that_leaves_meanwhile_ends_the_wait(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)
    scheduler.handle(submit(make_task("busy")), 0.0)
    scheduler.handle(LOST, 1.0)
    scheduler.handle(AttemptFenced("t1", 1, 7), 1.0)

    commands = scheduler.handle(WorkerLost("b", "link of b", "closed"), 2.0)

    assert codes(commands) == [("t1", "failed", "worker_lost")]


def test_an_equal_that_stays_busy_too_long_ends_the_wait(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)
    scheduler.handle(submit(make_task("busy")), 0.0)
    scheduler.handle(LOST, 1.0)
    scheduler.handle(AttemptFenced("t1", 1, 7), 1.0)

    scheduler.handle(Tick(), 21.0)  # only isolation ends here, and this never asked for it
    assert scheduler.handle(Tick(), 31.0) == [BROKEN_OFF]


def test_a_failure_or_a_stall_mid_answer_is_continued_too(scheduler: CheckedScheduler) -> None:
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=SIM)), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)
    assert scheduler.handle(AttemptFenced("t1", 1, 3), 1.0) == started(TASK, "b", attempt=2, resume_from=3)

    assert scheduler.handle(AttemptStalled("t1", 2, "next_token"), 2.0) == [
        FenceAttempt("node-1", "t1", 2),
        cancelled(TASK, "b", attempt=2),
    ]
    assert scheduler.handle(AttemptFenced("t1", 2, 5), 2.0) == started(TASK, "a", attempt=3, resume_from=5)


def test_what_its_client_has_seen_nothing_of_may_go_to_any_kind(scheduler: CheckedScheduler) -> None:
    begin(scheduler)
    scheduler.handle(join(make_spec("b", resumes=())), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(TASK, "b", attempt=2)


def test_an_answer_that_has_begun_does_not_ask_for_a_worker_of_its_own(scheduler: CheckedScheduler) -> None:
    begin(scheduler)
    for name in ("b", "c"):
        scheduler.handle(join(make_spec(name, capacity=2, resumes=SIM)), 0.0)
        scheduler.handle(submit(make_task(f"on {name}")), 0.0)
    scheduler.handle(LOST, 1.0)

    assert len(assigned(scheduler.handle(AttemptFenced("t1", 1, 7), 1.0))) == 1


def test_three_attempts_are_made_at_an_answer_too(scheduler: CheckedScheduler) -> None:
    begin(scheduler)
    for attempt in (1, 2, 3):
        scheduler.handle(AttemptFailed("t1", attempt, "a", "backend_error"), 1.0)
        commands = scheduler.handle(AttemptFenced("t1", attempt, 7 * attempt), 1.0)

    assert commands == [
        FailTask("node-1", "t1", Outcome.FAILED, "worker_failed", "The worker failed while it generated this answer.")
    ]
