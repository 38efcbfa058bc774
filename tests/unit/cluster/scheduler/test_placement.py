"""Where a task goes: load, room, exclusion."""

from __future__ import annotations

from collections import Counter

from cluster.domain import Choice, GpuReading, Outcome, WaitReason
from cluster.scheduler.commands import FailTask, FenceAttempt
from cluster.scheduler.events import (
    AttemptFailed,
    AttemptFenced,
    AttemptFinished,
    AttemptReleased,
    HeartbeatReceived,
    TaskCancelled,
    Tick,
    WorkerDraining,
    WorkerLost,
)
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    codes,
    join,
    make_spec,
    make_task,
    started,
    submit,
    waits,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler


def test_the_worker_with_the_smallest_share_of_its_slots_in_use_is_chosen(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("small", capacity=2)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(join(make_spec("large", capacity=8)), 0.0)

    placed = [assigned(scheduler.handle(submit(make_task(f"n{n}")), 0.0))[0][1] for n in range(4)]

    assert placed == ["large"] * 4  # 1/2 against 0/8, 1/8, 2/8 and 3/8


def test_the_worker_with_the_smallest_share_of_its_kv_cache_in_use_is_chosen(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("tight", capacity=100, kv_tokens=1_000)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(join(make_spec("roomy", capacity=100, kv_tokens=10_000)), 0.0)

    placed = [assigned(scheduler.handle(submit(make_task(f"n{n}")), 0.0))[0][1] for n in range(10)]

    # 100/1000 against 0/10000 … 900/10000: the tenth finds both at or below a tenth in use.
    assert placed == ["roomy"] * 10


def test_ties_are_broken_by_luck_and_luck_by_the_seed(make_scheduler: MakeScheduler) -> None:
    def first_choice(seed: int) -> str:
        scheduler = make_scheduler(seed=seed)
        for name in ("a", "b", "c"):
            scheduler.handle(join(make_spec(name)), 0.0)
        [(_, worker)] = assigned(scheduler.handle(submit(make_task("t")), 0.0))
        return worker

    chosen = Counter(first_choice(seed) for seed in range(60))

    assert set(chosen) == {"a", "b", "c"}
    assert first_choice(7) == first_choice(7)


def test_workers_with_other_models_besides_are_alternatives_too(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("one", models=("x",))), 0.0)
    scheduler.handle(join(make_spec("both", models=("x", "y"))), 0.0)

    placed = {assigned(scheduler.handle(submit(make_task(f"t{n}", model="x")), 0.0))[0][1] for n in range(2)}

    assert placed == {"one", "both"}


def test_a_task_waits_for_kv_room_beside_free_slots(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=8, kv_tokens=250)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    scheduler.handle(submit(make_task("t2")), 0.0)
    waiting = make_task("t3")

    assert scheduler.handle(submit(waiting), 0.0) == [waits(waiting, WaitReason.NO_KV_ROOM)]
    assert scheduler.handle(AttemptFinished("t1", 1, "w"), 1.0) == started(waiting, "w", queued_s=1.0)


def test_kv_room_that_one_end_makes_may_serve_several(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=8, kv_tokens=300)), 0.0)
    scheduler.handle(submit(make_task("big", max_tokens=290)), 0.0)
    for name in ("a", "b", "c", "d"):
        scheduler.handle(submit(make_task(name)), 0.0)

    commands = scheduler.handle(AttemptFinished("big", 1, "w"), 1.0)

    assert assigned(commands) == [("a", "w"), ("b", "w"), ("c", "w")]


def test_who_stood_behind_a_head_that_fitted_nowhere_goes_with_it_when_it_goes(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("large", kv_tokens=1_000)), 0.0)
    scheduler.handle(submit(make_task("running", max_tokens=490)), 0.0)
    scheduler.handle(join(make_spec("small", kv_tokens=100)), 0.0)
    scheduler.handle(submit(make_task("big head", max_tokens=490)), 0.0)
    behind = make_task("behind")
    assert scheduler.handle(submit(behind), 0.0) == [waits(behind, WaitReason.BEHIND_OTHERS, 2)]

    commands = scheduler.handle(AttemptFinished("running", 1, "large"), 1.0)

    assert assigned(commands) == [("big head", "large"), ("behind", "small")]


def test_who_stood_behind_a_head_that_fitted_nowhere_goes_when_it_is_cancelled(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("large", kv_tokens=1_000)), 0.0)
    scheduler.handle(submit(make_task("running", max_tokens=490)), 0.0)
    scheduler.handle(join(make_spec("small", kv_tokens=100)), 0.0)
    scheduler.handle(submit(make_task("big head", max_tokens=490)), 0.0)
    scheduler.handle(submit(make_task("behind")), 0.0)

    assert assigned(scheduler.handle(TaskCancelled("big head"), 1.0)) == [("behind", "small")]


def test_a_worker_that_does_not_account_kv_is_limited_by_its_slots_alone(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=3, kv_tokens=0)), 0.0)

    placed = [assigned(scheduler.handle(submit(make_task(f"t{n}", max_tokens=8_000)), 0.0)) for n in range(4)]

    assert placed == [[("t0", "w")], [("t1", "w")], [("t2", "w")], []]


def test_a_cancelled_attempt_holds_its_kv_room_until_it_is_released(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", capacity=8, kv_tokens=100)), 0.0)
    scheduler.handle(submit(make_task("t1")), 0.0)
    waiting = make_task("t2")
    scheduler.handle(submit(waiting), 0.0)

    assert assigned(scheduler.handle(TaskCancelled("t1"), 1.0)) == []
    assert scheduler.handle(AttemptReleased("t1", 1, "w"), 1.5) == started(waiting, "w", queued_s=1.5)


def test_a_task_too_large_for_every_worker_is_refused_with_the_arithmetic(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", kv_tokens=500)), 0.0)
    scheduler.handle(join(make_spec("b", kv_tokens=900, context_tokens=700)), 0.0)

    refused = scheduler.handle(submit(make_task("t1", prompt_tokens=601, max_tokens=100)), 0.0)

    assert refused == [
        FailTask(
            node="node-1",
            task_id="t1",
            outcome=Outcome.FAILED,
            code="no_worker_available",
            message="The request needs room for 701 tokens (601 in the prompt and up to 100 to generate); "
            "the largest worker that serves llama-3-8b has room for 700.",
            retry_after_s=60.0,
        )
    ]
    assert scheduler.tasks == {}
    exact = make_task("t2", prompt_tokens=600, max_tokens=100)
    assert scheduler.handle(submit(exact), 0.0) == started(exact, "b")


def test_the_largest_worker_does_not_count_once_it_drains_or_is_gone(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", kv_tokens=500)), 0.0)
    scheduler.handle(join(make_spec("b", kv_tokens=900)), 0.0)
    scheduler.handle(join(make_spec("c", kv_tokens=1_000)), 0.0)

    scheduler.handle(WorkerLost("c", "link of c", "closed"), 1.0)
    assert codes(scheduler.handle(submit(make_task("t1", max_tokens=950)), 1.0)) == [
        ("t1", "failed", "no_worker_available")
    ]
    scheduler.handle(WorkerDraining("b", "link of b"), 2.0)
    [refusal] = scheduler.handle(submit(make_task("t2", max_tokens=850)), 2.0)
    assert isinstance(refusal, FailTask) and "room for 500" in refusal.message


def test_a_task_does_not_go_back_to_the_worker_on_which_it_failed(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a", capacity=8)), 0.0)
    task = make_task("t1")
    scheduler.handle(submit(task), 0.0)
    scheduler.handle(join(make_spec("b", capacity=1)), 0.0)
    scheduler.handle(submit(make_task("fills b")), 0.0)

    assert scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0) == [FenceAttempt("node-1", "t1", 1)]
    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == [waits(task, WaitReason.NO_KV_ROOM)]
    assert scheduler.handle(AttemptFinished("fills b", 1, "b"), 2.0) == started(task, "b", attempt=2, queued_s=1.0)


def test_a_task_may_go_back_where_it_failed_if_no_other_worker_has_its_model(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("a")), 0.0)
    scheduler.handle(join(make_spec("other model", models=("mistral-7b",))), 0.0)
    task = make_task("t1")
    scheduler.handle(submit(task), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(task, "a", attempt=2)


def test_a_task_may_go_back_where_it_failed_once_the_last_other_worker_leaves(scheduler: CheckedScheduler) -> None:
    task = make_task("t1")
    for sign in (WorkerLost("b", "link of b", "closed"), WorkerDraining("b", "link of b")):
        scheduler.handle(join(make_spec("a")), 0.0)
        scheduler.handle(submit(task), 0.0)
        scheduler.handle(join(make_spec("b")), 0.0)
        scheduler.handle(submit(make_task("fills b")), 0.0)
        scheduler.handle(AttemptFailed("t1", 1, "a", "backend_error"), 1.0)
        assert assigned(scheduler.handle(AttemptFenced("t1", 1, 0), 1.0)) == []

        assert ("t1", "a") in assigned(scheduler.handle(sign, 2.0))

        scheduler.handle(TaskCancelled("t1"), 2.0)
        scheduler.handle(TaskCancelled("fills b"), 2.0)
        scheduler.handle(AttemptReleased("t1", 2, "a"), 2.0)


def test_a_task_may_go_back_where_it_failed_if_all_others_are_too_small_for_it(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("large", kv_tokens=1_000)), 0.0)
    task = make_task("t1", max_tokens=490)
    scheduler.handle(submit(task), 0.0)
    scheduler.handle(join(make_spec("small", kv_tokens=100)), 0.0)
    scheduler.handle(AttemptFailed("t1", 1, "large", "backend_error"), 1.0)

    assert scheduler.handle(AttemptFenced("t1", 1, 0), 1.0) == started(task, "large", attempt=2)


def test_a_task_that_may_not_use_real_hardware_waits_beside_it(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("real", capacity=4)), 0.0)
    scheduler.handle(join(make_spec("simulated", simulated=True)), 0.0)
    scheduler.handle(submit(make_task("t1", simulated_only=True)), 0.0)
    waiting = make_task("t2", simulated_only=True)

    assert scheduler.handle(submit(waiting), 0.0) == [waits(waiting, WaitReason.NO_KV_ROOM)]
    assert assigned(scheduler.handle(submit(make_task("t3", tenant="bob")), 0.0)) == [("t3", "real")]
    assert assigned(scheduler.handle(AttemptFinished("t3", 1, "real"), 1.0)) == []
    assert assigned(scheduler.handle(AttemptFinished("t1", 1, "simulated"), 1.0)) == [("t2", "simulated")]


def test_a_model_on_real_hardware_only_is_not_there_for_who_may_not_use_it(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("real")), 0.0)
    scheduler.handle(submit(make_task("t1", simulated_only=True)), 1.0)

    assert codes(scheduler.handle(submit(make_task("t2", simulated_only=True)), 10.0)) == [
        ("t2", "failed", "no_worker_available")
    ]
    assert codes(scheduler.handle(Tick(), 10.0)) == [("t1", "expired", "no_worker_available")]


def speak(scheduler: CheckedScheduler, worker_id: str, tokens_per_s: float) -> None:
    scheduler.handle(HeartbeatReceived(worker_id, f"link of {worker_id}", GpuReading(), tokens_per_s), 0.0)


def test_of_equally_loaded_workers_the_fastest_is_chosen(scheduler: CheckedScheduler) -> None:
    for name, speed in (("slow", 20.0), ("fast", 90.0), ("middling", 45.0)):
        scheduler.handle(join(make_spec(name)), 0.0)
        scheduler.handle(submit(make_task(f"warms {name}")), 0.0)
        speak(scheduler, name, speed)
    for name in ("slow", "fast", "middling"):
        scheduler.handle(AttemptFinished(f"warms {name}", 1, name), 0.0)

    placed = [assigned(scheduler.handle(submit(make_task(f"t{n}")), 0.0))[0][1] for n in range(3)]

    assert placed == ["fast", "middling", "slow"]


def test_a_little_faster_is_no_reason(make_scheduler: MakeScheduler) -> None:
    def first_choice(seed: int) -> str:
        scheduler = make_scheduler(seed=seed)
        for name, speed in (("a", 100.0), ("b", 103.0)):
            scheduler.handle(join(make_spec(name)), 0.0)
            scheduler.handle(submit(make_task(f"warms {name}")), 0.0)
            speak(scheduler, name, speed)
        for name in ("a", "b"):
            scheduler.handle(AttemptFinished(f"warms {name}", 1, name), 0.0)
        [(_, worker)] = assigned(scheduler.handle(submit(make_task("t")), 0.0))
        return worker

    assert {first_choice(seed) for seed in range(30)} == {"a", "b"}


def test_the_choice_says_among_how_many_how_free_and_how_fast(scheduler: CheckedScheduler) -> None:
    for name, speed in (("slow", 50.0), ("fast", 200.0)):
        scheduler.handle(join(make_spec(name, capacity=2)), 0.0)
        scheduler.handle(submit(make_task(f"on {name}")), 0.0)
        speak(scheduler, name, speed)
    task = make_task("t1")

    assert scheduler.handle(submit(task), 0.0) == started(task, "fast", choice=Choice(2, 0.5, 1.0))
    other = make_task("t2")
    assert scheduler.handle(submit(other), 0.0) == started(other, "slow", choice=Choice(1, 0.5, 0.25))
