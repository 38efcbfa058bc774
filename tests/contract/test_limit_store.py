"""What any store of limits must do; a store that nodes share joins the list of `stores`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from accounts.limiter import LimitStore, MemoryLimitStore, Refusal, Reservation, Spent, find_month
from accounts.limits import Limit, Limits

WALL_S = datetime(2026, 6, 30, 23, 59, 30, tzinfo=UTC).timestamp()


class Clock:
    """Both clocks of a store, in the test's hands."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s

    def wall(self) -> float:
        return WALL_S + self.passed_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory"])
def store(request: Any, clock: Clock) -> LimitStore:
    stores: dict[str, Callable[[], LimitStore]] = {
        "memory": lambda: MemoryLimitStore(clock=clock.monotonic, wall_clock=clock.wall),
    }
    return stores[request.param]()


async def test_keys_are_counted_each_for_itself(store: LimitStore) -> None:
    limits = Limits(requests_per_minute=1)

    assert isinstance(await store.reserve(1, limits, 1), Reservation)
    assert isinstance(await store.reserve(2, limits, 1), Reservation)

    assert isinstance(await store.reserve(1, limits, 1), Refusal)
    assert isinstance(await store.reserve(2, limits, 1), Refusal)


@pytest.mark.parametrize("limit", ["requests_per_minute", "concurrent_requests"])
async def test_of_two_hundred_at_once_exactly_the_limit_is_admitted(store: LimitStore, limit: str) -> None:
    limits = Limits(**{limit: 60})

    answers = await asyncio.gather(*(store.reserve(1, limits, 10) for _ in range(200)))

    assert sum(isinstance(answer, Reservation) for answer in answers) == 60


async def test_tokens_of_two_hundred_at_once_stay_within_the_limit(store: LimitStore) -> None:
    limits = Limits(tokens_per_minute=1000)

    answers = await asyncio.gather(*(store.reserve(1, limits, 7 + n % 5) for n in range(200)))

    held = sum(7 + n % 5 for n, answer in enumerate(answers) if isinstance(answer, Reservation))
    assert 1000 - 12 < held <= 1000


async def test_what_a_request_did_not_use_is_there_for_the_next(store: LimitStore, clock: Clock) -> None:
    limits = Limits(tokens_per_minute=100, concurrent_requests=1, monthly_tokens=1000)
    first = await store.reserve(1, limits, 100)
    assert isinstance(first, Reservation)

    first.settle(40)

    assert isinstance(await store.reserve(1, limits, 60), Reservation)
    refusal = await store.reserve(1, limits, 1)
    assert isinstance(refusal, Refusal)
    assert (refusal.limit, refusal.standing.remaining_tokens) == (Limit.TOKENS, 0)


async def test_a_month_ends_by_the_wall_clock_in_utc(store: LimitStore, clock: Clock) -> None:
    limits = Limits(monthly_tokens=100)
    june = await store.reserve(1, limits, 100)
    assert isinstance(june, Reservation)
    june.settle(100)
    clock.passed_s = 29.9
    assert isinstance(await store.reserve(1, limits, 1), Refusal)

    clock.passed_s = 30.0

    assert isinstance(await store.reserve(1, limits, 100), Reservation)


async def test_a_restart_is_no_way_around_a_limit(clock: Clock) -> None:
    store = MemoryLimitStore(clock=clock.monotonic, wall_clock=clock.wall)
    store.restore(
        month_tokens=[(1, 900)],
        spent=[Spent(1, WALL_S - 20, 30), Spent(1, WALL_S - 50, 20), Spent(1, WALL_S - 61, 500), Spent(2, WALL_S, 9)],
    )

    by_requests = await store.reserve(1, Limits(requests_per_minute=2), 1)
    by_tokens = await store.reserve(1, Limits(tokens_per_minute=100), 60)
    by_budget = await store.reserve(1, Limits(monthly_tokens=1000), 101)

    assert isinstance(by_requests, Refusal) and by_requests.retry_after_s == pytest.approx(10)
    assert isinstance(by_tokens, Refusal) and (by_tokens.used, by_tokens.retry_after_s) == (50, pytest.approx(10))
    assert isinstance(by_budget, Refusal) and by_budget.used == 900


@pytest.mark.parametrize(
    ("at", "month", "ends"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), 2026 * 12 + 1, datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), 2026 * 12 + 12, datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime(2028, 2, 29, 12, tzinfo=UTC), 2028 * 12 + 2, datetime(2028, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_month_is_found_with_its_end(at: datetime, month: int, ends: datetime) -> None:
    assert find_month(at.timestamp()) == (month, ends.timestamp())
