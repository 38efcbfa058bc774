"""Workers that leave, fall silent, come back, or want no more."""

from __future__ import annotations

import pytest

from cluster.domain import Outcome
from cluster.scheduler.commands import EvictWorker, FailTask, FenceAttempt
from cluster.scheduler.events import (
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


def test_a_lost_worker_takes_its_tasks_to_the_fence_and_nothing_else(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=2)), 0.0)
    for name in ("t1", "t2", "waiting"):
        scheduler.handle(submit(make_task(name)), 0.0)

    assert scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0) == [
        FenceAttempt("node-1", "t1", 1),
        FenceAttempt("node-1", "t2", 1),
    ]
    assert scheduler.placement.workers == {}


def test_a_lost_worker_does_not_touch_what_runs_elsewhere(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(submit(make_task("t2")), 0.0)

    assert scheduler.handle(WorkerLost("b", "link of b", "closed"), 1.0) == [FenceAttempt("node-1", "t2", 1)]


def test_a_lost_worker_takes_its_unacknowledged_cancels_along(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)

    assert scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.5) == []
    assert scheduler.handle(Tick(), 9.0) == []
    assert scheduler.dropped == {}
    assert scheduler.next_deadline() == 11.5  # only the model is missed


def test_a_silent_worker_is_evicted_and_its_tasks_move_on(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(task), 0.0)
    scheduler.handle(join(make_spec("b")), 5.0)

    assert scheduler.handle(Tick(), 15.9) == []
    assert scheduler.handle(Tick(), 16.0) == [
        EvictWorker("node-2", "a", "link of a", 4408, "silent"),
        FenceAttempt("node-1", "t1", 1),
    ]
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 12.0) == started(task, "b", attempt=2)


def test_heartbeats_keep_a_worker(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)

    for second in range(5, 100, 5):
        assert scheduler.handle(beat("a"), float(second)) == []
        assert scheduler.handle(Tick(), float(second)) == []

    assert scheduler.handle(Tick(), 110.9) == []
    assert scheduler.handle(Tick(), 111.0) == [EvictWorker("node-2", "a", "link of a", 4408, "silent")]


def test_a_stale_worker_gets_nothing_until_it_speaks(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)

    assert scheduler.handle(submit(task), 7.6) == [waits(task)]
    assert scheduler.handle(beat("a"), 8.0) == started(task, "a", queued_s=pytest.approx(0.4))


def test_a_worker_is_not_stale_a_moment_before(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)

    assert scheduler.handle(submit(task), 7.5) == started(task, "a")


def test_a_stale_worker_is_passed_over_for_a_busier_one(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("busy", capacity=4)), 0.0)
    for n in range(3):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)
    scheduler.handle(join(make_spec("quiet", capacity=4)), 0.0)
    scheduler.handle(beat("busy"), 7.0)

    assert assigned(scheduler.handle(submit(make_task("t3")), 8.0)) == [("t3", "busy")]


def test_a_slot_that_frees_on_a_stale_worker_is_not_offered(scheduler: CheckedScheduler) -> None:
    waiting = make_task("t2")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(submit(waiting), 0.0)
    assert scheduler.handle(TaskCancelled("t1"), 8.0) == [cancelled(make_task("t1"), "a")]

    assert scheduler.handle(AttemptReleased("t1", 1, "a"), 9.0) == []
    assert scheduler.handle(beat("a"), 11.0) == started(waiting, "a", queued_s=11.0)


def test_a_draining_worker_gets_nothing_new_and_finishes_what_it_has(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)

    assert scheduler.handle(WorkerDraining("a", "link of a"), 1.0) == []
    assert assigned(scheduler.handle(submit(make_task("t2")), 2.0)) == []
    assert scheduler.handle(AttemptFinished("t1", 1, "a"), 3.0) == []
    assert scheduler.handle(beat("a"), 4.0) == []
    assert list(scheduler.tasks) == ["t2"]


def test_saying_twice_that_it_drains_changes_nothing(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(WorkerDraining("a", "link of a"), 1.0)
    scheduler.handle(submit(make_task("t1")), 2.0)
    deadline = scheduler.next_deadline()

    assert scheduler.handle(WorkerDraining("a", "link of a"), 9.0) == []
    assert scheduler.next_deadline() == deadline == 11.0


def test_a_stale_draining_worker_that_speaks_still_gets_nothing(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(WorkerDraining("a", "link of a"), 1.0)
    scheduler.handle(submit(make_task("t1")), 8.0)

    assert scheduler.handle(beat("a"), 9.0) == []


def test_a_worker_on_a_new_link_replaces_itself_and_comes_back_empty(scheduler: CheckedScheduler) -> None:
    task, waiting = make_task("t1"), make_task("t2")
    scheduler.handle(join(make_spec("a"), link="old"), 0.0)
    scheduler.handle(submit(task), 0.0)
    scheduler.handle(submit(waiting), 0.0)

    assert scheduler.handle(join(make_spec("a"), link="new"), 1.0) == [
        EvictWorker("node-2", "a", "old", 4409, "replaced"),
        FenceAttempt("node-1", "t1", 1),
        *started(waiting, "a", queued_s=1.0, link="new"),
    ]


def test_the_old_link_of_a_replaced_worker_has_no_say(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a"), link="old"), 0.0)
    scheduler.handle(join(make_spec("a"), link="new"), 1.0)

    assert scheduler.handle(beat("a", link="old"), 10.0) == []
    assert scheduler.handle(WorkerDraining("a", "old"), 10.0) == []
    assert scheduler.handle(WorkerLost("a", "old", "closed"), 10.0) == []

    assert scheduler.dropped == {"heartbeat": 1, "worker_draining": 1, "worker_lost": 1}
    assert scheduler.handle(Tick(), 17.0) == [EvictWorker("node-2", "a", "new", 4408, "silent")]


def test_a_worker_may_come_back_with_other_models(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", models=("x",)), link="old"), 0.0)
    scheduler.handle(join(make_spec("a", models=("y",)), link="link of a"), 20.0)
    task = make_task("t2", model="y")

    assert codes(scheduler.handle(submit(make_task("t1", model="x")), 31.0)) == [
        ("t1", "failed", "no_worker_available")
    ]
    scheduler.handle(beat("a"), 31.0)
    assert scheduler.handle(submit(task), 31.0) == started(task, "a")


def test_a_task_of_a_model_that_only_draining_workers_have_is_told_so(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(WorkerDraining("a", "link of a"), 5.0)

    assert scheduler.handle(submit(make_task("t1")), 15.0) == [
        FailTask(
            "node-1",
            "t1",
            Outcome.FAILED,
            "no_worker_available",
            "The model llama-3-8b cannot be served now: all workers that have it are draining.",
            5.0,
        )
    ]
