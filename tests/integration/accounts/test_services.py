from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth import authenticate
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection
from django.utils import timezone

from accounts.models import ApiKey, Tier, User
from accounts.selectors import get_key, get_user, list_key_rows, list_keys
from accounts.services import TIERS, create_key, create_user, ensure_user, revoke_key, save_key
from cluster import domain
from tests.factories import PASSWORD

pytestmark = pytest.mark.django_db


def test_an_address_is_stored_in_lower_case_and_found_in_any() -> None:
    user = create_user(email=" Alice@Example.COM ", password=PASSWORD)

    assert user.email == "alice@example.com"
    assert get_user(email="ALICE@example.com") == user
    assert authenticate(username="aLiCe@example.com", password=PASSWORD) == user


def test_an_address_is_taken_in_any_case(alice: User) -> None:
    with pytest.raises(ValidationError, match="taken"):
        create_user(email="ALICE@EXAMPLE.COM")


def test_the_database_itself_refuses_an_address_with_capitals(alice: User) -> None:
    with pytest.raises(IntegrityError):
        User.objects.filter(pk=alice.pk).update(email="Alice@example.com")


@pytest.mark.parametrize(
    "email", ["", "alice", "a@b", "a b@example.com", "a\0@example.com", "a" * 300 + "@example.com"]
)
def test_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(ValidationError):
        create_user(email=email)

    assert not User.objects.exists()


def test_a_user_without_a_password_cannot_log_in() -> None:
    user, created = ensure_user(email="bob@example.com")

    assert created
    assert not user.has_usable_password()
    assert authenticate(username="bob@example.com", password="") is None


def test_ensuring_a_user_twice_gives_the_same_one(alice: User) -> None:
    assert ensure_user(email="Alice@Example.com") == (alice, False)


def test_ensuring_a_user_whom_somebody_else_creates_meanwhile_gives_theirs(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, alice])
    monkeypatch.setattr("accounts.services.get_user", lambda email: next(answers))

    assert ensure_user(email="alice@example.com") == (alice, False)


def test_a_superuser_is_staff(charlie: User) -> None:
    assert charlie.is_staff and charlie.is_superuser


def test_a_new_key_stores_no_secret(alice: User) -> None:
    key, secret = create_key(user=alice)

    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM accounts_apikey")
        stored = repr(cursor.fetchall())
    assert secret not in stored
    assert secret[11:40] not in stored
    assert secret not in repr(key) + str(key) + repr(vars(key))
    assert (key.prefix, key.last4) == (secret[:11], secret[-4:])


def test_a_new_key_has_the_defaults_of_the_product(alice: User) -> None:
    key, _ = create_key(user=alice)
    key.refresh_from_db()

    assert (key.tier, key.requests_per_minute, key.expires_at, key.revoked_at) == ("default", 60, None, None)
    assert key.is_live(timezone.now())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tier", "gold"),
        ("requests_per_minute", -1),
        ("requests_per_minute", 10**9),
        ("name", " "),
        ("name", "a\nb"),
        ("name", "a\0b"),
        ("name", "x" * 101),
    ],
)
def test_a_key_with_a_bad_value_is_refused_with_the_field_named(alice: User, field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        create_key(user=alice, **{field: value})  # type: ignore[arg-type]

    assert set(caught.value.message_dict) == {field}
    assert not ApiKey.objects.exists()


def test_a_key_s_own_tier_is_the_highest_it_may_use_unless_told_otherwise(alice: User) -> None:
    plain, _ = create_key(user=alice, tier="flex")
    climber, _ = create_key(user=alice, tier="flex", highest_tier="priority")

    assert (plain.highest_tier, climber.highest_tier) == ("flex", "priority")


def test_a_default_tier_above_the_highest_is_refused(alice: User) -> None:
    with pytest.raises(ValidationError, match="cannot be above the highest tier, which is flex"):
        create_key(user=alice, tier="priority", highest_tier="flex")


def test_the_database_itself_refuses_an_unknown_tier(alice: User) -> None:
    key, _ = create_key(user=alice)

    with pytest.raises(IntegrityError):
        ApiKey.objects.filter(pk=key.pk).update(tier="gold")


def test_the_tiers_of_keys_are_those_of_the_cluster() -> None:
    assert list(TIERS) == [tier.word for tier in domain.Tier] == Tier.values


def test_revoking_twice_keeps_the_first_time(alice: User) -> None:
    key, _ = create_key(user=alice)

    assert revoke_key(key=key)
    first = key.revoked_at
    assert first is not None
    assert not revoke_key(key=key)

    key.refresh_from_db()
    assert key.revoked_at == first
    assert not key.is_live(timezone.now())


def test_a_key_is_live_until_it_expires(alice: User) -> None:
    now = timezone.now()
    key, _ = create_key(user=alice, expires_at=now)

    assert not key.is_live(now)
    assert key.is_live(now - timedelta(microseconds=1))


def test_saving_a_key_does_not_bring_a_revoked_one_back(alice: User) -> None:
    key, _ = create_key(user=alice)
    stale = ApiKey.objects.get(pk=key.pk)
    revoke_key(key=key)

    stale.name = "renamed"
    save_key(key=stale)

    key.refresh_from_db()
    assert key.name == "renamed"
    assert key.revoked_at is not None


def test_nobody_gets_the_key_of_somebody_else(alice: User, bob: User) -> None:
    key, _ = create_key(user=alice)

    assert get_key(user=alice, key_id=key.pk) == key
    assert get_key(user=bob, key_id=key.pk) is None
    assert list(list_keys(user=bob)) == []


def test_rows_are_read_in_chunks_and_unknown_prefixes_left_out(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accounts.selectors.CHUNK_ROWS", 2)
    prefixes = [create_key(user=alice)[0].prefix for _ in range(5)]

    assert {row.prefix for row in list_key_rows([*prefixes, "sk-unknown0"])} == set(prefixes)
    assert list_key_rows([]) == []
