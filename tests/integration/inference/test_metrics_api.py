from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from tests.api import ApiClient, refused
from tests.unit.inference.test_selectors import TEN, make_latency, make_usage

pytestmark = pytest.mark.django_db

SPAN = {"from": "2026-11-23T00:00:00Z", "to": "2026-11-24T00:00:00Z"}


@pytest.fixture
def api(alice: User) -> ApiClient:
    """Alice's client."""
    return ApiClient(alice)


def test_metrics_have_the_fields_that_tools_rely_on(api: ApiClient, alice: User) -> None:
    make_usage(alice, requests=2, completed=1, failed=1, prompt_tokens=20, completion_tokens=30)
    make_latency(alice, 100.0)
    make_usage(alice, TEN, requests=1, completed=1, model="gpt-4o")

    metrics = api.get("/monitoring/metrics", **SPAN).json()

    assert list(metrics) == ["from", "to", "requests", "errors", "tokens", "ttft_ms", "by_model", "series"]
    assert (metrics["from"], metrics["to"], metrics["requests"], metrics["errors"]) == (*SPAN.values(), 3, 1)
    assert metrics["tokens"] == {"prompt": 20, "completion": 30}
    assert metrics["ttft_ms"]["p50"] == pytest.approx(100, rel=0.05)
    assert [(each["model"], each["requests"]) for each in metrics["by_model"]] == [("gpt-4o", 1), ("llama-3-8b", 2)]
    assert [(each["at"], each["requests"]) for each in metrics["series"]] == [
        ("2026-11-23T09:00:00Z", 2),
        ("2026-11-23T10:00:00Z", 1),
    ]
    assert metrics["series"][1]["ttft_ms"] == {"p50": None, "p95": None, "p99": None}


def test_without_a_word_they_are_of_the_last_day(api: ApiClient) -> None:
    metrics = api.get("/monitoring/metrics").json()

    until = datetime.fromisoformat(metrics["to"])
    assert timezone.now() <= until <= timezone.now() + timedelta(hours=1)
    assert until - datetime.fromisoformat(metrics["from"]) == timedelta(days=1)
    assert (metrics["requests"], metrics["by_model"], metrics["series"]) == (0, [], [])


def test_api1_one_sees_how_ones_own_requests_went_and_staff_everybodys(
    api: ApiClient, charlie: User, alice: User, bob: User
) -> None:
    make_usage(alice, requests=1)
    make_usage(bob, requests=2, model="gpt-4o")

    mine = api.get("/monitoring/metrics", **SPAN).json()

    assert (mine["requests"], len(mine["by_model"])) == (1, 1)
    refused(api.get("/monitoring/metrics", user_id=bob.pk), 403, "permission_denied")
    staff = ApiClient(charlie)
    assert staff.get("/monitoring/metrics", **SPAN).json()["requests"] == 3
    assert staff.get("/monitoring/metrics", user_id=bob.pk, **SPAN).json()["requests"] == 2


@pytest.mark.parametrize(
    "query",
    [
        {"from": SPAN["to"], "to": SPAN["from"]},
        {"from": SPAN["to"], "to": SPAN["to"]},
        {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T01:00:00Z"},
        {"from": "now"},
        {"step": "1"},
    ],
)
def test_a_span_that_cannot_be_meant_is_refused(api: ApiClient, query: dict[str, Any]) -> None:
    assert set(refused(api.get("/monitoring/metrics", **query), 400, "invalid")["fields"]) & set(query)


def test_metrics_are_read_only_and_not_for_everybody(api: ApiClient) -> None:
    for method in ("POST", "PUT", "DELETE", "TRACE"):
        refused(api.ask(method, "/monitoring/metrics"), 405, "method_not_allowed")
    assert ApiClient().ask("GET", "/monitoring/metrics").status_code == 401
