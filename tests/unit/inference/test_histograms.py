from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.histograms import FLOOR_MS, LAST, Bars, bucket_of, decode_ttft, middle_ms, percentile

durations = st.floats(min_value=FLOOR_MS, max_value=50_000_000)


@given(durations)
def test_the_middle_of_a_bucket_is_near_all_that_falls_into_it(ms: float) -> None:
    assert middle_ms(bucket_of(ms)) == pytest.approx(ms, rel=0.0443)


@given(durations, durations)
def test_longer_durations_never_fall_into_lower_buckets(one: float, other: float) -> None:
    assert bucket_of(min(one, other)) <= bucket_of(max(one, other))


def test_the_ends_of_the_scale_hold_everything_beyond() -> None:
    assert bucket_of(0.0) == bucket_of(0.099) == 0
    assert bucket_of(0.1) == 1
    assert bucket_of(1e300) == LAST
    assert middle_ms(0) == 0.0


@given(st.lists(durations, min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_within_the_documented_error(values: list[float], q: float) -> None:
    bars = Bars()
    for value in values:
        bars.count(value, value, value)

    exact = sorted(values)[max(0, -int(-q * len(values) // 1) - 1)]

    assert percentile(bars.total, q) == pytest.approx(exact, rel=0.0443)


def test_nothing_has_no_percentile() -> None:
    assert percentile({}, 0.5) is None


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        percentile({1: 1}, 95)


def test_bars_add_up_and_survive_being_stored() -> None:
    one, other = Bars(), Bars()
    one.count(1.0, None, 10.0)
    other.count(1.0, 5.0, 10.0)

    one.add(Bars.decode(other.encode()))

    assert one == Bars(queue={bucket_of(1): 2}, ttft={bucket_of(5): 1}, total={bucket_of(10): 2})
    assert other.queue == {bucket_of(1): 1}


def test_bars_of_nothing_are_short() -> None:
    assert Bars().encode() == "{}"


def test_the_times_to_the_first_token_can_be_read_alone():
    bars = Bars()
    bars.count(1.0, 20.0, 300.0)
    bars.count(1.0, None, 300.0)

    assert decode_ttft(bars.encode()) == bars.ttft
    assert decode_ttft(Bars().encode()) == {}
