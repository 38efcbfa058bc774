"""The picture that everybody else sees."""

from __future__ import annotations

import pytest

from cluster.domain import (
    ClusterSnapshot,
    GpuInfo,
    GpuReading,
    Tier,
    TierView,
    WaitingView,
    WorkerStatus,
    WorkerView,
)
from cluster.scheduler.commands import AssignTask
from cluster.scheduler.events import AttemptFinished, HeartbeatReceived, TaskCancelled, WorkerDraining, WorkerLost
from tests.unit.cluster.scheduler.builders import CheckedScheduler, beat, join, make_spec, make_task, submit
from tests.unit.cluster.scheduler.conftest import MakeScheduler


def snap(scheduler: CheckedScheduler, now: float = 0.0) -> ClusterSnapshot:
    return scheduler.snapshot(now, version=1, wall_s=1_000.0 + now)


def test_an_empty_cluster_has_four_empty_tiers(scheduler: CheckedScheduler) -> None:
    assert scheduler.snapshot(5.0, version=3, wall_s=1_700.0) == ClusterSnapshot(
        version=3,
        taken_at_s=1_700.0,
        tiers=tuple(TierView(tier=tier, depth=0, oldest_wait_s=0.0) for tier in Tier),
    )


def test_a_worker_is_shown_with_what_it_said_and_what_we_reserved(scheduler: CheckedScheduler) -> None:
    reading = GpuReading(utilization=0.5, power_w=300.0)
    scheduler.handle(join(make_spec("a", capacity=4, kv_tokens=1_000)), 0.0)
    scheduler.handle(HeartbeatReceived("a", "link of a", reading, 42.0), 1.0)
    scheduler.handle(submit(make_task("t1")), 1.0)

    assert snap(scheduler, 3.0).workers == (
        WorkerView(
            id="a",
            name="name of a",
            status=WorkerStatus.ONLINE,
            gpu=GpuInfo(name="H100"),
            models=("llama-3-8b",),
            running=1,
            capacity=4,
            kv_used_bytes=100,
            kv_bytes=1_000,
            reading=reading,
            tokens_per_s=42.0,
            simulated=False,
            heartbeat_age_s=2.0,
        ),
    )


def test_totals_are_sums_over_workers_and_queues(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("b", capacity=2)), 0.0)
    scheduler.handle(join(make_spec("a", capacity=1, models=("mistral-7b",))), 0.0)
    for n in range(5):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)
    scheduler.handle(submit(make_task("m", model="mistral-7b")), 0.0)

    snapshot = snap(scheduler)

    assert (snapshot.running, snapshot.capacity, snapshot.waiting) == (3, 3, 3)
    assert [worker.id for worker in snapshot.workers] == ["a", "b"]


def test_a_worker_s_status_is_the_most_telling_word(scheduler: CheckedScheduler) -> None:
    for name in ("busy", "draining", "online", "suspect"):
        scheduler.handle(join(make_spec(name, models=(name,))), 0.0)
    scheduler.handle(submit(make_task("t1", model="busy")), 0.0)
    scheduler.handle(WorkerDraining("draining", "link of draining"), 0.0)
    for name in ("busy", "draining", "online"):
        scheduler.handle(beat(name), 5.0)

    assert {worker.id: worker.status.value for worker in snap(scheduler, 8.0).workers} == {
        name: name for name in ("busy", "draining", "online", "suspect")
    }


def test_a_slot_that_waits_for_its_release_is_in_use(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(TaskCancelled("t1"), 1.0)

    [worker] = snap(scheduler, 1.0).workers
    assert (worker.running, worker.status) == (1, WorkerStatus.BUSY)


def test_a_lost_worker_is_not_shown(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0)

    assert snap(scheduler, 1.0).workers == ()


def test_tiers_have_depth_and_their_longest_wait_over_all_models(scheduler: CheckedScheduler) -> None:
    scheduler.handle(submit(make_task("t1", model="x")), 1.0)
    scheduler.handle(submit(make_task("t2", model="y", tenant="bob")), 2.0)
    scheduler.handle(submit(make_task("t3", model="y", tier=Tier.BATCH)), 3.0)

    assert snap(scheduler, 5.0).tiers == (
        TierView(tier=Tier.PRIORITY, depth=0, oldest_wait_s=0.0),
        TierView(tier=Tier.DEFAULT, depth=2, oldest_wait_s=4.0),
        TierView(tier=Tier.FLEX, depth=0, oldest_wait_s=0.0),
        TierView(tier=Tier.BATCH, depth=1, oldest_wait_s=2.0),
    )


def test_a_position_counts_who_is_served_before_in_the_same_model(scheduler: CheckedScheduler) -> None:
    for name in ("a1", "a2", "a3"):
        scheduler.handle(submit(make_task(name, tenant="alice")), 0.0)
    scheduler.handle(submit(make_task("b1", tenant="bob")), 0.0)
    scheduler.handle(submit(make_task("urgent", tier=Tier.PRIORITY)), 0.0)
    scheduler.handle(submit(make_task("other", model="mistral-7b")), 0.0)

    positions = {view.task: view.position for view in snap(scheduler).head}

    assert positions == {"urgent": 1, "a1": 2, "b1": 3, "a2": 4, "a3": 5, "other": 1}


def test_positions_are_the_order_in_which_tasks_are_served(scheduler: CheckedScheduler) -> None:
    for n, tenant in enumerate(("alice", "alice", "bob", "alice", "charlie", "bob")):
        scheduler.handle(submit(make_task(f"t{n}", tenant=tenant, tier=Tier(n % 2))), 0.0)
    foretold = [view.task for view in sorted(snap(scheduler).head, key=lambda view: view.position)]

    commands = scheduler.handle(join(make_spec("a", capacity=6)), 1.0)

    assert [command.task.id for command in commands if hasattr(command, "task")] == foretold


def test_a_waiting_task_is_shown_with_its_tenant_and_its_wait(scheduler: CheckedScheduler) -> None:
    scheduler.handle(submit(make_task("t1", tenant="alice", tier=Tier.FLEX)), 1.0)

    assert snap(scheduler, 4.0).head == (
        WaitingView(
            task="t1",
            model="llama-3-8b",
            tenant="alice",
            tenant_label="Alice",
            tier=Tier.FLEX,
            position=1,
            waited_s=3.0,
            why="no_worker",
            eta_ms=None,
        ),
    )


def test_the_first_hundred_of_each_tier_are_shown_and_no_more(scheduler: CheckedScheduler) -> None:
    handle = super(CheckedScheduler, scheduler).handle
    for n in range(150):
        handle(submit(make_task(f"d{n}", model=f"m{n % 3}", tier=Tier.DEFAULT)), 0.0)
        handle(submit(make_task(f"b{n}", tier=Tier.BATCH)), 0.0)

    head = snap(scheduler).head

    assert [view.task for view in head] == [f"d{n}" for n in range(100)] + [f"b{n}" for n in range(100)]


def test_what_was_dropped_is_in_the_picture_and_stays_as_it_was(scheduler: CheckedScheduler) -> None:
    scheduler.handle(TaskCancelled("nobody's"), 0.0)
    snapshot = snap(scheduler)
    scheduler.handle(TaskCancelled("nobody's"), 0.0)

    assert snapshot.dropped == {"task_cancelled": 1}


@pytest.mark.parametrize("number", [0, 99])
def test_taking_a_picture_changes_nothing(scheduler: CheckedScheduler, number: int) -> None:
    for n in range(number):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)

    assert snap(scheduler) == snap(scheduler)
    scheduler.check_invariants()


def test_a_waiting_task_is_shown_with_the_reason_and_an_estimate(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a", capacity=4, kv_tokens=200)), 0.0)
    running = ["t0", "t1"]
    for n in range(30):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)
    for second in range(1, 21):
        commands = scheduler.handle(AttemptFinished(running.pop(0), 1, "a", 90), float(second))
        running += [command.task.id for command in commands if isinstance(command, AssignTask)]
    scheduler.handle(submit(make_task("nowhere", model="mistral-7b")), 20.0)

    views = {view.task: view for view in snap(scheduler, 20.0).head}

    assert (views["t22"].why, views["t23"].why) == ("no_kv_room", "behind_others")
    assert views["t22"].eta_ms == pytest.approx(1_000, rel=0.1)
    assert views["t29"].eta_ms == pytest.approx(8_000, rel=0.1)
    assert (views["nowhere"].why, views["nowhere"].eta_ms) == ("no_worker", None)
