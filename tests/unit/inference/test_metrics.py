from __future__ import annotations

import pytest

from accounts.models import User
from inference.metrics import Metric, get_metrics
from inference.selectors import Percentiles
from tests.unit.inference.test_selectors import NINE, NOON, TEN, make_latency, make_usage

pytestmark = pytest.mark.django_db


def test_nothing_happened_is_no_error() -> None:
    metrics = get_metrics(since=NINE, until=NOON)

    assert (metrics.total, metrics.by_model, metrics.by_hour) == (Metric(), {}, {})


def test_requests_are_counted_in_whole_by_model_and_by_hour(alice: User) -> None:
    make_usage(alice, NINE, requests=3, completed=3, prompt_tokens=30, completion_tokens=300)
    make_usage(alice, TEN, model="gpt-4o", requests=5, failed=1, expired=1, lost=1, cancelled=2)

    metrics = get_metrics(since=NINE, until=NOON)

    assert (metrics.total.requests, metrics.total.errors) == (8, 3)
    assert (metrics.total.prompt_tokens, metrics.total.completion_tokens) == (30, 300)
    assert {model: each.requests for model, each in metrics.by_model.items()} == {"gpt-4o": 5, "llama-3-8b": 3}
    assert {hour: each.errors for hour, each in metrics.by_hour.items()} == {NINE: 0, TEN: 3}


def test_times_are_merged_over_hours_and_kept_apart_by_model_and_hour(alice: User) -> None:
    make_usage(alice, NINE, requests=1)
    make_latency(alice, 10.0, hour=NINE)
    make_usage(alice, TEN, requests=2, model="gpt-4o")
    make_latency(alice, 1_000.0, 1_000.0, hour=TEN, model="gpt-4o")

    metrics = get_metrics(since=NINE, until=NOON)

    assert metrics.by_hour[NINE].ttft_ms.p99 == pytest.approx(10, rel=0.05)
    assert metrics.by_model["gpt-4o"].ttft_ms.p50 == pytest.approx(1_000, rel=0.05)
    assert metrics.total.ttft_ms.p50 == pytest.approx(1_000, rel=0.05)


def test_one_sees_how_ones_own_requests_went(alice: User, bob: User) -> None:
    make_usage(alice, requests=1)
    make_usage(bob, requests=2)
    make_latency(bob, 5.0)

    mine = get_metrics(since=NINE, until=NOON, user_id=alice.pk)

    assert mine.total == Metric(requests=1)
    assert mine.total.ttft_ms == Percentiles()
    assert get_metrics(since=NINE, until=NOON).total.requests == 3
