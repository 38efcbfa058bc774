"""Aged tasks of lower tiers: one dispatch in ten, and no more."""

from __future__ import annotations

import pytest

from cluster.domain import Tier
from cluster.scheduler.events import AttemptFinished
from tests.unit.cluster.scheduler.builders import (
    CheckedScheduler,
    assigned,
    beat,
    join,
    make_spec,
    make_task,
    submit,
)
from tests.unit.cluster.scheduler.conftest import MakeScheduler


def serve(scheduler: CheckedScheduler, running: str, turns: int, now: float) -> list[str]:
    """Let tasks end one after the other on worker w; return who follows whom."""
    order = []
    scheduler.handle(beat("w"), now)
    for _ in range(turns):
        [(running, _)] = assigned(scheduler.handle(AttemptFinished(running, 1, "w"), now))
        order.append(running)
    return order


def overload(scheduler: CheckedScheduler, *, low: Tier = Tier.FLEX) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tier=Tier.PRIORITY)), 0.0)
    for n in range(40):
        scheduler.handle(submit(make_task(f"high{n}", tier=Tier.PRIORITY)), 0.0)
    for n in range(5):
        scheduler.handle(submit(make_task(f"low{n}", tier=low)), 0.0)


def test_nobody_is_aged_before_ten_seconds(scheduler: CheckedScheduler) -> None:
    overload(scheduler)

    assert serve(scheduler, "first", 30, now=10.0) == [f"high{n}" for n in range(30)]


def test_one_dispatch_in_ten_goes_to_the_oldest_that_has_waited_longer(scheduler: CheckedScheduler) -> None:
    overload(scheduler)

    order = serve(scheduler, "first", 31, now=10.1)

    assert [place for place, name in enumerate(order) if name.startswith("low")] == [0, 10, 20, 30]
    assert [name for name in order if name.startswith("low")] == ["low0", "low1", "low2", "low3"]


def test_the_oldest_counts_over_all_lower_tiers(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tier=Tier.PRIORITY)), 0.0)
    for n in range(40):
        scheduler.handle(submit(make_task(f"high{n}", tier=Tier.PRIORITY)), 0.0)
    scheduler.handle(submit(make_task("batch", tier=Tier.BATCH)), 0.0)
    scheduler.handle(submit(make_task("flex", tier=Tier.FLEX)), 0.0)

    order = serve(scheduler, "first", 11, now=11.0)

    assert (order[0], order[10]) == ("batch", "flex")


def test_the_lowest_tier_waits_for_those_before_it_at_a_tenth_of_the_rate_at_most(scheduler: CheckedScheduler) -> None:
    overload(scheduler, low=Tier.BATCH)

    order = serve(scheduler, "first", 44, now=12.0)

    # Four are before it among the aged: with itself five, of which one goes in each ten.
    assert order.index("low4") <= 5 * 10


def test_what_goes_for_age_does_not_count_as_a_turn_of_the_higher_tier(scheduler: CheckedScheduler) -> None:
    overload(scheduler)

    order = serve(scheduler, "first", 20, now=11.0)

    assert [name for name in order if name.startswith("high")] == [f"high{n}" for n in range(18)]


@pytest.mark.parametrize(("every", "expected"), [(2, 10), (5, 4), (1_000, 1)])
def test_how_often_is_a_setting(make_scheduler: MakeScheduler, every: int, expected: int) -> None:
    scheduler = make_scheduler(aged_every=every)
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tier=Tier.PRIORITY)), 0.0)
    for n in range(40):
        scheduler.handle(submit(make_task(f"high{n}", tier=Tier.PRIORITY)), 0.0)
        scheduler.handle(submit(make_task(f"low{n}", tier=Tier.FLEX)), 0.0)

    order = serve(scheduler, "first", 20, now=11.0)

    assert sum(name.startswith("low") for name in order) == expected


def test_a_queue_that_was_empty_for_a_moment_does_not_make_the_next_ten_start_anew(
    make_scheduler: MakeScheduler,
) -> None:
    scheduler = make_scheduler(aged_after_s=1.0)
    scheduler.handle(join(make_spec("w")), 0.0)
    scheduler.handle(submit(make_task("first", tier=Tier.PRIORITY)), 0.0)

    def contest(number: int, running: str, at_s: float) -> str:
        scheduler.handle(submit(make_task(f"low{number}", tier=Tier.FLEX)), at_s)
        scheduler.handle(submit(make_task(f"high{number}", tier=Tier.PRIORITY)), at_s)
        order = serve(scheduler, running, 2, at_s + 2.0)
        assert scheduler.waiting == 0
        return order[0]

    assert contest(0, "first", 0.0) == "low0"
    assert contest(1, "high0", 3.0) == "high1"


def test_models_that_share_a_worker_do_not_starve_one_another(scheduler: CheckedScheduler) -> None:
    scheduler.handle(join(make_spec("w", models=("x", "y"))), 0.0)
    scheduler.handle(submit(make_task("first", model="x", tier=Tier.PRIORITY)), 0.0)
    for n in range(40):
        scheduler.handle(submit(make_task(f"x{n}", model="x", tier=Tier.PRIORITY)), 0.0)
        scheduler.handle(submit(make_task(f"y{n}", model="y", tier=Tier.BATCH)), 0.0)

    assert not [name for name in serve(scheduler, "first", 15, now=10.0) if name.startswith("y")]
    order = serve(scheduler, "x14", 20, now=10.1)

    assert sum(name.startswith("y") for name in order) == 2
