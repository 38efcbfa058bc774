"""What must not grow with the size of the cluster, counted and not timed."""

from __future__ import annotations

import pytest

from cluster.scheduler.core import Scheduler
from cluster.scheduler.events import AttemptFinished
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
