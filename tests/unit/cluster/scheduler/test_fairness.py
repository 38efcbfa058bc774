"""Fair shares and bounded waits, over simulated minutes of traffic. The long version prints the docs' table."""

from __future__ import annotations

import pytest

from tests.benchmarks import fairness

SECONDS = 400.0


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("large", [1, 4, 8])
def test_equal_tenants_have_equal_shares_however_large_their_tasks(seed: int, large: int) -> None:
    row = fairness.equal_tenants(seed=seed, large=large * fairness.MEAN_TOKENS)

    assert row.holds, row


@pytest.mark.parametrize("seed", [1, 2])
def test_a_tenant_that_sends_a_hundred_times_as_much_costs_another_no_more_than_a_service_time(seed: int) -> None:
    row = fairness.flood(seed=seed, seconds=SECONDS)

    assert row.holds, row


@pytest.mark.parametrize("seed", [1, 2])
def test_the_priority_tier_hardly_notices_an_overload_below_it(seed: int) -> None:
    row = fairness.overload(seed=seed, seconds=SECONDS)

    assert row.holds, row


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_lowest_tier_waits_no_longer_than_is_stated(seed: int) -> None:
    row = fairness.lowest(seed=seed, seconds=SECONDS)

    assert row.holds, row


def test_an_index_of_shares_is_one_when_they_are_equal_and_less_when_not() -> None:
    assert fairness.jain([5, 5, 5, 5]) == 1.0
    assert fairness.jain([10, 0, 0, 0]) == 0.25
