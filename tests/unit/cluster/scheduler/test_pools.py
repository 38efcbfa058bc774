"""Few workers are looked at one by one, many are kept in heaps: whichever it is, the choice is the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.domain import GpuReading
from cluster.scheduler import pools
from cluster.scheduler.core import Settings
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    HeartbeatReceived,
    TaskCancelled,
    Tick,
    WorkerLost,
)
from cluster.scheduler.placement import Placement
from cluster.scheduler.pools import FEW
from cluster.scheduler.workers import WorkerRecord
from tests.unit.cluster.scheduler.builders import CheckedScheduler, assigned, join, make_spec, make_task, submit
from tests.unit.cluster.scheduler.conftest import MakeScheduler
from tests.unit.cluster.scheduler.test_machine import Cluster

WORKERS = {
    spec.id: spec
    for spec in (
        make_spec(f"w{number}", capacity=1 + number % 4, kv_tokens=kv_tokens, resumes=("x",) if number % 2 else ())
        for number, kv_tokens in enumerate((0, 150, 250, 350, 600, 900, 0, 1_200))
    )
}


class Comparison:
    """Makes every choice both ways."""

    def __init__(self) -> None:
        self.choices = 0
        self._choose = Placement.choose

    def choose(self, candidates: Placement, record: Any, now: float) -> WorkerRecord | None:
        with patch.object(pools, "FEW", 0):
            heaped = self._choose(candidates, record, now)
        scanned = self._choose(candidates, record, now)
        # Of equals either way takes any.
        assert _rank(heaped) == _rank(scanned), f"{record.task.id}: {_rank(heaped)} is not {_rank(scanned)}"
        self.choices += scanned is not None
        return scanned


def _rank(worker: WorkerRecord | None) -> tuple[float, int] | None:
    return None if worker is None else (worker.load, worker.slowness)


@contextmanager
def compared() -> Iterator[Comparison]:
    comparison = Comparison()
    with patch.object(Placement, "choose", lambda self, record, now: comparison.choose(self, record, now)):
        yield comparison


class Story:
    """Eight workers with equal offers, and what befalls them."""

    def __init__(self) -> None:
        self.scheduler = CheckedScheduler(Settings(max_waiting=30, max_waiting_share=1.0), random.Random(3), now=0.0)
        self.now = 0.0
        self.tasks = 0
        self.running: list[tuple[str, int, str]] = []
        for spec in WORKERS.values():
            self.tell(join(spec))

    def tell(self, event: Any) -> None:
        for command in self.scheduler.handle(event, self.now):
            match type(command).__name__:
                case "AssignTask":
                    self.running.append((command.task.id, command.attempt, command.worker_id))
                case "FenceAttempt":
                    self.tell(AttemptFenced(command.task_id, command.attempt, 4 * (command.attempt % 2)))

    def act(self, name: str, pick: int) -> None:
        worker_id = f"w{pick % len(WORKERS)}"
        match name:
            case "submit":
                self.tasks += 1
                self.tell(submit(make_task(f"t{self.tasks}", max_tokens=(40, 90, 190, 490)[pick % 4])))
            case "beat":
                self.tell(HeartbeatReceived(worker_id, f"link of {worker_id}", GpuReading(), float(10 + pick)))
            case "lose" if worker_id in self.scheduler.placement.workers:
                self.running = [held for held in self.running if held[2] != worker_id]
                self.tell(WorkerLost(worker_id, f"link of {worker_id}", "closed"))
                self.tell(join(WORKERS[worker_id]))
            case "wait":
                self.now += 0.1 * pick
                self.tell(Tick())
            case "cancel" if self.tasks:
                self.tell(TaskCancelled(f"t{1 + pick % self.tasks}"))
            case "finish" | "fail" if self.running:
                task_id, attempt, holder = self.running.pop(pick % len(self.running))
                ended = AttemptFinished if name == "finish" else AttemptFailed
                self.tell(ended(task_id, attempt, holder, *(("engine_error",) if name == "fail" else ())))


names = st.sampled_from(("submit", "submit", "submit", "beat", "lose", "wait", "cancel", "finish", "fail"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(names, st.integers(0, 40)), min_size=20, max_size=80))
def test_a_scanned_pool_and_a_heaped_one_make_the_same_choice(steps: list[tuple[str, int]]) -> None:
    with compared():
        story = Story()
        for name, pick in steps:
            story.act(name, pick)


def test_the_comparison_compares() -> None:
    with compared() as comparison:
        story = Story()
        for number in range(12):
            story.act("submit", number)

    assert comparison.choices >= 8


@pytest.mark.parametrize("workers", [FEW, FEW + 1])
def test_on_both_sides_of_the_border_the_least_loaded_worker_is_taken_in_turn(
    make_scheduler: MakeScheduler, workers: int
) -> None:
    scheduler = make_scheduler()
    for number in range(workers):
        scheduler.handle(join(make_spec(f"w{number}", capacity=2)), 0.0)

    placed = [assigned(scheduler.handle(submit(make_task(f"t{n}")), 0.0))[0][1] for n in range(2 * workers)]

    assert len(set(placed[:workers])) == len(set(placed[workers:])) == workers


def test_a_pool_that_grows_and_shrinks_over_the_border_forgets_nobody(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler()
    for number in range(FEW):
        scheduler.handle(join(make_spec(f"w{number}")), 0.0)
    for number in range(FEW):
        scheduler.handle(submit(make_task(f"t{number}")), 0.0)
    scheduler.handle(join(make_spec("one more")), 0.0)

    assert assigned(scheduler.handle(submit(make_task("a")), 0.0)) == [("a", "one more")]
    scheduler.handle(WorkerLost("one more", "link of one more", "closed", True), 0.0)
    scheduler.handle(AttemptFenced("a", 1, 0), 0.0)
    holder = scheduler.tasks["t3"].worker
    assert holder is not None
    assert assigned(scheduler.handle(AttemptFinished("t3", 1, holder.spec.id), 1.0)) == [("a", holder.spec.id)]


def test_a_heaped_worker_that_turns_out_to_be_faster_is_chosen_from_then_on(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler()
    for number in range(FEW + 1):
        scheduler.handle(join(make_spec(f"w{number}", capacity=4)), 0.0)
    for number in range(FEW + 1):
        scheduler.handle(submit(make_task(f"t{number}")), 0.0)

    scheduler.handle(HeartbeatReceived("w5", "link of w5", GpuReading(), 500.0), 0.0)

    assert assigned(scheduler.handle(submit(make_task("a")), 0.0)) == [("a", "w5")]


class HeapedCluster(Cluster):
    """The same, with every pool in heaps."""

    def __init__(self) -> None:
        super().__init__()
        self._few = patch.object(pools, "FEW", 0)
        self._few.start()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._few.stop()


class ComparedCluster(Cluster):
    """The same, with every choice made both ways."""

    def __init__(self) -> None:
        super().__init__()
        self._compared = compared()
        self._compared.__enter__()

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._compared.__exit__(None, None, None)


AT_ONCE = settings(max_examples=30, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
AT_LENGTH = settings(
    max_examples=3_000, stateful_step_count=150, deadline=None, suppress_health_check=list(HealthCheck)
)

TestHeapedCluster = HeapedCluster.TestCase
TestHeapedCluster.settings = AT_ONCE
TestComparedCluster = ComparedCluster.TestCase
TestComparedCluster.settings = AT_ONCE


@pytest.mark.soak
class TestHeapedClusterAtLength(HeapedCluster.TestCase):
    settings = AT_LENGTH


@pytest.mark.soak
class TestComparedClusterAtLength(ComparedCluster.TestCase):
    settings = AT_LENGTH
