"""An attempt that ends badly: fence, then try again or say why not."""

from __future__ import annotations

import pytest

from cluster.domain import Outcome
from cluster.scheduler.commands import FailTask, FenceAttempt
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    AttemptStarted,
    WorkerLost,
)
from cluster.scheduler.state import State
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    codes,
    join,
    make_spec,
    make_task,
    started,
    submit,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler

TASK = make_task("t1")


def run_on(scheduler: CheckedScheduler, worker_id: str) -> None:
    scheduler.handle(join(make_spec(worker_id)), 0.0)
    assert scheduler.handle(submit(TASK), 0.0) == started(TASK, worker_id)


def test_a_failed_attempt_is_fenced_before_anything_else(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)

    assert scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0) == [FenceAttempt("node-1", "t1", 1)]
    assert scheduler.tasks["t1"].state is State.FENCING
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(TASK, "b", attempt=2)


def test_the_next_attempt_can_end_well(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)
    scheduler.handle(AttemptFenced("t1", 1, 0), 1.0)

    assert scheduler.handle(AttemptStarted("t1", 2), 2.0) == []
    assert scheduler.dropped == {}


def test_an_attempt_whose_client_has_seen_tokens_is_not_repeated(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(AttemptStarted("t1", 1), 0.5)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 7), 1.0) == [
        FailTask("node-1", "t1", Outcome.FAILED, "worker_failed", "The worker failed while it generated this answer.")
    ]
    assert scheduler.tasks == {}


def test_a_worker_lost_after_tokens_were_seen_ends_the_task(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)

    assert scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0) == [FenceAttempt("node-1", "t1", 1)]
    assert scheduler.handle(AttemptFenced("t1", 1, 7), 1.0) == [
        FailTask("node-1", "t1", Outcome.FAILED, "worker_lost", "The worker was lost while it generated this answer.")
    ]


def test_what_no_worker_could_do_is_not_tried_elsewhere(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)

    assert scheduler.handle(AttemptFailed("t1", 1, "a", "bad_request", retryable=False), 1.0) == [
        FailTask(
            "node-1", "t1", Outcome.FAILED, "worker_failed", "The worker could not generate an answer to this request."
        )
    ]
    assert scheduler.tasks == {}


def test_the_slot_of_what_is_not_tried_again_serves_the_next(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(submit(make_task("t2")), 0.0)

    commands = scheduler.handle(AttemptFailed("t1", 1, "a", "bad_request", retryable=False), 1.0)

    assert assigned(commands) == [("t2", "a")]


def test_a_worker_that_stops_unasked_has_failed(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)

    assert scheduler.handle(AttemptReleased("t1", 1, "a"), 1.0) == [FenceAttempt("node-1", "t1", 1)]
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(TASK, "b", attempt=2)


def test_three_attempts_are_made_and_no_more(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    for attempt in (1, 2):
        scheduler.handle(AttemptFailed("t1", attempt, "a", "backend_error"), 1.0)
        assert scheduler.handle(AttemptFenced("t1", attempt, 0), 1.0) == started(TASK, "a", attempt=attempt + 1)
    scheduler.handle(AttemptFailed("t1", 3, "a", "backend_error"), 1.0)

    assert scheduler.handle(AttemptFenced("t1", 3, 0), 1.0) == [
        FailTask("node-1", "t1", Outcome.FAILED, "worker_failed", "3 attempts failed; no more are made.")
    ]


@pytest.mark.parametrize("bound", [1, 2, 5])
def test_the_bound_on_attempts_is_a_setting(make_scheduler: MakeScheduler, bound: int) -> None:
    scheduler = make_scheduler(max_attempts=bound)
    run_on(scheduler, "a")
    attempt = 1
    while True:
        scheduler.handle(AttemptFailed("t1", attempt, "a", "backend_error"), 1.0)
        commands = scheduler.handle(AttemptFenced("t1", attempt, 0), 1.0)
        if not assigned(commands):
            break
        attempt += 1

    assert attempt == bound
    assert codes(commands) == [("t1", "failed", "worker_failed")]


def test_a_task_with_which_two_workers_died_is_suspected_itself(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(join(make_spec("c", models=("mistral-7b",))), 0.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0)
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(TASK, "b", attempt=2)
    scheduler.handle(WorkerLost("b", "link of b", "closed"), 2.0)

    assert scheduler.handle(AttemptFenced("t1", 2, 0), 2.0) == [
        FailTask(
            "node-1",
            "t1",
            Outcome.FAILED,
            "worker_crashed",
            "2 workers were lost while they served this request; it is not tried again.",
        )
    ]


def test_a_dropped_link_whose_worker_is_back_is_no_death(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0)
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(TASK, "b", attempt=2)
    scheduler.handle(join(make_spec("a"), link="a again"), 2.0)
    scheduler.handle(WorkerLost("b", "link of b", "closed"), 3.0)

    assert scheduler.handle(AttemptFenced("t1", 2, 0), 3.0) == started(TASK, "a", attempt=3, link="a again")


def test_attempts_that_end_by_dropped_links_still_count_as_attempts(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")
    for attempt in (1, 2, 3):
        scheduler.handle(join(make_spec("a"), link=f"link {attempt}"), float(attempt))
        commands = scheduler.handle(AttemptFenced("t1", attempt, 0), float(attempt))

    assert codes(commands) == [("t1", "failed", "worker_lost")]


def test_a_code_that_clients_may_see_is_passed_on(scheduler: CheckedScheduler) -> None:
    run_on(scheduler, "a")

    [failure] = scheduler.handle(AttemptFailed("t1", 1, "a", "context_length_exceeded", retryable=False), 1.0)

    assert isinstance(failure, FailTask) and failure.code == "context_length_exceeded"


def test_only_known_words_of_workers_reach_clients(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=2)), 0.0)
    for name, code in (("t1", "context_length_exceeded"), ("t2", "secret-hostname")):
        scheduler.handle(submit(make_task(name)), 0.0)
        [failure] = scheduler.handle(AttemptFailed(name, 1, "w", code, retryable=False), 1.0)

        assert isinstance(failure, FailTask) and failure.outcome is Outcome.FAILED
        assert failure.code == ("context_length_exceeded" if name == "t1" else "worker_failed")
        assert "secret" not in failure.message


def fail_all(scheduler: CheckedScheduler, names: list[str]) -> list[tuple[str, str, str]]:
    """Let each task's first attempt fail; return which were not tried again, and why."""
    given_up = []
    for name in names:
        worker = scheduler.tasks[name].worker
        assert worker is not None
        scheduler.handle(AttemptFailed(name, 1, worker.spec.id, "backend_error"), 1.0)
        given_up += codes(scheduler.handle(AttemptFenced(name, 1, 0), 1.0))
    return given_up


@pytest.mark.parametrize(("running", "floor", "retried"), [(20, 10, 10), (20, 2, 4), (100, 10, 20)])
def test_failures_that_workers_report_are_tried_again_within_a_budget(
    make_scheduler: MakeScheduler, running: int, floor: int, retried: int
) -> None:
    scheduler = make_scheduler(retry_floor=floor)
    for name in ("a", "b"):
        scheduler.handle(join(make_spec(name, capacity=running)), 0.0)
    names = [f"t{n}" for n in range(running)]
    for name in names:
        scheduler.handle(submit(make_task(name)), 0.0)

    given_up = fail_all(scheduler, names[: running // 2])

    assert len(given_up) == max(0, running // 2 - retried)
    assert set(given_up) <= {(name, "failed", "worker_failed") for name in names}


def test_a_retry_that_ends_makes_room_in_the_budget(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(retry_floor=1, retry_share=0.0)
    scheduler.handle(join(make_spec("a", capacity=8)), 0.0)
    for n in range(3):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)

    assert fail_all(scheduler, ["t0", "t1"]) == [("t1", "failed", "worker_failed")]
    scheduler.handle(AttemptFinished("t0", 2, "a"), 2.0)
    assert fail_all(scheduler, ["t2"]) == []


def test_moving_on_from_a_dead_worker_is_outside_the_budget(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(retry_floor=0, retry_share=0.0)
    scheduler.handle(join(make_spec("a", capacity=4)), 0.0)
    for n in range(4):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)
    scheduler.handle(join(make_spec("b", capacity=4)), 0.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0)

    placed = [assigned(scheduler.handle(AttemptFenced(f"t{n}", 1, 0), 1.0)) for n in range(4)]

    assert placed == [[(f"t{n}", "b")] for n in range(4)]
