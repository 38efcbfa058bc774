from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from accounts.models import User
from cluster.models import Worker, WorkerToken
from cluster.services import create_worker_token, record_worker_joined
from tests.factories import PASSWORD, make_worker_spec

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client, charlie: User) -> Client:
    client.force_login(charlie)
    return client


@pytest.mark.parametrize("page", ["changelist", "change"])
def test_no_page_shows_a_secret_or_a_digest(operator: Client, page: str) -> None:
    token, secret = create_worker_token()
    args = [token.pk] if page == "change" else []

    html = operator.get(reverse(f"admin:cluster_workertoken_{page}", args=args)).content.decode()

    assert token.masked in html
    assert secret not in html
    assert token.digest not in html


def test_revoking_selected_tokens_goes_through_the_service_and_is_logged(operator: Client, charlie: User) -> None:
    token, _ = create_worker_token()

    fields = {"action": "revoke_selected", "_selected_action": [token.pk]}
    operator.post(reverse("admin:cluster_workertoken_changelist"), fields)

    token.refresh_from_db()
    assert token.revoked_at is not None
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (charlie, str(token.pk), "Revoked.")


def test_the_models_of_a_token_can_be_narrowed(operator: Client) -> None:
    token, _ = create_worker_token()
    url = reverse("admin:cluster_workertoken_change", args=[token.pk])

    assert operator.post(url, {"name": "rack", "models": '["llama-*"]'}).status_code == 302
    token.refresh_from_db()
    assert token.models == ["llama-*"]

    refused = operator.post(url, {"name": "rack", "models": '"llama-*"'})
    assert "Expected a list" in refused.content.decode()


def test_workers_can_be_read_and_nothing_else(operator: Client) -> None:
    record_worker_joined(spec=make_worker_spec(), token_id=None)
    url = reverse("admin:cluster_worker_change", args=["wrk_1"])

    assert "H100" in operator.get(url).content.decode()
    assert operator.post(url, {"name": "mine"}).status_code == 403
    assert operator.get(reverse("admin:cluster_worker_add")).status_code == 403
    assert Worker.objects.get().name == "h100-1"


WANTED = [
    ("cordon_selected", ("cordoned", ""), "Cordoned.", "Workers cordoned: 1."),
    ("drain_selected", ("draining", ""), "Drained.", "Workers to drain: 1."),
    ("evict_selected", ("none", "lnk_1"), "Evicted.", "Workers to evict: 1."),
]


@pytest.mark.parametrize(("action", "row", "entry", "message"), WANTED)
def test_an_action_writes_what_is_wanted_of_a_worker_and_logs_it_once(
    operator: Client, charlie: User, action: str, row: tuple[str, str], entry: str, message: str
) -> None:
    record_worker_joined(spec=make_worker_spec(), token_id=None, link="lnk_1")

    first, second = _act(operator, action), _act(operator, action)

    worker = Worker.objects.get()
    assert (worker.intent, worker.evict_link) == row
    assert message in first
    assert message.replace(": 1", ": 0") in second
    logged = LogEntry.objects.get()
    assert (logged.user, logged.object_id, logged.change_message) == (charlie, "wrk_1", entry)


def test_a_cordon_can_be_taken_back(operator: Client) -> None:
    record_worker_joined(spec=make_worker_spec(), token_id=None)

    _act(operator, "cordon_selected")
    html = _act(operator, "uncordon_selected")

    assert "Workers uncordoned: 1." in html
    assert Worker.objects.get().intent == "none"


def test_staff_who_may_only_look_at_workers_are_offered_no_action(client: Client) -> None:
    onlooker = User.objects.create_user("dora@example.com", PASSWORD, is_staff=True)
    onlooker.user_permissions.add(Permission.objects.get(codename="view_worker"))
    client.force_login(onlooker)
    record_worker_joined(spec=make_worker_spec(), token_id=None)

    html = _act(client, "cordon_selected")

    assert "h100-1" in html and "cordon_selected" not in html
    assert Worker.objects.get().intent == "none"


def test_nothing_can_be_deleted_and_no_token_added(operator: Client) -> None:
    token, _ = create_worker_token()
    record_worker_joined(spec=make_worker_spec(), token_id=token.pk)

    for url in (
        reverse("admin:cluster_workertoken_delete", args=[token.pk]),
        reverse("admin:cluster_worker_delete", args=["wrk_1"]),
    ):
        assert operator.post(url, {"post": "yes"}).status_code == 403
    assert operator.get(reverse("admin:cluster_workertoken_add")).status_code == 403
    assert WorkerToken.objects.exists() and Worker.objects.exists()


def _act(client: Client, action: str) -> str:
    """Run an action on the one worker and return the page that comes after it."""
    fields = {"action": action, "_selected_action": ["wrk_1"]}
    return client.post(reverse("admin:cluster_worker_changelist"), fields, follow=True).content.decode()
