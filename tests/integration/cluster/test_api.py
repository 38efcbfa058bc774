from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from accounts.models import User
from cluster.domain import ClusterSnapshot, WorkerStatus
from cluster.models import Worker, WorkerToken
from cluster.services import authenticate_worker, record_worker_joined, revoke_worker_token
from tests.api import ApiClient, refused
from tests.factories import make_worker_spec, make_worker_token
from tests.integration.pages.snapshots import GIB, snapshot, waiting, worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def api(alice: User) -> ApiClient:
    """Alice's client."""
    return ApiClient(alice)


@pytest.fixture
def staff(charlie: User) -> ApiClient:
    """An operator's client."""
    return ApiClient(charlie)


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a snapshot up."""

    def put_up(picture: ClusterSnapshot) -> None:
        monkeypatch.setattr("cluster.api.monitoring.get_snapshot", lambda request: picture)

    return put_up


def test_workers_have_the_fields_that_tools_rely_on(api: ApiClient, show: Any) -> None:
    busy = worker("h100-1", running=3, tokens_per_s=12.5, status=WorkerStatus.BUSY, heartbeat_age_s=1.5)
    show(snapshot(1, busy, taken_at_s=1_800_000_000.0))

    page = api.get("/monitoring/workers").json()

    assert (page["count"], page["next"], page["previous"]) == (1, None, None)
    assert page["results"] == [
        {
            "id": "h100-1",
            "name": "h100-1",
            "status": "busy",
            "gpu": "H100",
            "gpus": 8,
            "models": ["llama-3-70b", "mixtral-8x7b"],
            "running": 3,
            "capacity": 64,
            "vram_used_bytes": 230 * GIB,
            "vram_total_bytes": 640 * GIB,
            "utilization": 0.61,
            "power_w": 3120.0,
            "temperature_c": 63.0,
            "tokens_per_s": 12.5,
            "last_heartbeat_at": "2027-01-15T07:59:58.500000Z",
        }
    ]


def test_a_fleet_comes_in_pages(api: ApiClient, show: Any) -> None:
    show(snapshot(1, *[worker(f"w-{number}") for number in range(5)]))

    page = api.get("/monitoring/workers", page=2, page_size=2).json()

    assert [each["id"] for each in page["results"]] == ["w-2", "w-3"]
    assert page["count"] == 5
    refused(api.get("/monitoring/workers", page=4, page_size=2), 404, "not_found")


def test_the_queue_is_told_by_tier_and_nothing_of_any_tenant(api: ApiClient, show: Any) -> None:
    show(snapshot(1, worker("w", running=4), head=(waiting(1, "u:77", "bob@example.com"), waiting(2))))

    answer = api.get("/monitoring/queue")

    nobody = {"depth": 0, "oldest_wait_ms": 0}
    assert answer.json() == {
        "depth": 2,
        "running": 4,
        "oldest_wait_ms": 2000,
        "by_tier": {
            "priority": nobody,
            "default": {"depth": 2, "oldest_wait_ms": 2000},
            "flex": nobody,
            "batch": nobody,
        },
    }
    assert b"bob" not in answer.content


def test_where_no_cluster_runs_there_is_nothing_to_see(api: ApiClient) -> None:
    assert api.get("/monitoring/workers").json()["results"] == []
    queue = api.get("/monitoring/queue").json()
    assert (queue["depth"], queue["oldest_wait_ms"], set(queue["by_tier"])) == (
        0,
        0,
        {"priority", "default", "flex", "batch"},
    )


@pytest.mark.parametrize("path", ["/monitoring/workers", "/monitoring/queue"])
def test_monitoring_is_read_only_and_not_for_everybody(api: ApiClient, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE"):
        refused(api.ask(method, path), 405, "method_not_allowed")
    refused(api.get(path, user_id=1), 400, "invalid")
    assert ApiClient().ask("GET", path).status_code == 401


@pytest.fixture
def joined() -> Worker:
    """A worker that is here."""
    spec = make_worker_spec(id="wrk_1", name="h100-1")
    record_worker_joined(spec=spec, token_id=None, link="lnk_1")
    return Worker.objects.get()


@pytest.mark.parametrize(
    ("action", "intent", "did"),
    [("cordon", "cordoned", "Cordoned."), ("drain", "draining", "Drained."), ("evict", "none", "Evicted.")],
)
def test_an_operator_says_what_is_wanted_once_and_it_is_on_record(
    staff: ApiClient, charlie: User, joined: Worker, action: str, intent: str, did: str
) -> None:
    first = staff.post(f"/workers/wrk_1/{action}").json()
    second = staff.post(f"/workers/wrk_1/{action}").json()

    assert set(first) == {"id", "name", "intent", "last_seen_at", "changed"}
    assert (first["id"], first["intent"], first["changed"]) == ("wrk_1", intent, True)
    assert (second["intent"], second["changed"]) == (intent, False)
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (charlie, "wrk_1", did)


def test_to_evict_closes_the_link_that_there_is(staff: ApiClient, joined: Worker) -> None:
    staff.post("/workers/wrk_1/evict")

    joined.refresh_from_db()
    assert joined.evict_link == "lnk_1"


def test_to_uncordon_takes_back_what_was_wanted(staff: ApiClient, joined: Worker) -> None:
    assert staff.post("/workers/wrk_1/uncordon").json()["changed"] is False
    staff.post("/workers/wrk_1/drain")

    assert staff.post("/workers/wrk_1/uncordon").json() | {"last_seen_at": ""} == {
        "id": "wrk_1",
        "name": "h100-1",
        "intent": "none",
        "last_seen_at": "",
        "changed": True,
    }


@pytest.mark.parametrize("action", ["cordon", "uncordon", "drain", "evict"])
def test_what_is_wanted_of_a_worker_is_for_staff_to_say_by_post(
    api: ApiClient, staff: ApiClient, joined: Worker, action: str
) -> None:
    path = f"/workers/wrk_1/{action}"

    refused(api.post(path), 403, "permission_denied")
    assert ApiClient().post(path).status_code == 401
    refused(staff.post(f"/workers/wrk_2/{action}"), 404, "not_found")
    for method in ("GET", "PUT", "DELETE", "TRACE"):
        refused(staff.ask(method, path), 405, "method_not_allowed")
    joined.refresh_from_db()
    assert (joined.intent, joined.evict_link) == ("none", "")


def test_a_worker_token_is_made_and_its_secret_shown_once(staff: ApiClient, charlie: User) -> None:
    made = staff.post("/worker-tokens", {"name": "rack-7", "models": ["llama-*"], "expires_at": "2100-01-01T00:00:00Z"})

    assert made.status_code == 201
    body = made.json()
    listed = staff.get("/worker-tokens")
    assert body["token"] not in listed.content.decode()
    assert listed.json()["results"] == [{name: value for name, value in body.items() if name != "token"}]
    credential = authenticate_worker(body["token"])
    assert credential is not None and (credential.name, credential.models) == ("rack-7", ("llama-*",))
    assert LogEntry.objects.get().user == charlie


def test_a_token_without_a_word_is_for_any_model(staff: ApiClient) -> None:
    made = staff.post("/worker-tokens").json()

    assert (made["name"], made["models"], made["expires_at"]) == ("worker", ["*"], None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "\n"), ("models", []), ("models", "llama-*"), ("expires_at", "2020-01-01T00:00:00Z"), ("digest", "0")],
)
def test_a_token_that_cannot_be_is_refused_by_name(staff: ApiClient, field: str, value: Any) -> None:
    assert set(refused(staff.post("/worker-tokens", {field: value}), 400, "invalid")["fields"]) == {field}
    assert not WorkerToken.objects.exists()


def test_to_delete_a_token_is_to_revoke_it_and_to_do_it_twice_changes_nothing(staff: ApiClient) -> None:
    token, secret = make_worker_token()

    assert [staff.delete(f"/worker-tokens/{token.pk}").status_code for _ in range(2)] == [204, 204]

    assert authenticate_worker(secret) is None
    assert LogEntry.objects.count() == 1
    refused(staff.delete(f"/worker-tokens/{token.pk + 1}"), 404, "not_found")
    refused(staff.delete(f"/worker-tokens/{2**70}"), 404, "not_found")


def test_tokens_are_found_by_state(staff: ApiClient) -> None:
    make_worker_token(name="live")
    make_worker_token(name="old", expires_at=timezone.now() - timedelta(1))
    revoke_worker_token(token=make_worker_token(name="gone")[0])

    def names(**query: Any) -> list[str]:
        return [token["name"] for token in staff.get("/worker-tokens", **query).json()["results"]]

    assert names(ordering="name") == ["gone", "live", "old"]
    assert (names(state="live"), names(state="expired"), names(state="revoked")) == (["live"], ["old"], ["gone"])


def test_api5_worker_tokens_are_for_staff(api: ApiClient, staff: ApiClient) -> None:
    token, secret = make_worker_token()

    for method, path in (
        ("GET", "/worker-tokens"),
        ("POST", "/worker-tokens"),
        ("DELETE", f"/worker-tokens/{token.pk}"),
    ):
        refused(api.ask(method, path), 403, "permission_denied")
        assert ApiClient().ask(method, path).status_code == 401
        assert ApiClient().ask(method, path, Authorization=f"Bearer {secret}").status_code == 401
    for method in ("GET", "POST", "TRACE"):
        refused(staff.ask(method, f"/worker-tokens/{token.pk}"), 405, "method_not_allowed")
    token.refresh_from_db()
    assert token.revoked_at is None
