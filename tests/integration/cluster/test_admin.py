from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from accounts.models import User
from cluster.models import Worker, WorkerToken
from cluster.services import create_worker_token, record_worker_joined
from tests.factories import make_worker_spec

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
