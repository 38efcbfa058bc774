"""A key that gets a new secret: for a while two of them open the door, then one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils import timezone

from accounts.keyring import Keyring
from accounts.models import ApiKey, User
from accounts.services import UnableToRotate, create_key, revoke_key, rotate_key
from gpucloud.lib.dbthread import DatabaseThread
from tests.factories import make_user

pytestmark = pytest.mark.django_db(transaction=True)

HOUR_S = 3600.0


@pytest.fixture
def alice() -> User:
    return make_user("alice")


class Door:
    """Nodes that have just started, at any time of the day."""

    def __init__(self, elsewhere: DatabaseThread) -> None:
        self.elsewhere = elsewhere

    async def opens(self, secret: str, *, in_s: float = 0.0) -> bool:
        """Tell whether a secret is let in, some seconds from now."""
        at_s = timezone.now().timestamp() + in_s
        keyring = Keyring(pepper=settings.KEY_PEPPER.encode(), clock=lambda: at_s, poll_s=3600)
        await keyring.start()
        try:
            return await keyring.resolve(secret.encode()) is not None
        finally:
            await keyring.stop()

    async def rotate(self, key: ApiKey, overlap_s: float = HOUR_S) -> str:
        return await self.elsewhere.run(rotate_key, key=key, overlap=timedelta(seconds=overlap_s))


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    elsewhere = DatabaseThread("elsewhere")
    yield Door(elsewhere)
    await elsewhere.stop()


@pytest.fixture
def key(alice: User) -> tuple[ApiKey, str]:
    return create_key(user=alice, test=True)


Key = tuple[ApiKey, str]


async def test_both_secrets_work_until_the_stated_time_and_then_only_the_new_one(door: Door, key: Key) -> None:
    row, old = key

    new = await door.rotate(row)

    assert new.startswith("sk-test-") and new != old
    assert row.masked.startswith(new[:16]) and row.previous_masked.startswith(old[:16])
    assert [await door.opens(secret, in_s=HOUR_S - 5) for secret in (old, new)] == [True, True]
    assert [await door.opens(secret, in_s=HOUR_S + 5) for secret in (old, new)] == [False, True]


async def test_a_rotation_without_overlap_ends_the_old_secret_at_once(door: Door, key: Key) -> None:
    row, old = key

    new = await door.rotate(row, overlap_s=0)

    assert [await door.opens(secret) for secret in (old, new)] == [False, True]


async def test_a_second_rotation_leaves_two_live_secrets_and_no_third(door: Door, key: Key) -> None:
    row, first = key

    second = await door.rotate(row)
    third = await door.rotate(row)

    assert [await door.opens(secret) for secret in (first, second, third)] == [False, True, True]


async def test_an_expiry_of_the_key_ends_both_secrets(door: Door, key: Key) -> None:
    row, old = key
    new = await door.rotate(row)

    in_a_minute = timezone.now() + timedelta(seconds=60)
    await door.elsewhere.run(ApiKey.objects.filter(pk=row.pk).update, expires_at=in_a_minute)

    assert [await door.opens(secret, in_s=55) for secret in (old, new)] == [True, True]
    assert [await door.opens(secret, in_s=65) for secret in (old, new)] == [False, False]


async def test_a_node_that_knows_the_old_secret_learns_of_its_end_and_of_a_revocation(door: Door, key: Key) -> None:
    row, old = key
    now_s = timezone.now().timestamp()
    keyring = Keyring(pepper=settings.KEY_PEPPER.encode(), clock=lambda: now_s, poll_s=3600)
    await keyring.start()
    assert await keyring.resolve(old.encode()) is not None

    new = await door.rotate(row)
    await keyring.poll()
    known = [await keyring.resolve(secret.encode()) for secret in (old, new)]
    await door.elsewhere.run(revoke_key, key=row)
    await keyring.poll()
    afterwards = [await keyring.resolve(secret.encode()) for secret in (old, new)]
    await keyring.stop()

    assert [identity and identity.key_id for identity in known] == [row.pk, row.pk]
    assert afterwards == [None, None]


def test_a_key_that_is_revoked_or_expired_gets_no_new_secret(alice: User) -> None:
    revoked, _ = create_key(user=alice)
    revoke_key(key=revoked)
    expired, _ = create_key(user=alice)
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(seconds=1))

    for key in (revoked, expired):
        with pytest.raises(UnableToRotate):
            rotate_key(key=key)


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=31)])
def test_an_overlap_has_bounds(alice: User, overlap: timedelta) -> None:
    key, _ = create_key(user=alice)

    with pytest.raises(ValidationError) as refused:
        rotate_key(key=key, overlap=overlap)

    assert "30 days" in refused.value.messages[0]
