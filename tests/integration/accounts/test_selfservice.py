from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone

from accounts.models import ApiKey, User
from accounts.selectors import get_key_names, search_keys
from accounts.selfservice import UnableToChange, change_own_key, create_own_key
from accounts.services import TooManyKeys, create_key, revoke_key

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def ceiling(settings: Any) -> dict[str, Any]:
    """What people may give keys of their own in these tests."""
    settings.SELF_SERVICE = {"highest_tier": "default", "requests_per_minute": 600}
    return settings.SELF_SERVICE


def test_a_key_of_ones_own_has_the_defaults_of_the_product(alice: User) -> None:
    key, secret = create_own_key(user=alice, terms={"name": "laptop"})

    assert secret.startswith("sk-")
    assert (key.user, key.name, key.tier, key.highest_tier, key.requests_per_minute) == (
        alice,
        "laptop",
        "default",
        "default",
        60,
    )


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("highest_tier", "priority"),
        ("requests_per_minute", 601),
        ("requests_per_minute", 0),
    ],
)
def test_nobody_gives_a_key_of_their_own_more_than_the_ceiling(alice: User, term: str, value: Any) -> None:
    key, _ = create_key(user=alice)

    with pytest.raises(ValidationError, match="for an operator to grant") as created:
        create_own_key(user=alice, terms={term: value})
    with pytest.raises(ValidationError, match="for an operator to grant") as changed:
        change_own_key(user=alice, key_id=key.pk, terms={term: value})

    assert set(created.value.message_dict) == set(changed.value.message_dict) == {term}
    assert ApiKey.objects.count() == 1


def test_a_default_tier_above_the_ceiling_is_refused_too(alice: User) -> None:
    with pytest.raises(ValidationError) as caught:
        create_own_key(user=alice, terms={"tier": "priority"})

    assert set(caught.value.message_dict) == {"highest_tier"}


def test_staff_have_no_ceiling(charlie: User) -> None:
    key, _ = create_own_key(user=charlie, terms={"highest_tier": "priority", "requests_per_minute": 0})

    assert (key.highest_tier, key.requests_per_minute) == ("priority", 0)


def test_what_an_operator_has_granted_may_be_kept_and_lowered_but_not_raised(alice: User) -> None:
    key, _ = create_key(user=alice, highest_tier="priority", requests_per_minute=5_000)

    def change(**terms: Any) -> ApiKey | None:
        return change_own_key(user=alice, key_id=key.pk, terms=terms)

    assert change(name="kept", highest_tier="priority", requests_per_minute=5_000)
    with pytest.raises(ValidationError):
        change(requests_per_minute=5_001)
    assert change(requests_per_minute=4_000, highest_tier="default")
    with pytest.raises(ValidationError):
        change(highest_tier="priority")


def test_a_key_without_a_limit_may_be_given_any(alice: User) -> None:
    key, _ = create_key(user=alice, requests_per_minute=0)

    changed = change_own_key(user=alice, key_id=key.pk, terms={"requests_per_minute": 100_000})

    assert changed is not None and changed.requests_per_minute == 100_000


def test_a_ceiling_below_the_defaults_is_what_a_key_gets_that_asks_for_nothing(
    alice: User, ceiling: dict[str, Any]
) -> None:
    ceiling |= {"highest_tier": "flex", "requests_per_minute": 10, "tokens_per_minute": 1_000}

    key, _ = create_own_key(user=alice, terms={})

    assert (key.tier, key.highest_tier) == ("flex", "flex")
    assert (key.requests_per_minute, key.tokens_per_minute, key.concurrent_requests) == (10, 1_000, 0)


def test_nobody_changes_the_key_of_somebody_else(alice: User, bob: User) -> None:
    key, _ = create_key(user=alice, name="hers")

    assert change_own_key(user=bob, key_id=key.pk, terms={"name": "his"}) is None
    key.refresh_from_db()
    assert key.name == "hers"


def test_a_revoked_key_is_not_changed_any_more(alice: User) -> None:
    key, _ = create_key(user=alice)
    revoke_key(key=key)

    with pytest.raises(UnableToChange):
        change_own_key(user=alice, key_id=key.pk, terms={"name": "back"})


def test_keys_are_found_by_state_kind_and_part_of_the_name(alice: User, bob: User) -> None:
    live, _ = create_key(user=alice, name="Laptop")
    test, _ = create_key(user=alice, name="ci", test=True)
    expired, _ = create_key(user=alice, name="old laptop", expires_at=timezone.now() - timedelta(1))
    revoked, _ = create_key(user=alice, name="lost")
    revoke_key(key=revoked)
    create_key(user=bob, name="laptop")

    def found(**asked: Any) -> set[ApiKey]:
        return set(search_keys(user=alice, **asked))

    assert found() == {live, test, expired, revoked}
    assert found(state="live") == {live, test}
    assert found(state="expired") == {expired}
    assert found(state="revoked") == {revoked}
    assert found(test=True) == {test}
    assert found(name="LAPTOP") == {live, expired}
    assert found(name="laptop", state="live") == {live}
    assert found(name="%") == set()


def test_keys_have_names_for_those_who_know_their_ids(alice: User) -> None:
    key, _ = create_key(user=alice, name="laptop")

    assert get_key_names([key.pk, 0, 10**9]) == {key.pk: "laptop"}


@pytest.mark.django_db(transaction=True)
def test_those_who_make_keys_at_the_same_time_make_no_more_than_one_account_may_have(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.services.MAX_KEYS", 3)
    together = threading.Barrier(6)

    def make() -> bool:
        try:
            together.wait(10)
            create_own_key(user=alice, terms={})
        except TooManyKeys:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(6) as pool:
        made = [future.result() for future in [pool.submit(make) for _ in range(6)]]

    assert sum(made) == ApiKey.objects.count() == 3
