"""How fast a line moves."""

from __future__ import annotations

import pytest

from cluster.scheduler.pace import Drain


def test_nothing_is_known_before_the_first_departure() -> None:
    drain = Drain()
    drain.begin(100.0)

    assert drain.per_s(100.0) is None and drain.wait_s(1, 101.0) is None


@pytest.mark.parametrize("burst", [1, 4, 8])
def test_the_rate_is_that_of_the_departures_even_or_in_bursts(burst: int) -> None:
    drain = Drain()
    drain.begin(0.0)
    for second in range(1, 61):
        for _ in range(burst):
            drain.note(float(second))

    assert drain.per_s(60.0) == pytest.approx(burst, rel=0.05)
    assert drain.wait_s(1, 60.0) == pytest.approx(1.0, rel=0.15)
    assert drain.wait_s(1 + burst, 60.0) == pytest.approx(2.0, rel=0.15)


def test_a_line_that_stands_still_is_seen_to_slow_down() -> None:
    drain = Drain()
    drain.begin(0.0)
    for second in range(1, 21):
        drain.note(float(second))

    rate = drain.per_s(60.0)
    wait_s = drain.wait_s(1, 60.0)
    assert rate is not None and rate < 0.2
    assert wait_s == 40.0


def test_a_new_line_knows_nothing_of_the_one_before() -> None:
    drain = Drain()
    drain.begin(0.0)
    drain.note(1.0)
    drain.begin(1_000.0)

    assert drain.per_s(1_001.0) is None
