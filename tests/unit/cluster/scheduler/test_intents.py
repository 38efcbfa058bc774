"""What operators want of workers: told as a level, acted on as a change."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.scheduler.commands import DrainWorker
from cluster.scheduler.events import AttemptFinished, IntentsObserved, WorkerDraining, WorkerLost
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    join,
    make_spec,
    make_task,
    started,
    submit,
)


def want(*, cordoned: Iterable[str] = (), draining: Iterable[str] = ()) -> IntentsObserved:
    return IntentsObserved(frozenset(cordoned), frozenset(draining))


def test_a_cordoned_worker_gets_nothing_new_keeps_what_it_has_and_can_be_freed(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)

    assert scheduler.handle(want(cordoned="a"), 1.0) == []
    assert assigned(scheduler.handle(submit(make_task("t2")), 2.0)) == []
    assert scheduler.handle(AttemptFinished("t1", 1, "a"), 3.0) == []
    assert scheduler.handle(want(), 4.0) == started(make_task("t2"), "a", queued_s=2.0)


def test_a_cordon_outlives_the_link(scheduler: CheckedScheduler) -> None:
    scheduler.handle(want(cordoned="a"), 0.0)

    scheduler.handle(join(make_spec("a")), 1.0)

    assert assigned(scheduler.handle(submit(make_task("t1")), 2.0)) == []


def test_a_worker_is_told_to_drain_once_however_often_it_is_wanted(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)

    assert scheduler.handle(want(draining="a"), 1.0) == [DrainWorker("node-2", "a", "link of a")]
    assert scheduler.handle(want(draining="a"), 2.0) == []
    assert scheduler.handle(WorkerDraining("a", "link of a"), 2.0) == []
    assert assigned(scheduler.handle(submit(make_task("t1")), 2.0)) == []


def test_a_drained_worker_that_dials_again_is_left_in_peace_without_work(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(want(draining="a"), 1.0)
    scheduler.handle(WorkerLost("a", "link of a", "bye", clean=True), 2.0)

    assert scheduler.handle(join(make_spec("a"), link="second"), 3.0) == []
    assert scheduler.handle(want(draining="a"), 4.0) == []
    assert assigned(scheduler.handle(submit(make_task("t1")), 5.0)) == []

    assert scheduler.handle(want(), 6.0) == started(make_task("t1"), "a", queued_s=1.0, link="second")
