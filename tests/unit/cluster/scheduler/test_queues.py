"""Who is next: tiers, tenants, arrival."""

from __future__ import annotations

import pytest

from cluster.domain import Choice, Tier, WaitReason
from cluster.scheduler.commands import AnnounceAttempt, AssignTask, FenceAttempt
from cluster.scheduler.events import AttemptFailed, AttemptFenced, AttemptFinished, AttemptStarted, WorkerLost
from tests.unit.cluster.scheduler.builders import (
    MODEL,
    CheckedScheduler,
    assigned,
    join,
    make_spec,
    make_task,
    started,
    submit,
    waits,
)


def served(scheduler: CheckedScheduler, running: str, worker_id: str = "w") -> list[str]:
    """Let tasks end one after the other on a worker with one slot; return who follows whom."""
    order = []
    while commands := scheduler.handle(AttemptFinished(running, 1, worker_id), 1.0):
        [(running, _)] = assigned(commands)
        order.append(running)
    return order


def test_a_free_worker_takes_a_task_at_once(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    assert scheduler.handle(join(make_spec("w")), 0.0) == []

    assert scheduler.handle(submit(task), 1.0) == [
        AnnounceAttempt(
            node="node-1",
            task_id="t1",
            attempt=1,
            worker_id="w",
            worker_name="name of w",
            queued_s=0.0,
            choice=Choice(candidates=1, load=1.0, wait=1.0),
            worker_gpu="H100",
        ),
        AssignTask(node="node-2", worker_id="w", link="link of w", task=task, attempt=1, resume_from=0),
    ]
    assert scheduler.handle(AttemptStarted("t1", 1), 1.1) == []
    assert scheduler.handle(AttemptFinished("t1", 1, "w"), 2.0) == []

    assert scheduler.tasks == {} and scheduler.dropped == {}


def test_a_task_waits_for_a_slot_and_the_stream_hears_how_long(scheduler: CheckedScheduler) -> None:
    waiting = make_task("t2")
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("t1")), 1.0)

    assert scheduler.handle(submit(waiting), 2.0) == [waits(waiting, WaitReason.NO_SLOT)]
    assert scheduler.handle(AttemptFinished("t1", 1, "w"), 5.0) == started(waiting, "w", queued_s=3.0)


def test_a_worker_that_joins_is_filled_from_the_queue(scheduler: CheckedScheduler) -> None:
    one, two = make_task("t1"), make_task("t2")
    scheduler.handle(submit(one), 1.0)
    scheduler.handle(submit(two), 2.0)

    commands = scheduler.handle(join(make_spec("w", capacity=2)), 3.0)

    assert commands == started(one, "w", queued_s=2.0) + started(two, "w", queued_s=1.0)


def test_the_order_of_one_tenant_is_the_order_of_arrival(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    for name in ("first", "a", "b", "c"):
        scheduler.handle(submit(make_task(name)), 0.0)

    assert served(scheduler, "first") == ["a", "b", "c"]


def test_a_higher_tier_always_goes_first(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first")), 0.0)
    for tier in (Tier.BATCH, Tier.FLEX, Tier.DEFAULT, Tier.PRIORITY):
        scheduler.handle(submit(make_task(f"{tier.word}-1", tier=tier)), 0.0)
        scheduler.handle(submit(make_task(f"{tier.word}-2", tier=tier)), 0.0)

    order = served(scheduler, "first")

    assert order == [f"{word}-{n}" for word in ("priority", "default", "flex", "batch") for n in (1, 2)]


def test_tenants_of_a_tier_take_turns_however_much_one_of_them_sends(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    for name in ("a1", "a2", "a3", "a4"):
        scheduler.handle(submit(make_task(name, tenant="alice")), 0.0)
    for name in ("b1", "b2"):
        scheduler.handle(submit(make_task(name, tenant="bob")), 0.0)
    scheduler.handle(submit(make_task("c1", tenant="charlie")), 0.0)

    assert served(scheduler, "first") == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_worker_of_two_models_takes_the_higher_tier_then_the_earlier_arrival(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", models=("x", "y"))), 0.0)
    scheduler.handle(submit(make_task("first", model="x")), 0.0)
    scheduler.handle(submit(make_task("y1", model="y")), 0.0)
    scheduler.handle(submit(make_task("x1", model="x")), 0.0)
    scheduler.handle(submit(make_task("y2", model="y")), 0.0)
    scheduler.handle(submit(make_task("late x", model="x", tier=Tier.PRIORITY)), 0.0)

    assert served(scheduler, "first") == ["late x", "y1", "x1", "y2"]


def test_a_task_that_comes_back_goes_before_those_who_came_later(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(join(make_spec("other")), 0.0)
    [(_, on)] = assigned(scheduler.handle(submit(make_task("unlucky")), 0.0))
    [(_, elsewhere)] = assigned(scheduler.handle(submit(make_task("lucky")), 0.0))
    for name in ("a", "b"):
        scheduler.handle(submit(make_task(name)), 0.0)

    scheduler.handle(WorkerLost(on, f"link of {on}", "closed"), 1.0)
    back = make_task("unlucky")
    assert scheduler.handle(AttemptFenced("unlucky", 1, 0), 1.0) == [waits(back)]

    assert scheduler.handle(AttemptFinished("lucky", 1, elsewhere), 3.0) == started(
        back, elsewhere, attempt=2, queued_s=2.0
    )
    assert assigned(scheduler.handle(AttemptFinished("unlucky", 2, elsewhere), 4.0)) == [("a", elsewhere)]


def test_several_tasks_that_come_back_keep_their_order_among_themselves(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=3)), 0.0)
    for name in ("a", "b", "c", "d"):
        scheduler.handle(submit(make_task(name)), 0.0)
    scheduler.handle(WorkerLost("w", "link of w", "closed"), 1.0)

    for name in ("b", "c", "a"):
        scheduler.handle(AttemptFenced(name, 1, 0), 1.0)

    assert [name for name, _ in assigned(scheduler.handle(join(make_spec("new", capacity=4)), 2.0))] == list("abcd")


def test_a_head_that_does_not_fit_holds_up_its_own_line_only(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=8, kv_tokens=500)), 0.0)
    scheduler.handle(submit(make_task("running", max_tokens=290)), 0.0)
    big, small = make_task("big", tenant="alice", max_tokens=390), make_task("small", tenant="alice")
    assert scheduler.handle(submit(big), 0.0) == [waits(big, WaitReason.NO_KV_ROOM)]

    assert scheduler.handle(submit(small), 0.0) == [waits(small, WaitReason.BEHIND_OTHERS, 2)]
    assert assigned(scheduler.handle(submit(make_task("bob's", tenant="bob")), 0.0)) == [("bob's", "w")]
    lower = make_task("alice's own, lower", tenant="alice", tier=Tier.BATCH)
    assert assigned(scheduler.handle(submit(lower), 0.0)) == [(lower.id, "w")]


@pytest.mark.parametrize("waiting", ["fits", "does not fit"])
def test_a_failed_attempt_makes_room_for_others_before_it_comes_back(scheduler: CheckedScheduler, waiting: str) -> None:
    scheduler.handle(join(make_spec("w", kv_tokens=200)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    next_up = make_task("t2", max_tokens=90 if waiting == "fits" else 190)
    scheduler.handle(submit(next_up), 0.0)

    commands = scheduler.handle(AttemptFailed("t1", 1, "w", "backend_error"), 1.0)

    assert commands == [FenceAttempt("node-1", "t1", 1), *started(next_up, "w", queued_s=1.0)]


def test_models_do_not_wait_for_one_another(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", models=(MODEL,))), 0.0)
    scheduler.handle(join(make_spec("v", models=("mistral-7b",))), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(submit(make_task("t2")), 0.0)

    assert assigned(scheduler.handle(submit(make_task("t3", model="mistral-7b")), 0.0)) == [("t3", "v")]
