"""Late and stray events: counted, and nothing else. And the table that says what is not late."""

from __future__ import annotations

from itertools import product

import pytest

from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    AttemptStarted,
    Event,
    TaskCancelled,
    WorkerDraining,
    WorkerLost,
)
from cluster.scheduler.state import TRANSITIONS, State, TaskRecord, Trigger
from tests.unit.cluster.scheduler.builders import CheckedScheduler, beat, join, make_spec, make_task, submit

STRAYS: list[tuple[Event, str]] = [
    (TaskCancelled("unknown"), "task_cancelled"),
    (AttemptStarted("unknown", 1), "attempt_started"),
    (AttemptStarted("running", 2), "attempt_started"),
    (AttemptStarted("queued", 0), "attempt_started"),
    (AttemptStarted("queued", 1), "attempt_started"),
    (AttemptStarted("fencing", 1), "attempt_started"),
    (AttemptFinished("unknown", 1, "a"), "attempt_finished"),
    (AttemptFinished("running", 2, "a"), "attempt_finished"),
    (AttemptFinished("running", 1, "b"), "attempt_finished"),
    (AttemptFinished("running", 1, "nobody"), "attempt_finished"),
    (AttemptFinished("queued", 0, "a"), "attempt_finished"),
    (AttemptFinished("fencing", 1, "b"), "attempt_finished"),
    (AttemptFailed("unknown", 1, "a", "backend_error"), "attempt_failed"),
    (AttemptFailed("running", 2, "a", "backend_error"), "attempt_failed"),
    (AttemptFailed("running", 1, "b", "backend_error", retryable=False), "attempt_failed"),
    (AttemptFailed("fencing", 1, "b", "backend_error"), "attempt_failed"),
    (AttemptReleased("unknown", 1, "a"), "attempt_released"),
    (AttemptReleased("running", 1, "b"), "attempt_released"),
    (AttemptReleased("fencing", 1, "b"), "attempt_released"),
    (AttemptFenced("unknown", 1, 0), "attempt_fenced"),
    (AttemptFenced("running", 1, 0), "attempt_fenced"),
    (AttemptFenced("queued", 0, 0), "attempt_fenced"),
    (AttemptFenced("fencing", 2, 0), "attempt_fenced"),
    (beat("nobody"), "heartbeat"),
    (beat("a", link="another"), "heartbeat"),
    (WorkerDraining("nobody", "link of nobody"), "worker_draining"),
    (WorkerDraining("a", "another"), "worker_draining"),
    (WorkerLost("nobody", "link of nobody", "closed"), "worker_lost"),
    (WorkerLost("a", "another", "closed"), "worker_lost"),
    (submit(make_task("running")), "task_submitted"),
    (submit(make_task("queued")), "task_submitted"),
    (submit(make_task("fencing")), "task_submitted"),
]


@pytest.mark.parametrize(("stray", "kind"), STRAYS, ids=lambda value: str(value))
def test_what_does_not_fit_is_counted_and_changes_nothing(scheduler: CheckedScheduler, stray: Event, kind: str) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("running")), 0.0)
    scheduler.handle(join(make_spec("b", models=("mistral-7b",))), 0.0)
    scheduler.handle(submit(make_task("fencing", model="mistral-7b")), 0.0)
    scheduler.handle(AttemptFailed("fencing", 1, "b", "backend_error"), 0.0)
    scheduler.handle(submit(make_task("queued")), 0.0)
    before = scheduler.snapshot(1.0, version=1, wall_s=0.0), scheduler.next_deadline(), _states(scheduler)

    assert scheduler.handle(stray, 1.0) == []

    assert scheduler.dropped == {kind: 1}
    scheduler.dropped.clear()
    assert (scheduler.snapshot(1.0, version=1, wall_s=0.0), scheduler.next_deadline(), _states(scheduler)) == before


def _states(scheduler: CheckedScheduler) -> dict[str, tuple[State, int]]:
    return {name: (record.state, record.attempt) for name, record in scheduler.tasks.items()}


@pytest.mark.parametrize(("state", "trigger"), list(product(State, Trigger)), ids=lambda value: value.name)
def test_a_task_moves_along_the_table_or_not_at_all(
    scheduler: CheckedScheduler, state: State, trigger: Trigger
) -> None:
    task = make_task("t1")
    record = TaskRecord(task, 1, 0.0, 0.0, task.kv_tokens)
    record.state = state

    moved = record.move(trigger)

    assert moved is ((state, trigger) in TRANSITIONS)
    assert record.state is (TRANSITIONS[state, trigger] if moved else state)


def test_nothing_leads_out_of_the_end() -> None:
    assert not [trigger for state, trigger in TRANSITIONS if state is State.ENDED]


def test_every_state_but_the_end_can_be_cancelled_and_can_expire() -> None:
    for state, trigger in product(set(State) - {State.ENDED}, (Trigger.CANCEL, Trigger.EXPIRE)):
        assert TRANSITIONS[state, trigger] is State.ENDED


def test_only_a_fence_s_answer_leads_back_into_the_queue() -> None:
    assert [way for way, after in TRANSITIONS.items() if after is State.QUEUED] == [(State.FENCING, Trigger.FENCED)]
