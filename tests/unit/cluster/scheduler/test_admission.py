"""How many may wait, and when whoever is turned away should come again."""

from __future__ import annotations

import pytest

from cluster.domain import Outcome, Tier
from cluster.scheduler.commands import AnnounceWait, FailTask
from cluster.scheduler.events import AttemptFailed, AttemptFenced, AttemptFinished, TaskCancelled
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    codes,
    join,
    make_spec,
    make_task,
    submit,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler


def fill(scheduler: CheckedScheduler, number: int, *, tenants: int = 4, tier: Tier = Tier.DEFAULT) -> None:
    for n in range(number):
        scheduler.handle(submit(make_task(f"w{n}", tenant=f"tenant-{n % tenants}", tier=tier)), 0.0)


@pytest.fixture
def small(make_scheduler: MakeScheduler) -> CheckedScheduler:
    """A scheduler with room for eight to wait, four of one tenant, and one busy worker."""
    scheduler = make_scheduler(max_waiting=8, max_waiting_share=0.5)
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("running", tenant="dave")), 0.0)
    return scheduler


def test_a_full_queue_turns_everybody_away(small: CheckedScheduler) -> None:
    fill(small, 8)

    assert small.handle(submit(make_task("late", tenant="erin")), 0.0) == [
        FailTask(
            "node-1",
            "late",
            Outcome.FAILED,
            "engine_overloaded",
            "The service is overloaded and its queue is full; try again in a moment.",
            30.0,
        )
    ]
    assert small.waiting == 8 and "late" not in small.tasks


def test_long_prompts_fill_the_queue_and_a_share_of_it_before_many_do(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(max_waiting_tokens=1_000, max_waiting_share=0.5)
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("running", tenant="dave")), 0.0)
    for number, tenant in enumerate(("alice", "alice", "bob", "charlie")):
        scheduler.handle(submit(make_task(f"w{number}", tenant=tenant, prompt_tokens=300)), 0.0)

    refused = [
        *scheduler.handle(submit(make_task("alice's third", tenant="alice", prompt_tokens=1)), 0.0),
        *scheduler.handle(submit(make_task("erin's first", tenant="erin", prompt_tokens=1)), 0.0),
    ]

    assert codes(refused) == [
        ("alice's third", "failed", "rate_limit_exceeded"),
        ("erin's first", "failed", "engine_overloaded"),
    ]
    assert scheduler.handle(TaskCancelled("w0"), 1.0) == []
    assert scheduler.queues.prompt_tokens == 900


def test_a_tenant_with_its_share_in_line_is_turned_away_and_nobody_else(small: CheckedScheduler) -> None:
    fill(small, 4, tenants=1)

    assert small.handle(submit(make_task("fifth", tenant="tenant-0")), 0.0) == [
        FailTask(
            "node-1",
            "fifth",
            Outcome.FAILED,
            "rate_limit_exceeded",
            "Too many of your requests are waiting; send more when some of them have been served.",
            30.0,
        )
    ]
    assert isinstance(small.handle(submit(make_task("other", tenant="bob")), 0.0)[0], AnnounceWait)


def test_a_share_counts_over_all_models_and_tiers(small: CheckedScheduler) -> None:
    small.handle(join(make_spec("v", models=("mistral-7b",))), 0.0)
    for n, tier in enumerate(Tier):
        small.handle(submit(make_task(f"t{n}", tenant="alice", tier=tier)), 0.0)
    small.handle(submit(make_task("m0", tenant="alice", model="mistral-7b")), 0.0)

    commands = small.handle(submit(make_task("m1", tenant="alice", model="mistral-7b")), 0.0)

    assert codes(commands) == [("m1", "failed", "rate_limit_exceeded")]


def test_what_a_worker_can_take_at_once_is_never_turned_away(small: CheckedScheduler) -> None:
    fill(small, 8)
    small.handle(join(make_spec("v", models=("mistral-7b",))), 0.0)

    commands = small.handle(submit(make_task("m", tenant="tenant-0", model="mistral-7b")), 0.0)

    assert assigned(commands) == [("m", "v")]


def test_who_comes_back_from_a_failed_attempt_is_let_in_always(small: CheckedScheduler) -> None:
    fill(small, 8)
    assert assigned(small.handle(AttemptFailed("running", 1, "w", "backend_error"), 1.0)) == [("w0", "w")]
    small.handle(submit(make_task("w8", tenant="erin")), 1.0)

    assert isinstance(small.handle(AttemptFenced("running", 1, 0), 1.0)[0], AnnounceWait)
    assert small.waiting == 9


@pytest.mark.parametrize("leave", ["served", "cancelled"])
def test_a_place_that_comes_free_can_be_had(small: CheckedScheduler, leave: str) -> None:
    fill(small, 8)
    small.handle(AttemptFinished("running", 1, "w") if leave == "served" else TaskCancelled("w3"), 1.0)

    assert isinstance(small.handle(submit(make_task("late", tenant="erin")), 1.0)[0], AnnounceWait)


class Line:
    """A worker with slots whose tasks take a second each, in step or one after the other."""

    def __init__(self, scheduler: CheckedScheduler, slots: int, *, in_step: bool) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.due: list[tuple[float, str]] = []
        scheduler.handle(join(make_spec("w", capacity=slots)), 0.0)
        for n in range(slots):
            start = 0.0 if in_step else n / slots
            scheduler.handle(submit(make_task(f"first{n}", tenant="dave")), 0.0)
            self.due.append((start + 1.0, f"first{n}"))

    def run_until(self, end: float) -> None:
        """Let all end that end by then, each followed by the next in line."""
        while self.due and min(self.due)[0] <= end:
            self.now, name = min(self.due)
            self.due.remove((self.now, name))
            for following, _ in assigned(self.scheduler.handle(AttemptFinished(name, 1, "w", 90), self.now)):
                self.due.append((self.now + 1.0, following))
        self.now = end


@pytest.mark.parametrize("in_step", [True, False])
@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("at_s", [3.2, 3.9])
def test_who_waits_out_its_retry_after_finds_room(
    make_scheduler: MakeScheduler, slots: int, in_step: bool, at_s: float
) -> None:
    scheduler = make_scheduler(max_waiting=60, max_waiting_share=1.0, worker_stale_s=1e6, worker_silent_s=1e6)
    line = Line(scheduler, slots, in_step=in_step)
    for n in range(60):
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)
    line.run_until(at_s)
    for n in range(scheduler.waiting, 60):
        scheduler.handle(submit(make_task(f"more{n}")), at_s)

    [refusal] = scheduler.handle(submit(make_task("late")), at_s)
    assert isinstance(refusal, FailTask) and refusal.retry_after_s is not None
    assert 1.0 <= refusal.retry_after_s <= 3.0
    line.run_until(at_s + refusal.retry_after_s)

    assert isinstance(scheduler.handle(submit(make_task("late")), line.now)[0], AnnounceWait)


def test_a_tenant_that_waits_out_its_retry_after_finds_room_among_others(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(max_waiting=100, max_waiting_share=0.2, worker_stale_s=1e6, worker_silent_s=1e6)
    line = Line(scheduler, 1, in_step=True)
    for n in range(80):
        scheduler.handle(submit(make_task(f"t{n}", tenant=f"tenant-{n % 4}")), 0.0)
    line.run_until(4.5)
    while not codes(commands := scheduler.handle(submit(make_task(f"x{scheduler.waiting}", tenant="tenant-0")), 4.5)):
        pass

    [refusal] = commands
    assert isinstance(refusal, FailTask) and refusal.retry_after_s is not None
    line.run_until(4.5 + refusal.retry_after_s)

    commands = scheduler.handle(submit(make_task("late", tenant="tenant-0")), line.now)
    assert isinstance(commands[0], AnnounceWait)


def test_a_stream_hears_its_place_in_line(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("running")), 0.0)

    def position(name: str, tenant: str, tier: Tier = Tier.DEFAULT) -> int:
        [wait] = scheduler.handle(submit(make_task(name, tenant=tenant, tier=tier)), 0.0)
        assert isinstance(wait, AnnounceWait)
        return wait.position

    assert [position(f"a{n}", "alice") for n in range(3)] == [1, 2, 3]
    assert position("b0", "bob") == 2
    assert position("urgent", "charlie", Tier.PRIORITY) == 1
    assert position("c0", "charlie") == 4
