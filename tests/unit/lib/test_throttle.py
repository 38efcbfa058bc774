"""Counting attempts: so many and no more, good ones given back, each value by itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from django.core.cache import caches

from gpucloud.lib import throttle
from gpucloud.lib.countercache import CounterCache
from gpucloud.lib.throttle import TooManyAttempts, count, forgive


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock of django-ratelimit's that only a test moves, at a moment far from the edge of a window."""

    class Clock:
        now_s = 1_800_000_000.0

        def time(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr("django_ratelimit.core.time", clock)
    monkeypatch.setattr("django_ratelimit.core._get_window", lambda value, period: _window(clock.now_s, value, period))
    caches["throttle"].clear()
    return clock


def _window(now_s, value, period):
    """End windows of phase a on the minute and those of phase b half a window later."""
    offset = period // 2 if value.endswith("b") else 0
    return int((now_s - offset) // period * period + period + offset)


def attempts(number, value="x", rates=("3/m",), limit="test"):
    """Return how many of `number` attempts are let through."""
    through = 0
    for _ in range(number):
        try:
            count(limit, value, rates)
        except TooManyAttempts:
            continue
        through += 1
    return through


def test_as_many_as_the_rate_says_are_let_through():
    assert attempts(10) == 3


def test_values_and_limits_are_counted_apart():
    assert attempts(10, "x") == attempts(10, "y") == attempts(10, "x", limit="other") == 3


def test_any_of_several_rates_refuses(clock):
    rates = ("3/m", "5/h")
    assert attempts(10, rates=rates) == 3
    clock.now_s += 120

    assert attempts(10, rates=rates) == 2


def test_no_rates_mean_no_limit():
    assert attempts(1000, rates=()) == 1000


def test_the_edge_of_a_window_does_not_let_twice_as_many_through(clock):
    clock.now_s = 1_800_000_000 + 59
    assert attempts(10) == 3
    clock.now_s += 2

    assert attempts(10) == 0


def test_what_was_good_is_given_back():
    for _ in range(50):
        count("test", "x", ["3/m"])
        forgive("test", "x", ["3/m"])

    assert attempts(10) == 3


def test_a_refusal_says_how_long_to_wait_and_that_is_enough(clock):
    attempts(3)
    with pytest.raises(TooManyAttempts) as refused:
        count("test", "x", ["3/m"])
    assert 1 <= refused.value.wait_s <= 60
    clock.now_s += refused.value.wait_s

    assert attempts(1) == 1


def test_a_refusal_at_the_very_end_of_a_window_still_says_to_wait(clock, monkeypatch):
    used = {"limit": 3, "time_left": -1}
    monkeypatch.setattr(throttle, "get_usage", lambda *_, increment, **__: used | {"count": 9 if increment else 0})

    with pytest.raises(TooManyAttempts) as refused:
        count("test", "x", ["3/m"])

    assert refused.value.wait_s == 1


def test_attempts_side_by_side_are_all_seen():
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: attempts(1, rates=("60/m",)), range(200))) == 60


def test_hundreds_of_others_do_not_make_it_forget():
    attempts(3)
    for number in range(1000):
        count("test", f"other-{number}", ["3/m"])

    assert attempts(1) == 0


def test_the_log_says_once_or_twice_that_somebody_is_throttled(caplog):
    attempts(100)

    lines = [record.getMessage() for record in caplog.records]
    assert set(lines) == {"audit throttled test of x at 3/m"}
    assert len(lines) <= 2


def test_counters_of_windows_that_are_over_are_let_go(monkeypatch):
    store = caches["throttle"]
    clock = SimpleNamespace(time=time.time)
    for module in ("base", "locmem"):
        monkeypatch.setattr(f"django.core.cache.backends.{module}.time", clock)
    monkeypatch.setattr(CounterCache, "_sweep_at", 1000)
    monkeypatch.setattr("gpucloud.lib.countercache.SWEEP_ENTRIES", 1000)
    store.set("lasting", 1, 1_000_000)
    for number in range(900):
        store.set(f"old-{number}", 1, 60)
    later_s = time.time() + 61
    clock.time = lambda: later_s

    for number in range(900):
        store.set(f"new-{number}", 1, 60)

    assert len(store._cache) == 901
    assert store.get("lasting") == 1
    assert store.get("new-0") == 1
