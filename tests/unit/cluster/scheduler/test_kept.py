"""Large tasks and tasks that must run alone: a worker is kept for them, so that they do not starve."""

from __future__ import annotations

import pytest

from cluster.domain import Tier, WaitReason
from cluster.scheduler.events import (
    AttemptFenced,
    AttemptFinished,
    TaskCancelled,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    beat,
    codes,
    join,
    make_spec,
    make_task,
    started,
    submit,
    waits,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler

ROOMY = make_spec("w", capacity=8, kv_tokens=400)
BIG = make_task("big", tenant="bob", max_tokens=290)
"""Needs three quarters of it."""


@pytest.fixture
def crowded(make_scheduler: MakeScheduler) -> CheckedScheduler:
    """A worker with room for four small tasks, which it has, a large one in line, and small ones after it."""
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(ROOMY), 0.0)
    for n in range(4):
        scheduler.handle(submit(make_task(f"s{n}")), 0.0)
    scheduler.handle(submit(BIG), 0.0)
    for n in range(4, 20):
        scheduler.handle(submit(make_task(f"s{n}")), 0.0)
    return scheduler


def test_small_tasks_pass_a_large_one_for_a_while(crowded: CheckedScheduler) -> None:
    assert assigned(crowded.handle(AttemptFinished("s0", 1, "w"), 9.0)) == [("s4", "w")]
    assert assigned(crowded.handle(AttemptFinished("s1", 1, "w"), 10.0)) == [("s5", "w")]


def test_then_its_worker_is_kept_until_there_is_room_for_it(crowded: CheckedScheduler) -> None:
    assert crowded.handle(AttemptFinished("s0", 1, "w"), 10.1) == []
    assert crowded.handle(AttemptFinished("s1", 1, "w"), 10.2) == []
    commands = crowded.handle(AttemptFinished("s2", 1, "w"), 10.3)

    assert commands == started(BIG, "w", queued_s=10.3)
    assert assigned(crowded.handle(AttemptFinished("s3", 1, "w"), 10.4)) == [("s4", "w")]


def test_a_newcomer_does_not_get_the_room_that_is_kept(crowded: CheckedScheduler) -> None:
    crowded.handle(AttemptFinished("s0", 1, "w"), 10.1)

    assert assigned(crowded.handle(submit(make_task("new", tenant="charlie", tier=Tier.PRIORITY)), 10.1)) == []


def test_other_workers_go_on_meanwhile(crowded: CheckedScheduler) -> None:
    crowded.handle(AttemptFinished("s0", 1, "w"), 10.1)

    commands = crowded.handle(join(make_spec("v", capacity=2, kv_tokens=200)), 10.2)

    assert assigned(commands) == [("s4", "v"), ("s5", "v")]


def test_one_worker_is_kept_for_a_model_at_a_time(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    for name in ("w", "v"):
        scheduler.handle(join(make_spec(name, capacity=8, kv_tokens=400)), 0.0)
    for n in range(8):
        scheduler.handle(submit(make_task(f"s{n}")), 0.0)
    for tenant in ("bob", "charlie"):
        scheduler.handle(submit(make_task(f"{tenant}'s", tenant=tenant, max_tokens=290)), 0.0)
    scheduler.handle(submit(make_task("small", tenant="dave")), 0.0)
    scheduler.handle(submit(make_task("smaller", tenant="erin")), 0.0)
    on_w, on_v = (next(iter(scheduler.placement.workers[name].running)) for name in ("w", "v"))

    assert assigned(scheduler.handle(AttemptFinished(on_w, 1, "w"), 11.0)) == []
    assert assigned(scheduler.handle(AttemptFinished(on_v, 1, "v"), 11.0)) == [("small", "v")]


def test_a_large_task_that_finds_room_elsewhere_lets_its_worker_go(crowded: CheckedScheduler) -> None:
    crowded.handle(AttemptFinished("s0", 1, "w"), 10.1)

    commands = crowded.handle(join(make_spec("v", capacity=1, kv_tokens=400)), 10.2)

    assert assigned(commands) == [("big", "v"), ("s4", "w")]


def test_a_large_task_that_leaves_lets_its_worker_go(crowded: CheckedScheduler) -> None:
    crowded.handle(AttemptFinished("s0", 1, "w"), 10.1)

    assert assigned(crowded.handle(TaskCancelled("big"), 11.0)) == [("s4", "w")]


def test_a_large_task_that_expires_lets_its_worker_go(crowded: CheckedScheduler) -> None:
    crowded.handle(AttemptFinished("s0", 1, "w"), 10.1)

    commands = crowded.handle(Tick(), 30.0)

    assert codes(commands)[0] == ("big", "expired", "queue_timeout")
    assert assigned(commands) == [("s4", "w")]


@pytest.mark.parametrize(
    "sign", [WorkerDraining("w", "link of w"), WorkerLost("w", "link of w", "closed")], ids=["drains", "is lost"]
)
def test_a_worker_that_stops_taking_tasks_is_kept_for_nobody(crowded: CheckedScheduler, sign) -> None:
    crowded.handle(AttemptFinished("s0", 1, "w"), 10.1)

    crowded.handle(sign, 10.2)

    assert crowded.tasks["big"].kept is None
    commands = crowded.handle(join(make_spec("v", capacity=1, kv_tokens=400)), 10.3)
    assert ("big", "v") in assigned(commands)


def test_an_aged_large_task_of_a_lower_tier_is_kept_a_worker_in_its_tenth(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6, max_waiting_share=1.0)
    scheduler.handle(join(ROOMY), 0.0)
    for n in range(60):
        scheduler.handle(submit(make_task(f"s{n}", tier=Tier.PRIORITY)), 0.0)
    scheduler.handle(submit(make_task("big", tier=Tier.BATCH, max_tokens=290)), 0.0)

    order, now = [], 10.0
    while "big" not in order:
        now += 0.1
        name = min(scheduler.placement.workers["w"].running, key=lambda name: int(name[1:]))
        order += [name for name, _ in assigned(scheduler.handle(AttemptFinished(name, 1, "w"), now))]

    assert len(order) <= 11


LOST = WorkerLost("a", "link of a", "closed")


@pytest.fixture
def bereft(make_scheduler: MakeScheduler) -> CheckedScheduler:
    """A task with which worker a has died, and workers b and c, each with one of two slots in use."""
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("poison?")), 0.0)
    scheduler.handle(join(make_spec("b", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("on b")), 0.0)
    scheduler.handle(join(make_spec("c", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("on c")), 0.0)
    assert [record.worker.spec.id for record in scheduler.tasks.values() if record.worker] == ["a", "b", "c"]
    scheduler.handle(LOST, 1.0)
    return scheduler


def test_a_task_with_which_a_worker_died_waits_for_one_of_its_own(bereft: CheckedScheduler) -> None:
    task = make_task("poison?")
    assert bereft.handle(AttemptFenced("poison?", 1, 0), 1.0) == [waits(task, WaitReason.ISOLATION)]

    assert bereft.handle(AttemptFinished("on b", 1, "b"), 2.0) == started(task, "b", attempt=2, queued_s=1.0)
    assert bereft.placement.workers["b"].alone


def test_it_goes_at_once_where_nothing_runs(bereft: CheckedScheduler) -> None:
    bereft.handle(AttemptFinished("on c", 1, "c"), 1.0)

    assert bereft.handle(AttemptFenced("poison?", 1, 0), 1.0) == started(make_task("poison?"), "c", attempt=2)


def test_nobody_is_put_beside_it(bereft: CheckedScheduler) -> None:
    bereft.handle(AttemptFinished("on c", 1, "c"), 1.0)
    bereft.handle(AttemptFenced("poison?", 1, 0), 1.0)

    assert assigned(bereft.handle(submit(make_task("t1")), 1.0)) == [("t1", "b")]
    assert assigned(bereft.handle(submit(make_task("t2")), 1.0)) == []
    assert assigned(bereft.handle(AttemptFinished("poison?", 2, "c"), 2.0)) == [("t2", "c")]
    assert assigned(bereft.handle(submit(make_task("t3")), 2.0)) == [("t3", "c")]


def test_a_busy_worker_is_emptied_for_it_and_another_left_for_everybody(bereft: CheckedScheduler) -> None:
    for name in ("t1", "t2"):
        bereft.handle(submit(make_task(name)), 1.0)
    bereft.handle(AttemptFenced("poison?", 1, 0), 1.0)
    for n in range(4):
        bereft.handle(submit(make_task(f"more{n}")), 1.0)

    assert bereft.handle(AttemptFinished("on b", 1, "b"), 2.0) == []
    assert assigned(bereft.handle(AttemptFinished("on c", 1, "c"), 2.0)) == [("more0", "c")]
    last = next(iter(bereft.placement.workers["b"].running))
    commands = bereft.handle(AttemptFinished(last, 1, "b"), 3.0)
    assert commands == started(make_task("poison?"), "b", attempt=2, queued_s=2.0)


def test_where_one_worker_is_left_it_does_not_stop_everybody_else(bereft: CheckedScheduler) -> None:
    bereft.handle(AttemptFenced("poison?", 1, 0), 1.0)

    commands = bereft.handle(WorkerLost("c", "link of c", "closed"), 1.5)

    assert ("poison?", "b") in assigned(commands)
    assert not bereft.placement.workers["b"].alone


def test_a_worker_whose_process_comes_back_did_not_die(bereft: CheckedScheduler) -> None:
    bereft.handle(join(make_spec("a", capacity=2), link="again"), 1.1)
    bereft.handle(submit(make_task("on a")), 1.1)

    commands = bereft.handle(AttemptFenced("poison?", 1, 0), 1.2)

    assert len(assigned(commands)) == 1 and bereft.tasks["poison?"].worker is not None
    assert not bereft.tasks["poison?"].worker.alone


def test_a_worker_that_said_goodbye_did_not_die(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler()
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    for name in ("b", "c"):
        scheduler.handle(join(make_spec(name, capacity=2)), 0.0)
        scheduler.handle(submit(make_task(f"on {name}")), 0.0)
    scheduler.handle(WorkerLost("a", "link of a", "bye", clean=True), 1.0)

    assert len(assigned(scheduler.handle(AttemptFenced("t1", 1, 0), 1.0))) == 1


def test_it_does_not_wait_for_a_worker_of_its_own_for_ever(bereft: CheckedScheduler) -> None:
    bereft.handle(AttemptFenced("poison?", 1, 0), 1.0)

    assert bereft.handle(Tick(), 20.9) == []
    assert len(assigned(bereft.handle(Tick(), 21.0))) == 1


def test_several_such_tasks_leave_one_worker_to_everybody(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a", capacity=4)), 0.0)
    for n in range(4):
        scheduler.handle(submit(make_task(f"p{n}")), 0.0)
    for name in ("b", "c", "d"):
        scheduler.handle(join(make_spec(name, capacity=2)), 0.0)
    scheduler.handle(LOST, 1.0)
    for n in range(6):
        scheduler.handle(submit(make_task(f"t{n}")), 1.0)
    for n in range(4):
        scheduler.handle(AttemptFenced(f"p{n}", 1, 0), 1.0)
    for n in range(6, 12):
        scheduler.handle(submit(make_task(f"t{n}")), 1.0)
    for n in range(6):
        worker = scheduler.tasks[f"t{n}"].worker
        assert worker is not None
        scheduler.handle(AttemptFinished(f"t{n}", 1, worker.spec.id), 2.0)

    running = {name: list(worker.running) for name, worker in scheduler.placement.workers.items()}
    alone = [name for name, worker in scheduler.placement.workers.items() if worker.alone]
    assert len(alone) == 2 and sorted(len(tasks) for tasks in running.values()) == [1, 1, 2]


def test_two_deaths_are_enough_and_a_third_worker_is_not_tried(bereft: CheckedScheduler) -> None:
    bereft.handle(AttemptFenced("poison?", 1, 0), 1.0)
    bereft.handle(AttemptFinished("on b", 1, "b"), 2.0)
    bereft.handle(WorkerLost("b", "link of b", "closed"), 2.1)

    assert codes(bereft.handle(AttemptFenced("poison?", 2, 0), 2.1)) == [("poison?", "failed", "worker_crashed")]


@pytest.mark.parametrize(("after_s", "dead"), [(20.0, False), (20.1, True)])
def test_a_process_that_is_back_too_late_has_died(make_scheduler: MakeScheduler, after_s: float, dead: bool) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(join(make_spec("b")), 0.0)
    scheduler.handle(LOST, 0.0)
    assert assigned(scheduler.handle(AttemptFenced("t1", 1, 0), 0.0)) == [("t1", "b")]
    scheduler.handle(WorkerJoined(make_spec("a"), "node-2", "again"), after_s)
    scheduler.handle(beat("b"), after_s)
    scheduler.handle(WorkerLost("b", "link of b", "closed"), after_s + 1)

    assert bool(codes(scheduler.handle(AttemptFenced("t1", 2, 0), after_s + 1))) is dead


def test_who_waits_to_be_alone_goes_in_company_once_the_worker_is_back_alive(bereft: CheckedScheduler) -> None:
    task = make_task("poison?")
    assert bereft.handle(AttemptFenced("poison?", 1, 0), 1.0) == [waits(task, WaitReason.ISOLATION)]

    commands = bereft.handle(join(make_spec("a", models=("mistral-7b",)), link="again"), 2.0)

    assert len(assigned(commands)) == 1 and assigned(commands)[0][1] in ("b", "c")
