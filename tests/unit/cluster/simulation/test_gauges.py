from __future__ import annotations

import pytest

from cluster.simulation.gauges import HEAT_TIME_S, Gauges, power_w
from cluster.simulation.hardware import get_gpu

A100 = get_gpu("A100")


@pytest.fixture
def gauges() -> Gauges:
    return Gauges(A100, now=100.0)


def work(gauges: Gauges, start: float, duration_s: float, mfu: float = 0.5, mbu: float = 0.5) -> None:
    gauges.record(start, duration_s, compute_s=mfu * duration_s, memory_s=mbu * duration_s)


def test_a_board_without_work_idles(gauges: Gauges) -> None:
    gauges.read(160.0)

    assert (gauges.utilization, gauges.power_w, gauges.temperature_c) == (0.0, A100.idle_w, A100.idle_c)


def test_utilisation_is_the_share_of_the_interval_with_a_step_running(gauges: Gauges) -> None:
    work(gauges, 101.0, 1.0)
    work(gauges, 103.0, 0.5)

    gauges.read(105.0)

    assert gauges.utilization == pytest.approx(1.5 / 5)


def test_utilisation_falls_back_to_zero_in_the_next_interval(gauges: Gauges) -> None:
    work(gauges, 100.0, 5.0)
    gauges.read(105.0)

    gauges.read(110.0)

    assert gauges.utilization == 0.0
    assert gauges.power_w == pytest.approx(A100.idle_w)


def test_a_step_still_running_counts_whole_and_never_makes_more_than_one(gauges: Gauges) -> None:
    work(gauges, 100.0, 10.0)

    gauges.read(101.0)

    assert gauges.utilization == 1.0


def test_reading_twice_at_once_keeps_the_values(gauges: Gauges) -> None:
    work(gauges, 100.0, 5.0)
    gauges.read(110.0)

    gauges.read(110.0)

    assert gauges.utilization == pytest.approx(0.5)


def test_a_step_of_no_length_costs_nothing(gauges: Gauges) -> None:
    gauges.record(100.0, 0.0, compute_s=1.0, memory_s=1.0)
    gauges.read(101.0)

    assert gauges.power_w == pytest.approx(A100.idle_w)


def test_decoding_draws_part_of_the_limit_and_a_busy_prefill_all_of_it() -> None:
    assert power_w(A100, mfu=0.01, mbu=0.66) == pytest.approx(0.74 * A100.tdp_w, rel=0.05)
    assert power_w(A100, mfu=0.45, mbu=0.2) == pytest.approx(A100.tdp_w)


def test_power_is_the_mean_over_the_interval(gauges: Gauges) -> None:
    work(gauges, 100.0, 5.0, mfu=1.0)
    gauges.read(110.0)

    assert gauges.power_w == pytest.approx((A100.idle_w + A100.tdp_w) / 2)


def test_temperature_settles_at_full_load_and_decays_at_rest(gauges: Gauges) -> None:
    for second in range(600):
        work(gauges, 100.0 + second, 1.0, mfu=1.0)
    gauges.read(700.0)
    hot_c = gauges.temperature_c

    gauges.read(700.0 + HEAT_TIME_S)

    assert hot_c == pytest.approx(A100.load_c, abs=0.1)
    assert gauges.temperature_c == pytest.approx(A100.idle_c + (hot_c - A100.idle_c) * 0.368, abs=0.1)
