"""What must not grow with the size of the cluster, counted and not timed."""

from __future__ import annotations

import pytest

from cluster.scheduler.core import Scheduler
from cluster.scheduler.events import AttemptFinished, WorkerLost
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.workers import WorkerRecord
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    join,
    make_spec,
    make_task,
    submit,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler

WORKERS = 200


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workers that were looked at for a task, one entry a look."""
    looked_at: list[str] = []
    fits = WorkerRecord.fits

    def counted(worker: WorkerRecord, record: TaskRecord) -> bool:
        looked_at.append(worker.spec.id)
        return fits(worker, record)

    monkeypatch.setattr(WorkerRecord, "fits", counted)
    return looked_at


def test_a_choice_among_free_workers_looks_at_one(scheduler: CheckedScheduler, looks: list[str]) -> None:
    for n in range(WORKERS):
        scheduler.handle(join(make_spec(f"w{n}")), 0.0)

    Scheduler.handle(scheduler, submit(make_task("t")), 0.0)

    assert len(looks) == 1


def test_a_fleet_without_kv_room_is_not_searched_though_its_slots_are_free(
    scheduler: CheckedScheduler, looks: list[str]
) -> None:
    for n in range(WORKERS):
        scheduler.handle(join(make_spec(f"w{n}", capacity=8, kv_tokens=250)), 0.0)
    for n in range(2 * WORKERS):
        Scheduler.handle(scheduler, submit(make_task(f"running-{n}")), 0.0)
    looks.clear()

    assert assigned(Scheduler.handle(scheduler, submit(make_task("waits")), 0.0)) == []
    assert len(looks) == 1
    assert assigned(Scheduler.handle(scheduler, AttemptFinished("running-0", 1, _holder(scheduler)), 0.0)) != []


def _holder(scheduler: CheckedScheduler) -> str:
    worker = scheduler.tasks["running-0"].worker
    assert worker is not None
    return worker.spec.id


def test_an_end_where_nobody_fits_does_not_look_at_every_tenant(
    make_scheduler: MakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make_scheduler(max_waiting=10_000)
    handle = super(CheckedScheduler, scheduler).handle
    handle(join(make_spec("w", capacity=8, kv_tokens=500)), 0.0)
    handle(submit(make_task("long", max_tokens=390)), 0.0)
    handle(submit(make_task("running")), 0.0)
    for n in range(5_000):
        handle(submit(make_task(f"t{n}", tenant=f"tenant-{n}", max_tokens=190)), 0.0)
    considered: list[str] = []
    suits = WorkerRecord.suits
    monkeypatch.setattr(
        WorkerRecord, "suits", lambda worker, record: considered.append(record.task.id) or suits(worker, record)
    )

    assert handle(AttemptFinished("running", 1, "w"), 1.0) == []
    assert len(considered) <= 1


def test_the_first_of_many_tenants_that_fits_is_found_without_looking_at_those_that_do_not(
    make_scheduler: MakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make_scheduler(max_waiting=10_000)
    handle = super(CheckedScheduler, scheduler).handle
    handle(join(make_spec("w", capacity=8, kv_tokens=500)), 0.0)
    handle(submit(make_task("long", max_tokens=390)), 0.0)
    handle(submit(make_task("running")), 0.0)
    for n in range(5_000):
        size = 90 if n == 4_000 else 190
        handle(submit(make_task(f"t{n}", tenant=f"tenant-{n}", max_tokens=size)), 0.0)
    considered: list[str] = []
    suits = WorkerRecord.suits
    monkeypatch.setattr(
        WorkerRecord, "suits", lambda worker, record: considered.append(record.task.id) or suits(worker, record)
    )

    assert assigned(handle(AttemptFinished("running", 1, "w"), 1.0)) == [("t4000", "w")]
    assert len(considered) <= 3


def test_a_worker_that_leaves_costs_no_look_at_those_in_line(make_scheduler: MakeScheduler, looks: list[str]) -> None:
    scheduler = make_scheduler(max_waiting=10_000)
    handle = super(CheckedScheduler, scheduler).handle
    for name in ("a", "b"):
        handle(join(make_spec(name)), 0.0)
    for n in range(2_000):
        handle(submit(make_task(f"t{n}", tenant=f"tenant-{n % 500}")), 0.0)
    looks.clear()

    handle(WorkerLost("a", "link of a", "closed"), 1.0)

    assert looks == []
