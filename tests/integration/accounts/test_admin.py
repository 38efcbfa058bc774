from __future__ import annotations

import re

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from accounts.models import ApiKey, User
from accounts.services import create_key
from tests.factories import PASSWORD

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client, charlie: User) -> Client:
    client.force_login(charlie)
    return client


def test_a_user_who_is_not_staff_does_not_come_in(client: Client, alice: User) -> None:
    client.force_login(alice)

    assert client.get(reverse("admin:accounts_apikey_changelist")).status_code == 302


def test_an_operator_logs_in_by_email(client: Client, charlie: User) -> None:
    answer = client.post(reverse("admin:login"), {"username": "CHARLIE@example.com", "password": PASSWORD, "next": "/"})

    assert answer.status_code == 302


def test_an_operator_adds_a_user_by_email(operator: Client) -> None:
    fields = {"email": "Dora@Example.com", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}
    assert "username" not in operator.get(reverse("admin:accounts_user_add")).content.decode().lower()

    answer = operator.post(reverse("admin:accounts_user_add"), fields)

    assert answer.status_code == 302
    assert User.objects.get(email="dora@example.com").check_password(PASSWORD)


def test_an_address_that_is_taken_in_another_case_is_a_form_error(operator: Client, alice: User) -> None:
    fields = {"email": "ALICE@example.com", "usable_password": "true", "password1": PASSWORD, "password2": PASSWORD}

    answer = operator.post(reverse("admin:accounts_user_add"), fields)

    assert "This address is taken." in answer.content.decode()


def test_switching_a_user_off_tells_the_keyrings(
    operator: Client, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = create_key(user=alice)
    forgotten: list[str] = []
    monkeypatch.setattr("accounts.services.forget_on_commit", forgotten.extend)

    answer = operator.post(reverse("admin:accounts_user_change", args=[alice.pk]), {"email": alice.email})

    assert answer.status_code == 302
    alice.refresh_from_db()
    assert not alice.is_active
    assert forgotten == [key.prefix]


@pytest.mark.parametrize("page", ["changelist", "change"])
def test_no_page_shows_a_secret_or_a_digest(operator: Client, alice: User, page: str) -> None:
    key, secret = create_key(user=alice)
    args = [key.pk] if page == "change" else []

    html = operator.get(reverse(f"admin:accounts_apikey_{page}", args=args)).content.decode()

    assert key.masked in html
    assert secret not in html
    assert key.digest not in html


def test_a_key_is_found_by_its_prefix_its_end_and_its_owner(operator: Client, alice: User, bob: User) -> None:
    key, _ = create_key(user=alice)
    create_key(user=bob)

    for words in (key.prefix, key.last4, "alice@example.com"):
        html = operator.get(reverse("admin:accounts_apikey_changelist"), {"q": words}).content.decode()
        assert key.masked in html
        assert "bob@example.com" not in re.sub(r"(?s)<nav.*?</nav>", "", html)


def test_the_filter_tells_revoked_keys_from_the_others(operator: Client, alice: User) -> None:
    live, _ = create_key(user=alice)
    dead, _ = create_key(user=alice)
    _revoke(operator, dead)

    shown = {
        choice: operator.get(reverse("admin:accounts_apikey_changelist"), {"revoked": choice}).content.decode()
        for choice in ("no", "yes")
    }

    assert live.masked in shown["no"] and dead.masked not in shown["no"]
    assert dead.masked in shown["yes"] and live.masked not in shown["yes"]


def test_revoking_selected_keys_goes_through_the_service_and_is_logged(
    operator: Client, alice: User, charlie: User
) -> None:
    key, _ = create_key(user=alice)

    _revoke(operator, key)
    _revoke(operator, key)

    key.refresh_from_db()
    assert key.revoked_at is not None
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (charlie, str(key.pk), "Revoked.")


def test_the_terms_of_a_key_can_be_changed_but_not_its_owner(operator: Client, alice: User, bob: User) -> None:
    key, _ = create_key(user=alice)
    fields = {
        "name": "renamed",
        "tier": "batch",
        "highest_tier": "flex",
        "requests_per_minute": "7",
        "tokens_per_minute": "0",
        "concurrent_requests": "3",
        "max_tokens": "0",
        "monthly_tokens": "0",
        "models": '["llama-*"]',
        "user": bob.pk,
        "digest": "0" * 64,
    }

    operator.post(reverse("admin:accounts_apikey_change", args=[key.pk]), fields)

    digest = key.digest
    key.refresh_from_db()
    assert (key.name, key.tier, key.highest_tier, key.requests_per_minute) == ("renamed", "batch", "flex", 7)
    assert (key.user, key.digest) == (alice, digest)


def test_nothing_can_be_deleted_and_no_key_added(operator: Client, alice: User) -> None:
    key, _ = create_key(user=alice)

    assert operator.post(reverse("admin:accounts_apikey_delete", args=[key.pk]), {"post": "yes"}).status_code == 403
    assert operator.post(reverse("admin:accounts_user_delete", args=[alice.pk]), {"post": "yes"}).status_code == 403
    assert operator.get(reverse("admin:accounts_apikey_add")).status_code == 403
    assert "delete_selected" not in operator.get(reverse("admin:accounts_apikey_changelist")).content.decode()
    assert "delete_selected" not in operator.get(reverse("admin:accounts_user_changelist")).content.decode()
    assert ApiKey.objects.filter(pk=key.pk).exists()


def _revoke(operator: Client, key: ApiKey) -> None:
    operator.post(
        reverse("admin:accounts_apikey_changelist"), {"action": "revoke_selected", "_selected_action": [key.pk]}
    )
