from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from accounts.models import User
from cluster.domain import WaitReason
from gpucloud.lib.rest import keyset
from inference.records import Queued
from inference.timeline import encode_timeline
from tests.api import ApiClient, refused
from tests.factories import make_key
from tests.unit.inference.test_selectors import NINE, TEN, make_request

pytestmark = pytest.mark.django_db


@pytest.fixture
def api(alice: User) -> ApiClient:
    """Alice's client."""
    return ApiClient(alice)


def ids(api: ApiClient, **query: Any) -> list[str]:
    answer = api.get("/requests", **query)
    assert answer.status_code == 200, answer.content
    return [row["id"] for row in answer.json()["results"]]


def follow(api: ApiClient, url: str) -> dict[str, Any]:
    """Return the page behind a link."""
    parts = urlsplit(url)
    answer = api.ask("GET", f"{parts.path.removeprefix('/api')}?{parts.query}")
    assert answer.status_code == 200, answer.content
    page: dict[str, Any] = answer.json()
    return page


def test_one_sees_ones_own_requests_the_newest_first(api: ApiClient, alice: User, bob: User) -> None:
    make_request(alice, "req_1")
    make_request(alice, "req_2", created_at=TEN)
    make_request(bob, "req_3")

    assert ids(api) == ["req_2", "req_1"]


def test_staff_see_everybodys_or_those_of_one(charlie: User, alice: User, bob: User) -> None:
    make_request(alice, "req_1")
    make_request(bob, "req_2", created_at=TEN)
    api = ApiClient(charlie)

    assert ids(api) == ["req_2", "req_1"]
    assert ids(api, user_id=bob.pk) == ["req_2"]
    assert ids(api, user_id=10**9) == []


def test_api1_to_ask_for_somebody_is_for_staff(api: ApiClient, alice: User, bob: User) -> None:
    for user in (alice, bob):
        refused(api.get("/requests", user_id=user.pk), 403, "permission_denied")


def test_requests_are_found_by_what_is_known_of_them(api: ApiClient, alice: User) -> None:
    key, _ = make_key(alice)
    make_request(alice, "req_1", key=key, state="failed", worker_id="wrk_1", worker_name="h100-1")
    make_request(alice, "req_2", model="gpt-4o", created_at=TEN)

    assert ids(api, id="req_1") == ids(api, key=key.pk) == ids(api, state="failed") == ["req_1"]
    assert ids(api, worker="wrk_1") == ids(api, worker="h100-1") == ["req_1"]
    assert ids(api, key=0) == ids(api, model="gpt-4o") == ["req_2"]
    assert ids(api, model="gpt-4o", state="failed") == []
    assert ids(api, to=TEN.isoformat()) == ["req_1"]
    assert ids(api, **{"from": TEN.isoformat()}) == ["req_2"]


@pytest.mark.parametrize(
    "query",
    [
        {"state": "gone"},
        {"key": -1},
        {"key": 2**63},
        {"key": "x"},
        {"page_size": 201},
        {"page": 2},
        {"cursor": "x"},
        {"cursor": "older.1"},
        {"cursor": "older.99999999999999999.req_1"},
        {"cursor": "older.1.req 1"},
        {"from": "yesterday"},
        {"from": "1970-01-01T00:00:00Z"},
        {"to": "9999-12-31T23:59:59-14:00"},
        {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"tz": "Europe/Berlin"},
        {"id": "\0"},
    ],
)
def test_a_question_that_cannot_be_meant_is_refused_by_name(api: ApiClient, query: dict[str, Any]) -> None:
    body = refused(api.get("/requests", **query), 400, "invalid")

    assert set(body["fields"]) & set(query)


def test_pages_follow_each_other_both_ways_and_leave_nothing_out(api: ApiClient, alice: User) -> None:
    # Three at the very same moment, so that pages end in the middle of them.
    for number in range(7):
        make_request(alice, f"req_{number}", created_at=NINE + timedelta(hours=number // 3))

    first = api.get("/requests", page_size=2).json()
    second = follow(api, first["next"])
    third = follow(api, second["next"])
    last = follow(api, third["next"])
    back = follow(api, follow(api, last["previous"])["previous"])

    pages = [[row["id"][4:] for row in page["results"]] for page in (first, second, third, last)]
    assert pages == [["6", "5"], ["4", "3"], ["2", "1"], ["0"]]
    assert [page["count"] for page in (first, second, third, last)] == [7] * 4
    assert (first["previous"], last["next"]) == (None, None)
    assert back["results"] == second["results"]


def test_what_arrives_meanwhile_does_not_shift_the_pages(api: ApiClient, alice: User) -> None:
    for number in range(4):
        make_request(alice, f"req_{number}", created_at=NINE + timedelta(minutes=number))
    first = api.get("/requests", page_size=2).json()

    make_request(alice, "req_new", created_at=TEN)
    second = follow(api, first["next"])
    newest = follow(api, second["previous"])

    assert [row["id"] for row in second["results"]] == ["req_1", "req_0"]
    assert [row["id"] for row in newest["results"]] == ["req_3", "req_2"]
    assert [row["id"] for row in follow(api, newest["previous"])["results"]] == ["req_new", "req_3"]


def test_a_page_whose_rows_are_gone_leads_back_to_the_first(api: ApiClient, alice: User) -> None:
    make_request(alice, "req_1")

    page = api.get("/requests", cursor="older.1.req_0").json()

    assert (page["results"], page["next"], page["count"]) == ([], None, 1)
    assert [row["id"] for row in follow(api, page["previous"])["results"]] == ["req_1"]


def test_a_filter_holds_on_every_page(api: ApiClient, alice: User) -> None:
    for number in range(6):
        model = "gpt-4o" if number % 2 else "llama-3-8b"
        make_request(alice, f"req_{number}", model=model, created_at=NINE + timedelta(minutes=number))

    first = api.get("/requests", model="gpt-4o", page_size=2).json()

    assert [row["id"] for row in follow(api, first["next"])["results"]] == ["req_1"]


def test_a_long_list_is_not_counted_to_its_end(
    api: ApiClient, alice: User, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(keyset, "MOST_COUNTED", 3)
    for number in range(6):
        make_request(alice, f"req_{number}")

    with django_assert_num_queries(3):  # the user, the page, the count
        assert api.get("/requests", page_size=2).json()["count"] == 3
    with django_assert_num_queries(2):  # a list that fits its page is counted by looking at it
        assert api.get("/requests").json()["count"] == 6


def test_a_request_tells_its_story(api: ApiClient, alice: User) -> None:
    key, _ = make_key(alice, name="laptop")
    noted = encode_timeline([Queued(0.2, WaitReason.NO_SLOT, 3)])
    make_request(alice, "req_1", key=key, timeline=noted, total_ms=5.0, finish_reason="stop", worker_name="h100-1")

    shown = api.get("/requests/req_1").json()

    assert (shown["id"], shown["key_name"], shown["email"], shown["worker_name"]) == (
        "req_1",
        "laptop",
        alice.email,
        "h100-1",
    )
    assert [line["event"] for line in shown["timeline"]] == ["admitted", "queued", "settled"]
    assert shown["timeline"][1] == {
        "at_ms": 0.2,
        "took_ms": 0.2,
        "event": "queued",
        "detail": "every worker for its model was full; number 3 in line",
    }


def test_api1_the_request_of_somebody_else_is_no_other_than_one_that_never_was(
    api: ApiClient, bob: User, charlie: User
) -> None:
    make_request(bob, "req_1")

    his, nobodys = api.get("/requests/req_1"), api.get("/requests/req_2")

    refused(his, 404, "not_found")
    assert his.content == nobodys.content
    assert ApiClient(charlie).get("/requests/req_1").status_code == 200
    assert ids(api, id="req_1") == []


@pytest.mark.parametrize("path", ["/requests", "/requests/req_1"])
def test_requests_are_read_only_and_not_for_everybody(api: ApiClient, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE"):
        refused(api.ask(method, path), 405, "method_not_allowed")
    assert ApiClient().ask("GET", path).status_code == 401
