"""Turns among tenants: by tokens, settled at the end, and the first that fits without a search."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.domain import Tier
from cluster.scheduler.events import AttemptFailed, AttemptFinished, AttemptReleased, TaskCancelled
from cluster.scheduler.state import TaskRecord
from cluster.scheduler.turns import Line, Rounds, Row
from tests.unit.cluster.scheduler.builders import CheckedScheduler, assigned, join, make_spec, make_task, submit
from tests.unit.cluster.scheduler.conftest import MakeScheduler


def queue_up(scheduler: CheckedScheduler, tenant: str, number: int, *, max_tokens: int, tier: Tier = Tier.DEFAULT):
    for n in range(number):
        task = make_task(f"{tenant}{n}", tenant=tenant, max_tokens=max_tokens, prompt_tokens=24, tier=tier)
        scheduler.handle(submit(task), 0.0)


def serve(scheduler: CheckedScheduler, running: str, turns: int, *, generated: int | None = None) -> list[str]:
    """Let tasks end one after the other on worker w; return who follows whom."""
    order = []
    for _ in range(turns):
        tokens = scheduler.tasks[running].task.generation.max_tokens if generated is None else generated
        commands = scheduler.handle(AttemptFinished(running, 1, "w", tokens), 1.0)
        [(running, _)] = assigned(commands)
        order.append(running)
    return order


def test_whoever_sends_tasks_four_times_as_large_has_a_quarter_of_the_turns(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 20, max_tokens=1_000)  # 1,024 each: one quantum
    queue_up(scheduler, "bob", 80, max_tokens=232)  # 256 each

    order = serve(scheduler, "first", 50)

    assert (sum(name.startswith("alice") for name in order), sum(name.startswith("bob") for name in order)) == (10, 40)
    assert order[:6] == ["alice0", "bob0", "bob1", "bob2", "bob3", "alice1"]


def test_a_task_larger_than_a_quantum_is_paid_for_by_sitting_out_rounds(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    for n in range(2):
        big = make_task(f"big{n}", tenant="alice", prompt_tokens=3_072, max_tokens=1_024)  # four quanta
        scheduler.handle(submit(big), 0.0)
    queue_up(scheduler, "bob", 8, max_tokens=1_000)

    assert serve(scheduler, "first", 7) == ["big0", "bob0", "bob1", "bob2", "bob3", "big1", "bob4"]


def test_an_answer_is_charged_with_what_is_expected_until_it_ends_and_then_with_what_it_was(
    scheduler: CheckedScheduler,
) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 8, max_tokens=1_000)  # asks for a thousand tokens each time, and
    queue_up(scheduler, "bob", 8, max_tokens=1_000)  # so does bob

    order = []
    running = "first"
    for _ in range(10):
        commands = scheduler.handle(
            AttemptFinished(running, 1, "w", 232 if running.startswith("alice") else 1_000), 1.0
        )
        [(running, _)] = assigned(commands)
        order.append(running)

    # What alice gets is a quarter of what bob gets, so she has four turns to each of his.
    assert sum(name.startswith("alice") for name in order) == 8


def test_what_is_not_known_to_have_been_generated_stays_charged(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 8, max_tokens=1_000)
    queue_up(scheduler, "bob", 8, max_tokens=1_000)
    assert serve(scheduler, "first", 1) == ["alice0"]

    scheduler.handle(TaskCancelled("alice0"), 1.0)
    assert assigned(scheduler.handle(AttemptReleased("alice0", 1, "w"), 1.0)) == [("bob0", "w")]
    line = scheduler.queues["llama-3-8b"].tiers[Tier.DEFAULT].lines["alice"]
    assert line.used_tokens == 1_024

    scheduler.handle(TaskCancelled("bob0"), 1.0)
    # He has used 124 of this round: it is still his turn.
    assert assigned(scheduler.handle(AttemptReleased("bob0", 1, "w", generated_tokens=100), 1.0)) == [("bob1", "w")]


def test_a_worker_that_boasts_costs_a_tenant_no_more_than_was_asked_for(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 4, max_tokens=1_000)
    queue_up(scheduler, "bob", 4, max_tokens=1_000)

    assert serve(scheduler, "first", 1) == ["alice0"]

    assert serve(scheduler, "alice0", 1, generated=10**9) == ["bob0"]

    assert serve(scheduler, "bob0", 3) == ["alice1", "bob1", "alice2"]


def test_a_task_that_ends_with_an_error_costs_its_tenant_nothing(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 8, max_tokens=1_000)
    queue_up(scheduler, "bob", 8, max_tokens=1_000)
    serve(scheduler, "first", 1)

    scheduler.handle(AttemptFailed("alice0", 1, "w", "bad_request", retryable=False), 1.0)

    assert scheduler.queues["llama-3-8b"].tiers[Tier.DEFAULT].lines["alice"].used_tokens == 0


def test_who_was_away_has_saved_nothing_up(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 40, max_tokens=1_000)
    serve(scheduler, "first", 20)
    queue_up(scheduler, "bob", 10, max_tokens=1_000)

    assert serve(scheduler, "alice19", 6) == ["bob0", "alice20", "bob1", "alice21", "bob2", "alice22"]


def test_a_debt_is_not_forgotten_by_being_away_for_a_moment(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    scheduler.handle(submit(make_task("huge", tenant="alice", prompt_tokens=4_000, max_tokens=96)), 0.0)
    queue_up(scheduler, "bob", 20, max_tokens=1_000)
    assert serve(scheduler, "first", 1) == ["huge"]
    queue_up(scheduler, "alice", 1, max_tokens=1_000)

    assert serve(scheduler, "huge", 5) == ["bob0", "bob1", "bob2", "bob3", "alice0"]


def test_accounts_are_kept_for_debtors_and_for_those_who_wait_only(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    handle = super(CheckedScheduler, scheduler).handle
    handle(submit(make_task("t0", tenant="dave")), 0.0)
    for n in range(50):
        handle(submit(make_task(f"v{n}", tenant="always there", max_tokens=1_000)), 0.0)
    running = "t0"
    for n in range(1, 3_000):
        handle(submit(make_task(f"t{n}", tenant=f"tenant-{n}")), 0.0)
        handle(submit(make_task(f"u{n}", tenant="always there", max_tokens=1_000)), 0.0)
        for _ in range(2):
            tokens = 90 if running.startswith("t") else 1_000
            [(running, _)] = assigned(handle(AttemptFinished(running, 1, "w", tokens), 0.0))

    assert len(scheduler.queues["llama-3-8b"].tiers[Tier.DEFAULT].lines) < 200


needs = st.integers(min_value=1, max_value=30)


@given(st.lists(st.tuples(st.sampled_from(("append", "append", "remove", "update")), needs, needs), max_size=80), needs)
def test_the_first_that_fits_in_a_row_is_the_first_that_fits(steps: list[tuple[str, int, int]], room: int) -> None:
    row, lines, names = Row(), [], count()
    for step, need, pick in steps:
        if step == "append":
            line = Line(f"tenant-{next(names)}")
            line.need = need
            row.append(line)
            lines.append(line)
        elif lines:
            line = lines[pick % len(lines)]
            if step == "remove":
                row.remove(line)
                lines.remove(line)
            else:
                line.need = need
                row.update(line)

    assert list(row) == lines and row.size == len(lines)
    assert not lines or row.first() is lines[0]
    found, start = [], 0
    while (line := row.fitting(room, start)) is not None:
        found.append(line)
        start = line.place + 1
    assert found == [line for line in lines if line.need <= room]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3_000), st.integers(-900, 900)), max_size=60))
def test_no_tenant_gets_ahead_of_another_by_more_than_a_quantum_and_a_task(turns: list[tuple[int, int, int]]) -> None:
    """However large the tasks and however wrong their estimates."""
    rounds = Rounds(1_000)
    lines = [Line(str(n)) for n in range(4)]
    number = count(1)
    for line in lines:
        _put(line, next(number))
        rounds.enter(line)
    for _, cost, correction in turns:
        line = rounds.first()
        assert line is not None
        line.tasks.popitem(last=False)
        _put(line, next(number))
        rounds.serve(line, cost)
        rounds.settle(line, cost, max(0, cost + correction))

        used = [other.used_tokens for other in lines]
        assert max(used) - min(used) <= 1_000 + 3_000 + 900


def _put(line: Line, number: int) -> None:
    line.tasks[str(number)] = TaskRecord(make_task(str(number)), number, 0.0, 0.0, 1)


def test_an_endless_stream_of_newcomers_does_not_push_back_who_was_here_before(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 40, max_tokens=1_000)
    running, order = "first", []
    for n in range(60):
        scheduler.handle(submit(make_task(f"n{n}", tenant=f"new-{n}", max_tokens=1_000)), 1.0)
        tokens = scheduler.tasks[running].task.generation.max_tokens
        [(running, _)] = assigned(scheduler.handle(AttemptFinished(running, 1, "w", tokens), 1.0))
        order.append(running)

    # There is a newcomer for each turn, so whenever alice has one, one more waits; she is one of them.
    turns = [place for place, name in enumerate(order) if name.startswith("alice")]
    assert len(turns) >= 8 and turns[-1] > 45


@pytest.mark.parametrize("slots", [1, 8])
def test_who_asks_for_much_more_than_it_takes_does_not_run_away_with_the_queue(
    make_scheduler: MakeScheduler, slots: int
) -> None:
    scheduler = make_scheduler(max_waiting_share=1.0)
    scheduler.handle(join(make_spec("w", capacity=slots)), 0.0)
    for n in range(slots):
        scheduler.handle(submit(make_task(f"first{n}", tenant="dave")), 0.0)
    queue_up(scheduler, "alice", 300, max_tokens=1_000)  # of which she takes ten
    running, used = [f"first{n}" for n in range(slots)], {"alice": 0, "bob": 0, "first": 0}

    def turn() -> str:
        name = running.pop(0)
        tenant = name.rstrip("0123456789")
        tokens = 10 if tenant == "alice" else 1_000
        used[tenant] += 24 + tokens
        [(following, _)] = assigned(scheduler.handle(AttemptFinished(name, 1, "w", tokens), 1.0))
        running.append(following)
        return following

    for _ in range(100):
        turn()
    queue_up(scheduler, "bob", 20, max_tokens=1_000)
    alone = used["alice"]

    assert "bob0" in [turn() for _ in range(2)]
    while used["bob"] < 5 * 1_024:
        turn()
    assert used["alice"] - alone == pytest.approx(used["bob"], abs=(slots + 1) * 1_024)
