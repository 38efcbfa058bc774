from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from accounts.models import User
from inference import selectors
from inference.histograms import Bars
from inference.models import LatencyHistogram, Request, UsageRollup

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
TEN = NINE + timedelta(hours=1)
NOON = NINE + timedelta(hours=3)


def make_usage(user: User, hour: datetime = NINE, **fields: Any) -> UsageRollup:
    counts = dict.fromkeys(selectors.Usage.__struct_fields__, 0)
    described: dict[str, Any] = {"hour": hour, "user": user, "key_id": 0, "model": "llama-3-8b", "node": "n"}
    return UsageRollup.objects.create(**counts | described | fields)


def make_latency(user: User, *ttfts_ms: float, hour: datetime = NINE, model: str = "llama-3-8b") -> LatencyHistogram:
    bars = Bars()
    for ttft_ms in ttfts_ms:
        bars.count(1.0, ttft_ms, 10 * ttft_ms)
    return LatencyHistogram.objects.create(hour=hour, user=user, key_id=0, model=model, node="n", bars=bars.encode())


def make_request(user: User, request_id: str, **fields: Any) -> Request:
    described: dict[str, Any] = {
        "id": request_id,
        "user": user,
        "model": "llama-3-8b",
        "source": "api",
        "stream": True,
        "tier": "default",
        "node": "n",
        "state": "completed",
        "prompt_tokens": 1,
        "created_at": NINE,
    }
    return Request.objects.create(**described | fields)


def test_usage_is_the_sum_of_ones_own_hours(alice: User, bob: User) -> None:
    make_usage(alice, requests=2, completed=1, failed=1, prompt_tokens=20)
    make_usage(alice, TEN, requests=3, completed=3, completion_tokens=30)
    make_usage(alice, NOON, requests=100)
    make_usage(bob, requests=1000)

    usage = selectors.get_usage(since=NINE, until=NOON, user_id=alice.pk)

    assert usage == selectors.Usage(requests=5, completed=4, failed=1, prompt_tokens=20, completion_tokens=30)
    assert selectors.get_usage(since=NINE, until=NOON).requests == 1005


def test_hours_without_any_request_use_nothing(alice: User) -> None:
    assert selectors.get_usage(since=NINE, until=NOON, user_id=alice.pk) == selectors.Usage()


def test_usage_is_listed_by_hour_model_and_key(alice: User) -> None:
    make_usage(alice, requests=1)
    make_usage(alice, TEN, requests=2, model="gpt-4o", key_id=7)
    make_usage(alice, TEN, requests=4, key_id=7)

    by_hour = selectors.list_usage_by_hour(since=NINE, until=NOON, user_id=alice.pk)
    by_model = selectors.list_usage_by_model(since=NINE, until=NOON)
    by_key = selectors.list_usage_by_key(since=NINE, until=NOON)

    assert [(hour, usage.requests) for hour, usage in by_hour] == [(NINE, 1), (TEN, 6)]
    assert [(model, usage.requests) for model, usage in by_model] == [("gpt-4o", 2), ("llama-3-8b", 5)]
    assert [(key_id, usage.requests) for key_id, usage in by_key] == [(0, 1), (7, 6)]


def test_latency_is_merged_over_hours(alice: User) -> None:
    for hour, total_ms in ((NINE, 100.0), (TEN, 1000.0)):
        bars = Bars()
        bars.count(1.0, None, total_ms)
        LatencyHistogram.objects.create(hour=hour, user=alice, key_id=0, model="m", node="n", bars=bars.encode())

    latency = selectors.get_latency(since=NINE, until=NOON)

    assert latency["total"].p50 == pytest.approx(100, rel=0.05)
    assert latency["total"].p99 == pytest.approx(1000, rel=0.05)
    assert latency["ttft"] == selectors.Percentiles()


def test_one_sees_ones_own_requests_only(alice: User, bob: User) -> None:
    make_request(alice, "req_1")
    make_request(alice, "req_2", created_at=TEN)
    make_request(bob, "req_3")

    assert [request.pk for request in selectors.list_requests(user_id=alice.pk)] == ["req_2", "req_1"]
    assert selectors.list_requests().count() == 3
    assert selectors.get_request(request_id="req_1", user_id=alice.pk) is not None
    assert selectors.get_request(request_id="req_3", user_id=alice.pk) is None


def test_a_user_with_requests_cannot_be_deleted(alice: User) -> None:
    from django.db.models import ProtectedError

    make_request(alice, "req_1")

    with pytest.raises(ProtectedError):
        alice.delete()
