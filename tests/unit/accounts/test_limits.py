"""The limits of a key, by the rules at the top of `accounts.limits`."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from accounts.limits import (
    FINE_ENTRIES,
    GRAIN_S,
    MINUTE_S,
    SLOT_RETRY_S,
    KeyUsage,
    Limit,
    Limits,
    Refusal,
    Reservation,
    SlidingLog,
    decide,
    reserve,
)

JUNE, JULY = 2026 * 12 + 6, 2026 * 12 + 7


class Key:
    """A key with limits, and a clock in the test's hands."""

    def __init__(self, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.usage = KeyUsage()
        self.now = 1000.0
        self.month = JUNE

    def ask(self, tokens: int = 1) -> Reservation | Refusal:
        refusal = decide(self.usage, self.limits, tokens, self.now, self.month)
        return refusal or reserve(self.usage, self.limits, tokens, self.now)

    def admit(self, tokens: int = 1) -> Reservation:
        answer = self.ask(tokens)
        assert isinstance(answer, Reservation), answer
        return answer

    def refuse(self, tokens: int = 1) -> Refusal:
        answer = self.ask(tokens)
        assert isinstance(answer, Refusal)
        return answer


def test_a_key_without_limits_is_never_refused() -> None:
    key = Key()

    for _ in range(1000):
        key.admit(10**9)

    assert len(key.usage.requests) == len(key.usage.tokens) == 0


def test_a_limit_admits_so_many_and_no_more() -> None:
    key = Key(requests_per_minute=3)
    for _ in range(3):
        key.admit()

    refusal = key.refuse()

    assert (refusal.limit, refusal.allowed, refusal.used, refusal.asked) == (Limit.REQUESTS, 3, 3, 1)
    assert refusal.retry_after_s == MINUTE_S


def test_who_waits_as_long_as_told_is_admitted_and_not_a_moment_sooner() -> None:
    key = Key(requests_per_minute=2)
    key.admit()
    key.now += 17.25
    key.admit()
    key.now += 3.5

    wait_s = key.refuse().retry_after_s

    assert wait_s == MINUTE_S - 17.25 - 3.5
    key.now += wait_s - 0.001
    key.refuse()
    key.now += 0.001
    key.admit()


def test_the_start_of_a_minute_gives_nothing_back() -> None:
    key = Key(requests_per_minute=60)
    key.now = 1000.0 + 59.0
    for _ in range(60):
        key.admit()

    key.now = 1000.0 + 61.0

    assert key.refuse().retry_after_s == 58.0


def test_a_refused_request_costs_nothing() -> None:
    key = Key(requests_per_minute=1, tokens_per_minute=100, concurrent_requests=1, monthly_tokens=1000)
    key.admit(10).settle(10)

    for _ in range(50):
        key.refuse(10)

    key.now += MINUTE_S
    key.admit(90)
    assert key.usage.month_tokens == 10


def test_tokens_are_held_at_admission_and_given_back_at_the_end() -> None:
    key = Key(tokens_per_minute=100)
    first = key.admit(80)
    assert key.refuse(30).limit is Limit.TOKENS

    first.settle(25)

    key.admit(75)
    assert key.refuse(1).used == 100


def test_what_is_given_back_shrinks_its_own_entry_only() -> None:
    key = Key(tokens_per_minute=100)
    first = key.admit(60)
    key.now += 30
    key.admit(40)

    key.now += 30  # the first counts no more
    key.admit(60)
    first.settle(0)

    assert key.refuse(1).used == 100


def test_a_request_larger_than_the_limit_can_wait_for_ever() -> None:
    refusal = Key(tokens_per_minute=100).refuse(101)

    assert (refusal.limit, refusal.retry_after_s) == (Limit.TOKENS, None)


def test_concurrent_requests_are_counted_while_they_run() -> None:
    key = Key(concurrent_requests=2)
    first = key.admit()
    key.admit()
    refusal = key.refuse()
    assert (refusal.limit, refusal.used, refusal.retry_after_s) == (Limit.CONCURRENCY, 2, SLOT_RETRY_S)

    first.settle(1)
    first.settle(1)

    key.admit()
    key.refuse()


def test_a_request_that_was_not_served_has_been_none() -> None:
    key = Key(requests_per_minute=1, tokens_per_minute=10, monthly_tokens=10)

    key.admit(10).settle(0, served=False)

    key.admit(10)


def test_a_budget_is_spent_by_what_was_billed() -> None:
    key = Key(monthly_tokens=100)
    key.admit(90).settle(30)

    key.admit(70).settle(70)

    refusal = key.refuse(1)
    assert (refusal.limit, refusal.used, refusal.retry_after_s) == (Limit.BUDGET, 100, None)


def test_a_budget_that_running_requests_hold_may_become_free_again() -> None:
    key = Key(monthly_tokens=100)
    running = key.admit(90)

    assert key.refuse(20).retry_after_s == SLOT_RETRY_S

    running.settle(10)
    key.admit(20)


def test_a_new_month_has_its_whole_budget() -> None:
    key = Key(monthly_tokens=100)
    key.admit(60).settle(60)
    late = key.admit(40)

    key.month = JULY

    key.admit(100)
    late.settle(40)
    assert key.refuse(1).retry_after_s == SLOT_RETRY_S


def test_of_several_limits_the_longest_wait_is_told() -> None:
    key = Key(requests_per_minute=1, concurrent_requests=1, tokens_per_minute=10)
    key.admit(10)
    key.now += 20

    assert key.refuse(5).retry_after_s == 40
    assert key.refuse(11).retry_after_s is None


def test_the_standing_tells_what_is_left_and_when_all_is() -> None:
    key = Key(requests_per_minute=10, tokens_per_minute=1000)
    key.admit(300)
    key.now += 20

    standing = key.admit(100).standing

    assert (standing.remaining_requests, standing.remaining_tokens) == (8, 600)
    assert (standing.reset_requests_s, standing.reset_tokens_s) == (60, 60)


def test_a_limit_that_was_lowered_holds_at_once() -> None:
    key = Key(requests_per_minute=10)
    for _ in range(8):
        key.admit()

    key.limits = Limits(requests_per_minute=4)

    refusal = key.refuse()
    assert (refusal.used, refusal.retry_after_s, refusal.standing.remaining_requests) == (8, 60, 0)


def test_a_log_of_a_very_high_limit_is_kept_by_grains() -> None:
    log = SlidingLog()

    for step in range(100_000):
        log.spend(1, step * MINUTE_S / 100_000)

    assert len(log) <= 2 * FINE_ENTRIES + 1
    log.trim(MINUTE_S - 0.001)
    assert log.total == 100_000, "a grain leaves with its latest part, or more than the limit would fit"
    log.trim(2 * MINUTE_S + GRAIN_S)
    assert (log.total, len(log)) == (0, 0)


Step = tuple[str, Any]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 40)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 7.0, 29.0, 31.0, 59.999, 60.0])),
        st.tuples(st.just("end"), st.tuples(st.integers(0, 50), st.integers(0, 40), st.booleans())),
        st.tuples(st.just("month"), st.none()),
    ),
    min_size=15,
    max_size=80,
)
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.integers(0, 6),
    tokens_per_minute=st.integers(0, 120),
    concurrent_requests=st.integers(0, 4),
    monthly_tokens=st.integers(0, 300),
)


@settings(max_examples=400, deadline=None)
@given(LIMITS, STEPS)
def test_decisions_are_those_of_a_model_that_remembers_everything(limits: Limits, steps: list[Step]) -> None:
    """The model keeps every request for ever and adds up anew each time; in no window is there ever more."""
    key = Key()
    key.limits = limits
    known: list[dict[str, Any]] = []

    def spent(what: str, now: float) -> int:
        return sum(request[what] for request in known if now - request["at"] < MINUTE_S)

    for word, value in steps:
        if word == "wait":
            key.now += value
        elif word == "month":
            key.month += 1
        elif word == "end":
            place, tokens, served = value
            running = [request for request in known if request["runs"]]
            if running:
                request = running[place % len(running)]
                used = min(tokens, request["tokens"]) if served else 0
                request["reservation"].settle(used, served=served)
                request |= {"runs": False, "tokens": used, "requests": int(served)}
        else:
            of_month = [request for request in known if request["month"] == key.month]
            billed = sum(request["tokens"] for request in of_month if not request["runs"])
            held = sum(request["tokens"] for request in of_month if request["runs"])
            fits = not (
                (limits.requests_per_minute and spent("requests", key.now) + 1 > limits.requests_per_minute)
                or (limits.tokens_per_minute and spent("tokens", key.now) + value > limits.tokens_per_minute)
                or (limits.concurrent_requests and sum(r["runs"] for r in known) >= limits.concurrent_requests)
                or (limits.monthly_tokens and billed + held + value > limits.monthly_tokens)
            )

            answer = key.ask(value)

            assert isinstance(answer, Reservation) == fits
            if isinstance(answer, Reservation):
                known.append(
                    {
                        "at": key.now,
                        "month": key.month,
                        "tokens": value,
                        "requests": 1,
                        "runs": True,
                        "reservation": answer,
                    }
                )
                if limits.requests_per_minute:
                    assert spent("requests", key.now) <= limits.requests_per_minute
                if limits.tokens_per_minute:
                    assert spent("tokens", key.now) <= limits.tokens_per_minute
            elif answer.retry_after_s is not None and answer.limit in (Limit.REQUESTS, Limit.TOKENS):
                later = key.now + answer.retry_after_s
                assert math.isfinite(later)
                if not limits.concurrent_requests and not limits.monthly_tokens:
                    assert decide(key.usage, limits, value, later, key.month) is None
                    key.now = later

    assert key.usage.running == sum(request["runs"] for request in known)
