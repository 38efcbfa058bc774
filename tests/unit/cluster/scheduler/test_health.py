"""Workers that are not fit for work: suspects, probes, quarantine, and our own pauses."""

from __future__ import annotations

import pytest

from cluster.domain import WorkerStatus
from cluster.scheduler.commands import CancelAttempt, EvictWorker, FenceAttempt, ProbeWorker
from cluster.scheduler.events import (
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    AttemptStalled,
    LoopPaused,
    ProbeAnswered,
    TaskCancelled,
    Tick,
    WorkerLost,
)
from tests.unit.cluster.scheduler.builders import (
    MODEL,
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
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler


def status(scheduler: CheckedScheduler, now: float, worker_id: str = "a") -> WorkerStatus:
    snapshot = scheduler.snapshot(now, version=1, wall_s=0.0)
    return next(worker.status for worker in snapshot.workers if worker.id == worker_id)


def probe(number: int, worker_id: str = "a") -> ProbeWorker:
    return ProbeWorker("node-2", worker_id, f"link of {worker_id}", number, MODEL)


def answer(number: int, *, ok: bool = True) -> ProbeAnswered:
    return ProbeAnswered("a", "link of a", number, ok)


def test_an_attempt_without_progress_is_fenced_and_its_worker_told(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(task), 0.0)
    scheduler.handle(join(make_spec("b")), 0.0)

    assert scheduler.handle(AttemptStalled("t1", 1, "first_token"), 1.0) == [
        FenceAttempt("node-1", "t1", 1, "worker_stalled"),
        cancelled(task, "a"),
    ]
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(task, "b", attempt=2)
    assert scheduler.placement.workers["a"].held == 1
    assert scheduler.handle(AttemptReleased("t1", 1, "a"), 1.1) == []
    assert scheduler.placement.workers["a"].held == 0 and scheduler.dropped == {}


def test_the_answer_to_a_stall_may_be_the_end_that_it_crossed(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(AttemptStalled("t1", 1, "first_token"), 1.0)

    assert scheduler.handle(AttemptFinished("t1", 1, "a", 90), 1.0) == []
    assert list(scheduler.tasks) == ["t1"] and scheduler.placement.workers["a"].held == 0


def test_attempts_that_stall_on_every_worker_are_bounded_too(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    for attempt in (1, 2, 3):
        scheduler.handle(AttemptStalled("t1", attempt, "first_token"), 1.0)
        scheduler.handle(AttemptReleased("t1", attempt, "a"), 1.0)
        commands = scheduler.handle(AttemptFenced("t1", attempt, 0), 1.0)

    assert codes(commands) == [("t1", "failed", "worker_stalled")]


def stall(scheduler: CheckedScheduler, name: str, now: float) -> None:
    """Let a task stall on worker a, which at least acknowledges that, and end it."""
    assert assigned(scheduler.handle(submit(make_task(name)), now)) == [(name, "a")]
    scheduler.handle(AttemptStalled(name, 1, "first_token"), now)
    scheduler.handle(TaskCancelled(name), now)
    scheduler.handle(AttemptReleased(name, 1, "a"), now)


def make_suspect(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    for n in range(3):
        stall(scheduler, f"s{n}", 0.0)


def test_three_stalls_make_a_worker_suspect(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    stall(scheduler, "s0", 0.0)
    stall(scheduler, "s1", 0.0)
    assert status(scheduler, 0.0) is WorkerStatus.ONLINE
    stall(scheduler, "s2", 0.0)

    assert status(scheduler, 0.0) is WorkerStatus.SUSPECT
    assert assigned(scheduler.handle(submit(make_task("t1")), 0.0)) == []
    assert assigned(scheduler.handle(beat("a"), 1.0)) == []


def test_an_attempt_that_ends_well_clears_the_count(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    for n in range(4):
        stall(scheduler, f"s{n}", 0.0)
        scheduler.handle(submit(make_task(f"t{n}")), 0.0)
        scheduler.handle(AttemptFinished(f"t{n}", 1, "a"), 0.0)

    assert status(scheduler, 0.0) is WorkerStatus.ONLINE


def test_what_runs_on_a_suspect_goes_on(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=4)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    for n in range(3):
        stall(scheduler, f"s{n}", 0.0)

    assert scheduler.handle(AttemptFinished("t1", 1, "a"), 1.0) == [] and scheduler.tasks == {}


def test_a_suspect_is_probed_and_works_again_once_it_answers(scheduler: CheckedScheduler) -> None:
    make_suspect(scheduler)
    waiting = make_task("t1")
    scheduler.handle(submit(waiting), 0.0)

    assert scheduler.next_deadline() == 5.0
    assert scheduler.handle(Tick(), 5.0) == [probe(1)]
    assert scheduler.handle(answer(1), 6.0) == started(waiting, "a", queued_s=6.0)
    assert status(scheduler, 6.0) is WorkerStatus.BUSY


@pytest.mark.parametrize(
    ("says", "probed_at_s"), [("no", [5, 15, 35, 75, 135, 195]), ("nothing", [5, 25, 55, 105, 175, 245])]
)
def test_a_suspect_that_fails_its_probe_is_probed_again_after_twice_as_long(
    scheduler: CheckedScheduler, says: str, probed_at_s: list[int]
) -> None:
    make_suspect(scheduler)
    probes, given_up = [], []
    for second in range(1, 250):
        scheduler.handle(beat("a"), float(second))
        for command in scheduler.handle(Tick(), float(second)):
            if isinstance(command, CancelAttempt):
                given_up.append(command.task_id)
                continue
            assert command == probe(len(probes) + 1)
            probes.append(second)
            if says == "no":
                assert scheduler.handle(answer(len(probes), ok=False), float(second)) == []

    assert probes == probed_at_s
    # One that was not answered may still be at it.
    assert given_up == ([] if says == "no" else [f"probe_{n}" for n in range(1, len(given_up) + 1)])
    assert len(given_up) == (0 if says == "no" else len([second for second in probes if second + 10 < 250]))


def test_a_late_or_foreign_answer_to_a_probe_changes_nothing(scheduler: CheckedScheduler) -> None:
    make_suspect(scheduler)
    assert scheduler.handle(answer(1), 1.0) == []
    scheduler.handle(Tick(), 5.0)
    scheduler.handle(answer(7), 6.0)
    scheduler.handle(ProbeAnswered("a", "another link", 1, True), 6.0)
    scheduler.handle(beat("a"), 14.0)
    scheduler.handle(Tick(), 15.0)
    scheduler.handle(answer(1), 15.1)

    assert scheduler.dropped == {"probe_answered": 4}
    assert status(scheduler, 15.1) is WorkerStatus.SUSPECT


def test_a_suspect_with_no_free_slot_is_probed_when_it_has_one(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(worker_stale_s=1e6, worker_silent_s=1e6)
    scheduler.handle(join(make_spec("a", capacity=2)), 0.0)
    for name in ("t1", "t2"):
        scheduler.handle(submit(make_task(name)), 0.0)
    scheduler.handle(TaskCancelled("t1"), 0.0)
    scheduler.handle(Tick(), 2.0)
    assert status(scheduler, 2.0) is WorkerStatus.SUSPECT

    assert scheduler.handle(Tick(), 7.0) == [probe(1)]


def test_a_suspect_that_reconnects_starts_afresh(scheduler: CheckedScheduler) -> None:
    make_suspect(scheduler)
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 1.0)
    scheduler.handle(join(make_spec("a")), 2.0)

    assert assigned(scheduler.handle(submit(make_task("t1")), 2.0)) == [("t1", "a")]


def test_a_suspect_alone_does_not_keep_its_model_alive(scheduler: CheckedScheduler) -> None:
    make_suspect(scheduler)
    scheduler.handle(submit(make_task("t1")), 0.0)

    assert codes(scheduler.handle(Tick(), 10.0)) == [("t1", "expired", "no_worker_available")]


def flap(scheduler: CheckedScheduler, *, losses: int, at_s: float, lineage: str = "flappy") -> float:
    """Let a worker come and be lost, a second apart, each time as a new process; return when it is over."""
    for n in range(losses):
        scheduler.handle(join(make_spec(f"p{at_s}-{n}", lineage=lineage)), at_s)
        scheduler.handle(WorkerLost(f"p{at_s}-{n}", f"link of p{at_s}-{n}", "closed"), at_s + 1)
        at_s += 2
    return at_s


def test_a_worker_lost_three_times_in_a_minute_is_quarantined_when_it_comes_back(scheduler: CheckedScheduler) -> None:
    now = flap(scheduler, losses=3, at_s=0.0)
    waiting = make_task("t1")
    scheduler.handle(join(make_spec("a", lineage="flappy")), now)

    assert status(scheduler, now) is WorkerStatus.QUARANTINED
    assert assigned(scheduler.handle(submit(waiting), now)) == []
    assert scheduler.handle(Tick(), now + 4.9) == []
    assert scheduler.handle(Tick(), now + 5.0) == started(waiting, "a", queued_s=5.0)


def test_two_losses_or_three_in_more_than_a_minute_are_no_flapping(scheduler: CheckedScheduler) -> None:
    flap(scheduler, losses=2, at_s=0.0)
    scheduler.handle(join(make_spec("a", lineage="flappy")), 10.0)
    assert status(scheduler, 10.0) is WorkerStatus.ONLINE
    scheduler.handle(WorkerLost("a", "link of a", "closed"), 62.0)
    scheduler.handle(join(make_spec("a", lineage="flappy")), 63.0)

    assert status(scheduler, 63.0) is WorkerStatus.ONLINE


def test_each_quarantine_is_twice_as_long_as_the_last(scheduler: CheckedScheduler) -> None:
    now = flap(scheduler, losses=3, at_s=0.0)
    lengths = []
    for _ in range(7):
        scheduler.handle(join(make_spec("a", lineage="flappy")), now)
        lengths.append(scheduler.placement.workers["a"].quarantined_until_s - now)
        scheduler.handle(WorkerLost("a", "link of a", "closed"), now + 1)
        now += 2

    assert lengths == [5, 10, 20, 40, 80, 120, 120]


def test_a_worker_that_holds_for_ten_minutes_is_forgiven(scheduler: CheckedScheduler) -> None:
    now = flap(scheduler, losses=3, at_s=0.0)
    scheduler.handle(Tick(), now + 600.0)
    assert len(scheduler.lineages) == 0

    now = flap(scheduler, losses=2, at_s=now + 601.0)
    scheduler.handle(join(make_spec("a", lineage="flappy")), now)
    assert status(scheduler, now) is WorkerStatus.ONLINE


def test_other_workers_do_not_pay_for_one_that_flaps(scheduler: CheckedScheduler) -> None:
    now = flap(scheduler, losses=5, at_s=0.0)
    scheduler.handle(join(make_spec("a", lineage="another")), now)

    assert status(scheduler, now) is WorkerStatus.ONLINE


def test_a_goodbye_is_no_flap(scheduler: CheckedScheduler) -> None:
    for n in range(5):
        scheduler.handle(join(make_spec("a", lineage="flappy")), float(n))
        scheduler.handle(WorkerLost("a", "link of a", "bye", clean=True), float(n))
    scheduler.handle(join(make_spec("a", lineage="flappy")), 6.0)

    assert status(scheduler, 6.0) is WorkerStatus.ONLINE and len(scheduler.lineages) == 0


def test_nobody_is_judged_by_the_time_in_which_we_did_not_listen(scheduler: CheckedScheduler) -> None:
    waiting = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(join(make_spec("b", models=("mistral-7b",))), 0.0)
    scheduler.handle(submit(make_task("t0", model="mistral-7b")), 0.0)
    scheduler.handle(TaskCancelled("t0"), 1.0)

    assert scheduler.handle(LoopPaused(29.0), 30.0) == []
    assert scheduler.handle(Tick(), 30.0) == []
    assert scheduler.handle(submit(waiting), 30.0) == started(waiting, "a")
    assert scheduler.dropped == {}
    assert scheduler.handle(Tick(), 32.0) == [] and scheduler.dropped == {"cancel_unanswered": 1}
    assert EvictWorker("node-2", "a", "link of a", 4408, "silent") in scheduler.handle(Tick(), 46.0)


def test_a_worker_that_was_stale_only_for_us_is_given_work_again(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a")), 0.0)
    assert assigned(scheduler.handle(submit(task), 8.0)) == []

    assert scheduler.handle(LoopPaused(8.0), 9.0) == started(task, "a", queued_s=1.0)


def test_a_probe_that_we_slept_through_may_still_be_answered(scheduler: CheckedScheduler) -> None:
    make_suspect(scheduler)
    scheduler.handle(Tick(), 5.0)
    scheduler.handle(LoopPaused(20.0), 25.0)
    assert scheduler.handle(Tick(), 25.0) == []

    scheduler.handle(answer(1), 26.0)

    assert status(scheduler, 26.0) is WorkerStatus.ONLINE


def test_a_stalled_attempt_whose_cancel_is_not_answered_makes_its_worker_suspect(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    scheduler.handle(join(make_spec("a", capacity=4)), 0.0)
    scheduler.handle(submit(task), 0.0)
    commands = scheduler.handle(AttemptStalled("t1", 1, "next_token"), 1.0)
    assert [type(command) for command in commands] == [FenceAttempt, CancelAttempt]

    scheduler.handle(Tick(), 3.0)

    assert status(scheduler, 3.0) is WorkerStatus.SUSPECT
