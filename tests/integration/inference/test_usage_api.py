from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.utils import timezone

from accounts.models import User
from inference.selectors import Dimension, Period
from inference.usage import Asked, _stretches, _write_stretch, stream_csv
from tests.api import ApiClient, refused
from tests.factories import make_key
from tests.unit.inference.test_selectors import NINE, TEN, make_usage

pytestmark = pytest.mark.django_db

SPAN = {"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z"}
COUNTS = {
    "requests", "completed", "failed", "cancelled", "expired", "lost",
    "prompt_tokens", "completion_tokens", "generated_tokens",
}  # fmt: skip


@pytest.fixture
def api(alice: User) -> ApiClient:
    """Alice's client."""
    return ApiClient(alice)


def test_usage_is_told_by_day_with_its_sum(api: ApiClient, alice: User, bob: User) -> None:
    make_usage(alice, NINE, requests=2, completed=2, prompt_tokens=20)
    make_usage(alice, NINE + timedelta(days=1), requests=3, failed=3)
    make_usage(bob, requests=1000)

    page = api.get("/usage", **SPAN).json()

    assert [(line["start"], line["requests"]) for line in page["results"]] == [
        ("2026-11-23T00:00:00Z", 2),
        ("2026-11-24T00:00:00Z", 3),
    ]
    assert set(page["results"][0]) == COUNTS | {"start"}
    assert page["totals"] == dict.fromkeys(COUNTS, 0) | {
        "requests": 5, "completed": 2, "failed": 3, "prompt_tokens": 20,
    }  # fmt: skip
    assert (page["from"], page["to"], page["group"], page["by"], page["count"]) == (*SPAN.values(), "day", [], 2)


def test_usage_is_told_apart_by_key_and_model(api: ApiClient, alice: User) -> None:
    key, _ = make_key(alice, name="laptop")
    make_usage(alice, requests=1, key_id=key.pk)
    make_usage(alice, TEN, requests=2)

    page = api.get("/usage", by="model,key", **SPAN).json()

    assert page["by"] == ["key", "model"]
    assert [(line["key_id"], line["key_name"], line["model"], line["requests"]) for line in page["results"]] == [
        (0, "playground", "llama-3-8b", 2),
        (key.pk, "laptop", "llama-3-8b", 1),
    ]


def test_usage_of_one_key_or_model(api: ApiClient, alice: User, bob: User) -> None:
    make_usage(alice, requests=1, key_id=7)
    make_usage(alice, requests=2, key_id=8, model="gpt-4o")
    make_usage(bob, requests=4, key_id=9)

    def total(**query: Any) -> int:
        return api.get("/usage", **SPAN, **query).json()["totals"]["requests"]

    assert (total(key=7), total(model="gpt-4o"), total(key=0)) == (1, 2, 0)
    assert total(key=9) == 0  # Bob's


def test_lines_come_in_pages_and_the_sum_is_over_all_of_them(api: ApiClient, alice: User) -> None:
    for hour in range(5):
        make_usage(alice, NINE + timedelta(hours=hour), requests=1)

    page = api.get("/usage", group="hour", page=2, page_size=2, **SPAN).json()

    assert [line["start"] for line in page["results"]] == ["2026-11-23T11:00:00Z", "2026-11-23T12:00:00Z"]
    assert (page["count"], page["totals"]["requests"]) == (5, 5)


def test_staff_see_everybodys_usage_by_user_and_that_of_one(charlie: User, alice: User, bob: User) -> None:
    make_usage(alice, requests=1)
    make_usage(bob, requests=2)
    api = ApiClient(charlie)

    everybodys = api.get("/usage", by="user", **SPAN).json()
    bobs = api.get("/usage", user_id=bob.pk, **SPAN).json()

    assert [(line["user_id"], line["email"], line["requests"]) for line in everybodys["results"]] == [
        (alice.pk, alice.email, 1),
        (bob.pk, bob.email, 2),
    ]
    assert bobs["totals"]["requests"] == 2


@pytest.mark.parametrize("query", [{"user_id": 1}, {"by": "user"}, {"by": "model,user"}])
@pytest.mark.parametrize("format", ["json", "csv"])
def test_api1_to_ask_for_users_is_for_staff(api: ApiClient, query: dict[str, Any], format: str) -> None:
    refused(api.get("/usage", **query, format=format), 403, "permission_denied")


def test_without_a_word_it_is_the_last_thirty_days(api: ApiClient) -> None:
    page = api.get("/usage").json()

    until = datetime.fromisoformat(page["to"])
    assert timezone.now() <= until <= timezone.now() + timedelta(hours=1)
    assert until - datetime.fromisoformat(page["from"]) == timedelta(days=30)


def test_a_span_is_widened_to_whole_hours(api: ApiClient, alice: User) -> None:
    make_usage(alice, NINE, requests=1)
    make_usage(alice, TEN, requests=2)

    page = api.get("/usage", **{"from": "2026-11-23T10:59:00+01:00", "to": "2026-11-23T10:00:00.000001Z"}).json()

    assert (page["from"], page["to"]) == ("2026-11-23T09:00:00Z", "2026-11-23T11:00:00Z")
    assert page["totals"]["requests"] == 3


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"group": "second"}, "group"),
        ({"group": "hour", "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T01:00:00Z"}, "from"),
        ({"group": "day", "from": "2025-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}, "from"),
        ({"group": "month", "from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"}, "from"),
        ({"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "from"),
        ({"from": "2099-01-01T00:00:00Z"}, "from"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"to": "1999-12-31T00:00:00Z"}, "to"),
        ({"by": "colour"}, "by"),
        ({"by": "model,"}, "by"),
        ({"by": ""}, "by"),
        ({"key": "1 OR 1"}, "key"),
        ({"tz": "Europe/Berlin"}, "tz"),
        ({"format": "xlsx"}, "format"),
        ({"format": "csv", "page": 1}, "page"),
        ({"page_size": 10**9}, "page_size"),
    ],
)
def test_api4_a_question_that_cannot_be_meant_is_refused_by_name(
    api: ApiClient, query: dict[str, Any], field: str
) -> None:
    assert set(refused(api.get("/usage", **query), 400, "invalid")["fields"]) == {field}


def test_a_spreadsheet_that_accepts_csv_only_is_told_what_is_wrong_all_the_same(api: ApiClient) -> None:
    assert api.ask("GET", "/usage", Accept="text/csv").status_code == 200
    refused(api.ask("GET", "/usage?format=xlsx", Accept="text/csv"), 400, "invalid")


def test_usage_is_read_only_and_not_for_everybody(api: ApiClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE"):
        refused(api.ask(method, "/usage"), 405, "method_not_allowed")
    assert ApiClient().ask("GET", "/usage").status_code == 401


@pytest.mark.parametrize(
    ("period", "first", "many"), [(Period.HOUR, 24, 30), (Period.DAY, 24, 30), (Period.MONTH, 16 * 24, 2)]
)
def test_the_stretches_of_a_csv_are_the_span_without_a_gap(period: Period, first: int, many: int) -> None:
    since, until = datetime(2026, 12, 16, tzinfo=UTC), datetime(2027, 1, 15, tzinfo=UTC)

    stretches = list(_stretches(Asked(since=since, until=until, period=period)))

    assert stretches[0] == (since, since + timedelta(hours=first))
    assert [end for _, end in stretches[:-1]] == [start for start, _ in stretches[1:]]
    assert (len(stretches), stretches[-1][1]) == (many, until)


@pytest.mark.parametrize("group", ["hour", "day", "month"])
def test_the_csv_has_the_very_lines_of_the_pages(api: ApiClient, alice: User, bob: User, group: str) -> None:
    since, until = datetime(2026, 1, 30, 22, tzinfo=UTC), datetime(2026, 2, 2, 3, tzinfo=UTC)
    for hours in range(-3, 60, 7):
        make_usage(alice, since + timedelta(hours=hours), requests=hours + 4, key_id=hours % 2)
    make_usage(bob, since, requests=1000)
    span = {"from": since.isoformat(), "to": until.isoformat()}

    async def read() -> bytes:
        asked = Asked(since=since, until=until, user_id=alice.pk, period=Period(group), by=frozenset({Dimension.KEY}))
        return b"".join([part async for part in stream_csv(asked)])

    head, *lines = csv.reader(async_to_sync(read)().decode().splitlines())
    page = api.get("/usage", group=group, by="key", page_size=200, **span).json()

    assert len(lines) == page["count"] > 1
    assert [dict(zip(head, line, strict=True)) | {"start": ""} for line in lines] == [
        {name: str(value) for name, value in line.items()} | {"start": ""} for line in page["results"]
    ]
    assert [datetime.fromisoformat(line[0]) for line in lines] == [
        datetime.fromisoformat(line["start"]) for line in page["results"]
    ]


def test_a_stretch_has_the_lines_asked_for_and_no_formulas(alice: User, bob: User) -> None:
    key, _ = make_key(alice, name="=cmd()")
    make_usage(alice, requests=1, prompt_tokens=5, key_id=key.pk)
    make_usage(bob, requests=2)
    asked = Asked(
        since=NINE, until=TEN, user_id=alice.pk, period=Period.HOUR, by=frozenset({Dimension.KEY, Dimension.USER})
    )

    text = _write_stretch(asked, NINE, TEN).decode()

    assert text == f"2026-11-23T09:00:00+00:00,{alice.pk},{alice.email},{key.pk},'=cmd(),1,0,0,0,0,0,5,0,0\r\n"
