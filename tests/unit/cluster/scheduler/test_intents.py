"""What operators want of workers: cordon, drain, and the way back."""

from __future__ import annotations

from cluster.domain import WorkerStatus
from cluster.scheduler.commands import DrainWorker
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    IntentsObserved,
    WorkerDraining,
    WorkerLost,
)
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

NOTHING = IntentsObserved(frozenset(), frozenset())
CORDON_A = IntentsObserved(frozenset({"a"}), frozenset())
DRAIN_A = IntentsObserved(frozenset(), frozenset({"a"}))
LEAVE = DrainWorker("node-2", "a", "link of a")


def view(scheduler: CheckedScheduler):
    [worker] = scheduler.snapshot(0.0, version=1, wall_s=0.0).workers
    return worker


def test_a_cordoned_worker_gets_nothing_new_and_finishes_what_it_has(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)

    assert scheduler.handle(CORDON_A, 1.0) == []
    assert assigned(scheduler.handle(submit(make_task("t2")), 1.0)) == []
    assert scheduler.handle(AttemptFinished("t1", 1, "a"), 2.0) == []
    assert (view(scheduler).status, view(scheduler).cordoned) == (WorkerStatus.CORDONED, True)


def test_it_works_again_once_operators_think_otherwise(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(CORDON_A, 1.0)
    scheduler.handle(submit(task), 1.0)

    assert scheduler.handle(NOTHING, 2.0) == started(task, "a", queued_s=1.0)
    assert view(scheduler).cordoned is False


def test_the_same_intents_again_change_nothing(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    assert scheduler.handle(DRAIN_A, 1.0) == [LEAVE]

    assert [scheduler.handle(DRAIN_A, float(second)) for second in range(2, 9)] == [[]] * 7


def test_a_worker_that_is_to_drain_is_told_once_and_gets_nothing_new(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)

    assert scheduler.handle(DRAIN_A, 1.0) == [LEAVE]
    assert scheduler.handle(WorkerDraining("a", "link of a"), 1.1) == []
    assert assigned(scheduler.handle(submit(make_task("t2")), 1.2)) == []
    assert scheduler.handle(AttemptFinished("t1", 1, "a"), 2.0) == []
    assert view(scheduler).status is WorkerStatus.DRAINING


def test_a_worker_that_was_told_to_leave_cannot_be_told_to_stay(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(DRAIN_A, 1.0)
    scheduler.handle(submit(make_task("t1")), 1.0)

    assert scheduler.handle(NOTHING, 2.0) == []
    assert view(scheduler).status is WorkerStatus.DRAINING


def test_it_works_again_over_its_next_link(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(DRAIN_A, 1.0)
    scheduler.handle(NOTHING, 2.0)
    scheduler.handle(WorkerLost("a", "link of a", "drained", clean=True), 3.0)
    scheduler.handle(join(make_spec("a"), link="new"), 4.0)

    assert scheduler.handle(submit(task), 4.0) == started(task, "a", link="new")


def test_who_joins_under_an_intent_is_treated_by_it(scheduler: CheckedScheduler) -> None:
    scheduler.handle(IntentsObserved(frozenset({"b"}), frozenset({"a"})), 0.0)

    assert scheduler.handle(join(make_spec("a")), 1.0) == []
    assert scheduler.handle(join(make_spec("b")), 1.0) == []
    assert assigned(scheduler.handle(submit(make_task("t1")), 1.0)) == []


def test_a_drained_worker_that_dials_again_is_left_in_peace_without_work(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(DRAIN_A, 1.0)
    scheduler.handle(WorkerLost("a", "link of a", "bye", clean=True), 2.0)

    assert scheduler.handle(join(make_spec("a"), link="second"), 3.0) == []
    assert scheduler.handle(DRAIN_A, 4.0) == []
    assert assigned(scheduler.handle(submit(task), 5.0)) == []

    assert scheduler.handle(NOTHING, 6.0) == started(task, "a", queued_s=1.0, link="second")


def test_a_model_that_only_cordoned_workers_have_is_refused_in_words_of_its_own(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(CORDON_A, 1.0)

    [failure] = scheduler.handle(submit(make_task("t1")), 11.0)

    assert codes([failure]) == [("t1", "failed", "no_worker_available")]
    assert failure.message == (
        "The model llama-3-8b cannot be served now: none of the workers that have it takes new requests."
    )


def test_intents_about_workers_that_are_not_here_wait_for_them(scheduler: CheckedScheduler) -> None:
    assert scheduler.handle(CORDON_A, 1.0) == [] and scheduler.handle(NOTHING, 2.0) == []
    scheduler.handle(join(make_spec("a")), 3.0)

    assert assigned(scheduler.handle(submit(make_task("t1")), 3.0)) == [("t1", "a")]


def test_nobody_moves_from_one_worker_that_closes_to_another_that_closes_too(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    task = make_task("t1")
    scheduler.handle(submit(task), 0.0)
    for name in ("b", "c"):
        scheduler.handle(join(make_spec(name)), 0.0)
        scheduler.handle(submit(make_task(f"on {name}")), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)
    scheduler.handle(AttemptFenced("t1", 1, 0), 1.0)

    # It had failed on a, and waits for b or c; when both close, a is all that is left.
    commands = scheduler.handle(IntentsObserved(frozenset({"b", "c"}), frozenset()), 2.0)

    assert commands == started(task, "a", attempt=2, queued_s=1.0)
    assert scheduler.handle(IntentsObserved(frozenset({"a", "b", "c"}), frozenset()), 3.0) == []
