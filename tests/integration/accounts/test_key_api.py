from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from accounts.models import ApiKey, User
from accounts.services import create_key, revoke_key
from inference.models import KeyTotal
from tests.api import ApiClient, refused

pytestmark = pytest.mark.django_db

SHOWN = {
    "id", "name", "prefix", "last4", "masked", "test", "tier", "highest_tier", "models", "requests_per_minute",
    "tokens_per_minute", "concurrent_requests", "max_tokens", "monthly_tokens", "created_at", "expires_at",
    "revoked_at", "last_used_at", "previous", "totals",
}  # fmt: skip


@pytest.fixture
def api(alice: User) -> ApiClient:
    """Alice's client."""
    return ApiClient(alice)


def test_a_key_is_created_and_its_secret_shown_once(api: ApiClient, alice: User) -> None:
    made = api.post("/keys", {"name": "laptop"})

    assert made.status_code == 201
    assert set(made.json()) == SHOWN | {"key"}
    secret = made.json()["key"]
    key = ApiKey.objects.get()
    assert (key.user, key.name, key.prefix, key.last4) == (alice, "laptop", secret[:11], secret[-4:])
    assert secret not in api.get("/keys").content.decode()
    assert secret not in api.get(f"/keys/{key.pk}").content.decode()


def test_every_term_can_be_set_at_once(api: ApiClient) -> None:
    terms = {
        "name": "all",
        "tier": "batch",
        "highest_tier": "flex",
        "models": ["llama-*", "gpt-4o"],
        "requests_per_minute": 10,
        "tokens_per_minute": 1_000,
        "concurrent_requests": 2,
        "max_tokens": 64,
        "monthly_tokens": 10**12,
        "expires_at": "2100-01-01T00:00:00Z",
        "test": True,
    }

    made = api.post("/keys", terms).json()

    assert {name: made[name] for name in terms} == terms
    assert made["key"].startswith("sk-test-")


def test_a_key_without_any_wish_has_the_defaults(api: ApiClient) -> None:
    made = api.post("/keys").json()

    assert (made["name"], made["tier"], made["highest_tier"], made["models"]) == (
        "default",
        "default",
        "default",
        ["*"],
    )
    assert (made["requests_per_minute"], made["monthly_tokens"], made["test"]) == (60, 0, False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a\nb"),
        ("name", "x" * 101),
        ("tier", "gold"),
        ("models", []),
        ("models", ["x" * 65]),
        ("requests_per_minute", -1),
        ("requests_per_minute", True),
        ("requests_per_minute", 10**30),
        ("max_tokens", 10**9),
        ("monthly_tokens", 10**18),
        ("expires_at", "yesterday"),
        ("expires_at", "2020-01-01T00:00:00Z"),
        ("expires_at", "9999-12-31T23:59:59-14:00"),
        ("highest_tier", "priority"),
        ("requests_per_minute", 0),
        ("user", 1),
        ("scopes", ["admin"]),
        ("revoked_at", None),
        ("digest", "00"),
    ],
)
def test_a_term_that_cannot_be_is_refused_by_name_by_post_and_patch(
    api: ApiClient, alice: User, field: str, value: Any
) -> None:
    key, _ = create_key(user=alice)

    made = refused(api.post("/keys", {field: value}), 400, "invalid")
    changed = refused(api.patch(f"/keys/{key.pk}", {field: value}), 400, "invalid")

    assert {name.partition("[")[0] for name in (made["fields"] | changed["fields"])} == {field}
    assert ApiKey.objects.count() == 1


def test_staff_may_give_their_keys_anything(charlie: User) -> None:
    made = ApiClient(charlie).post("/keys", {"tier": "priority", "requests_per_minute": 0})

    assert made.status_code == 201
    assert (made.json()["highest_tier"], made.json()["requests_per_minute"]) == ("priority", 0)


def test_one_more_than_as_many_keys_as_anybody_may_have_is_refused(
    api: ApiClient, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.services.MAX_KEYS", 2)
    first, _ = create_key(user=alice)
    create_key(user=alice)

    refused(api.post("/keys"), 400, "limit_reached")

    revoke_key(key=first)
    assert api.post("/keys").status_code == 201


def test_a_key_is_listed_with_what_it_has_used_on_every_node(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice)
    for node in ("a", "b"):
        KeyTotal.objects.create(key_id=key.pk, node=node, requests=2, prompt_tokens=30, completion_tokens=400)
    create_key(user=alice)

    fresh, used = api.get("/keys").json()["results"]

    assert used["totals"] == {"requests": 4, "prompt_tokens": 60, "completion_tokens": 800}
    assert fresh["totals"] == {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert set(used) == SHOWN


def test_listing_many_keys_asks_the_database_as_often_as_listing_one(
    api: ApiClient, alice: User, django_assert_num_queries: Any
) -> None:
    for _ in range(20):
        create_key(user=alice)

    with django_assert_num_queries(4):  # the user, the count, the page, the totals
        assert api.get("/keys").json()["count"] == 20


def test_keys_are_filtered_and_ordered(api: ApiClient, alice: User) -> None:
    create_key(user=alice, name="b", test=True)
    create_key(user=alice, name="a")
    revoked, _ = create_key(user=alice, name="c")
    revoke_key(key=revoked)

    def names(**query: Any) -> list[str]:
        return [key["name"] for key in api.get("/keys", **query).json()["results"]]

    assert names() == ["c", "a", "b"]
    assert names(ordering="name") == ["a", "b", "c"]
    assert names(state="live") == ["a", "b"]
    assert names(state="revoked") == ["c"]
    assert names(test="true") == ["b"]
    assert names(test="false", name="A") == ["a"]
    refused(api.get("/keys", ordering="digest"), 400, "invalid")
    refused(api.get("/keys", user=1), 400, "invalid")


def test_lists_come_in_pages(api: ApiClient, alice: User) -> None:
    for name in "abc":
        create_key(user=alice, name=name)

    page = api.get("/keys", page_size=2).json()

    assert [key["name"] for key in page["results"]] == ["c", "b"]
    assert (page["count"], page["previous"]) == (3, None)
    assert page["next"] == "http://testserver/api/keys?page=2&page_size=2"
    refused(api.get("/keys", page_size=10**9), 400, "invalid")


def test_a_key_is_renamed_and_the_change_is_on_record(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice, name="old")

    changed = api.patch(f"/keys/{key.pk}", {"name": "new", "max_tokens": 9})

    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["max_tokens"]) == ("new", 9)
    assert set(changed.json()) == SHOWN
    entry = LogEntry.objects.get()
    assert (entry.user, entry.change_message) == (alice, "Changed: name: old → new; max_tokens: 0 → 9")


def test_an_expiry_can_be_taken_back(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice, expires_at=timezone.now() + timedelta(1))

    assert api.patch(f"/keys/{key.pk}", {"expires_at": None}).json()["expires_at"] is None


def test_to_change_nothing_is_fine(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice)

    assert api.patch(f"/keys/{key.pk}", {}).status_code == 200


def test_a_revoked_key_is_changed_and_rotated_no_more(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice)
    revoke_key(key=key)

    refused(api.patch(f"/keys/{key.pk}", {"name": "again"}), 409, "revoked")
    refused(api.post(f"/keys/{key.pk}/rotate"), 409, "not_live")


def test_to_delete_a_key_is_to_revoke_it_and_to_do_it_twice_changes_nothing(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice)

    first = api.delete(f"/keys/{key.pk}")
    revoked_at = api.get(f"/keys/{key.pk}").json()["revoked_at"]
    second = api.delete(f"/keys/{key.pk}")

    assert (first.status_code, first.content, second.status_code) == (204, b"", 204)
    assert revoked_at
    assert api.get(f"/keys/{key.pk}").json()["revoked_at"] == revoked_at


def test_a_rotated_key_shows_its_new_secret_once_and_when_the_old_one_ends(api: ApiClient, alice: User) -> None:
    key, old = create_key(user=alice)

    rotated = api.post(f"/keys/{key.pk}/rotate", {"overlap_s": 3600}).json()

    assert set(rotated) == SHOWN | {"key", "previous_until"}
    assert rotated["key"] != old
    ends_in = datetime.fromisoformat(rotated["previous_until"]) - timezone.now()
    assert timedelta(minutes=59) < ends_in <= timedelta(hours=1)
    shown = api.get(f"/keys/{key.pk}").json()
    assert shown["previous"] == {"masked": f"{old[:11]}…{old[-4:]}", "until": rotated["previous_until"]}
    assert shown["masked"] == f"{rotated['key'][:11]}…{rotated['key'][-4:]}"


def test_a_secret_that_has_ended_is_not_shown_as_the_previous_one(api: ApiClient, alice: User) -> None:
    key, _ = create_key(user=alice)

    assert api.post(f"/keys/{key.pk}/rotate", {"overlap_s": 0}).status_code == 200
    assert api.get(f"/keys/{key.pk}").json()["previous"] is None


@pytest.mark.parametrize("overlap_s", [-1, 31 * 86_400, 0.5, "60", None])
def test_an_overlap_that_cannot_be_is_refused(api: ApiClient, alice: User, overlap_s: Any) -> None:
    key, old = create_key(user=alice)

    body = refused(api.post(f"/keys/{key.pk}/rotate", {"overlap_s": overlap_s}), 400, "invalid")

    assert set(body["fields"]) == {"overlap_s"}
    key.refresh_from_db()
    assert key.last4 == old[-4:]


@pytest.mark.parametrize("whose", ["bob", "charlie"])
def test_api1_the_key_of_somebody_else_does_not_exist_and_goes_on_working(
    alice: User, request: pytest.FixtureRequest, whose: str
) -> None:
    key, _ = create_key(user=alice, name="hers")
    other = ApiClient(request.getfixturevalue(whose))

    answers = [
        other.get(f"/keys/{key.pk}"),
        other.patch(f"/keys/{key.pk}", {"name": "his"}),
        other.post(f"/keys/{key.pk}/rotate"),
        other.delete(f"/keys/{key.pk}"),
        other.get("/keys/0"),
        other.get(f"/keys/{2**70}"),
    ]

    assert len({answer.content for answer in answers}) == 1
    for answer in answers:
        refused(answer, 404, "not_found")
    assert other.get("/keys").json()["results"] == []
    key.refresh_from_db()
    assert (key.name, key.revoked_at, key.previous_until) == ("hers", None, None)


def test_nobody_sees_or_makes_keys_without_a_token(alice: User) -> None:
    key, secret = create_key(user=alice)
    nobody = ApiClient()

    for method, path in (
        ("GET", "/keys"),
        ("POST", "/keys"),
        ("GET", f"/keys/{key.pk}"),
        ("DELETE", f"/keys/{key.pk}"),
    ):
        assert nobody.ask(method, path).status_code == 401
        # An API key is for /v1: here it is no token.
        assert nobody.ask(method, path, Authorization=f"Bearer {secret}").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/keys", "GET, POST, HEAD"),
        ("DELETE", "/keys", "GET, POST, HEAD"),
        ("TRACE", "/keys", "GET, POST, HEAD"),
        ("POST", "/keys/{}", "GET, PATCH, DELETE, HEAD"),
        ("PUT", "/keys/{}", "GET, PATCH, DELETE, HEAD"),
        ("TRACE", "/keys/{}", "GET, PATCH, DELETE, HEAD"),
        ("GET", "/keys/{}/rotate", "POST"),
    ],
)
def test_api5_another_method_is_refused_and_the_right_ones_are_named(
    api: ApiClient, alice: User, method: str, path: str, allowed: str
) -> None:
    key, _ = create_key(user=alice)

    answer = api.ask(method, path.format(key.pk))

    refused(answer, 405, "method_not_allowed")
    assert set(answer["Allow"].split(", ")) == set(allowed.split(", "))


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"])
def test_api5_a_header_does_not_make_another_method_of_a_request(api: ApiClient, alice: User, header: str) -> None:
    key, _ = create_key(user=alice)

    assert api.ask("POST", f"/keys/{key.pk}", **{header: "DELETE"}).status_code == 405
    assert api.ask("GET", f"/keys/{key.pk}", **{header: "DELETE"}).status_code == 200
    key.refresh_from_db()
    assert key.revoked_at is None
