"""The keyring over real rows: what is written anywhere is noticed everywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from accounts.keyring import Identity, Keyring, Refused
from accounts.limits import Limits
from accounts.models import ApiKey, User
from accounts.selectors import KeyRow, list_key_rows, read_data_version
from accounts.services import create_key, mark_keys_used, revoke_key, save_key, save_user
from gpucloud.lib.dbthread import DatabaseThread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def keyring() -> AsyncIterator[Keyring]:
    ring = Keyring(pepper=settings.KEY_PEPPER.encode(), poll_s=3600)
    await ring.start()
    yield ring
    await ring.stop()


@pytest.fixture
async def elsewhere() -> AsyncIterator[DatabaseThread]:
    """Where the writes of this test's other parties happen."""
    thread = DatabaseThread("elsewhere")
    yield thread
    await thread.stop()


@pytest.fixture
def key(alice: User) -> tuple[ApiKey, bytes]:
    row, secret = create_key(user=alice, name="laptop", tier="flex", requests_per_minute=5)
    return row, secret.encode()


Key = tuple[ApiKey, bytes]


def peek(keyring: Keyring, secret: bytes) -> Identity | Refused | None:
    return keyring.peek(secret, timezone.now().timestamp())


async def test_a_key_is_resolved_to_its_user_and_terms(keyring: Keyring, key: Key, alice: User) -> None:
    row, secret = key

    assert await keyring.resolve(secret) == Identity(
        key_id=row.pk,
        user_id=alice.pk,
        tenant=f"u:{alice.pk}",
        tenant_label="alice@example.com",
        key_label="laptop",
        prefix=row.prefix,
        tier="flex",
        highest_tier="flex",
        limits=Limits(requests_per_minute=5),
    )


def _by_queryset(row: ApiKey) -> None:
    ApiKey.objects.filter(pk=row.pk).update(revoked_at=timezone.now())


def _by_sql_on_a_connection_of_its_own(row: ApiKey) -> None:
    outsider = connection.copy()
    with outsider.cursor() as cursor:
        cursor.execute("UPDATE accounts_apikey SET revoked_at = created_at WHERE id = %s", [row.pk])
    outsider.close()


def _by_switching_the_user_off(row: ApiKey) -> None:
    User.objects.filter(pk=row.user_id).update(is_active=False)


def _by_expiry(row: ApiKey) -> None:
    ApiKey.objects.filter(pk=row.pk).update(expires_at=timezone.now() - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("write", "refused"),
    [
        (_by_queryset, Refused.REVOKED),
        (_by_sql_on_a_connection_of_its_own, Refused.REVOKED),
        (_by_switching_the_user_off, Refused.INACTIVE),
        (_by_expiry, Refused.EXPIRED),
    ],
)
async def test_a_write_that_passes_no_service_is_noticed_by_one_poll(
    keyring: Keyring, key: Key, write: Callable[[ApiKey], None], refused: Refused, elsewhere: DatabaseThread
) -> None:
    row, secret = key
    await keyring.resolve(secret)
    await keyring.poll()

    await elsewhere.run(write, row)
    assert isinstance(peek(keyring, secret), Identity)
    await keyring.poll()

    assert peek(keyring, secret) is refused


async def test_a_key_revoked_by_the_service_is_refused_at_once(
    keyring: Keyring, key: Key, elsewhere: DatabaseThread
) -> None:
    row, secret = key
    await keyring.resolve(secret)

    await elsewhere.run(revoke_key, key=row)

    assert peek(keyring, secret) is None
    assert await keyring.resolve(secret) is None
    assert peek(keyring, secret) is Refused.REVOKED


async def test_a_user_switched_off_by_the_service_is_refused_at_once(
    keyring: Keyring, key: Key, alice: User, elsewhere: DatabaseThread
) -> None:
    _, secret = key
    await keyring.resolve(secret)

    alice.is_active = False
    await elsewhere.run(save_user, user=alice)

    assert await keyring.resolve(secret) is None


async def test_new_terms_set_by_the_service_hold_at_once(keyring: Keyring, key: Key, elsewhere: DatabaseThread) -> None:
    row, secret = key
    await keyring.resolve(secret)

    row.requests_per_minute = 1
    await elsewhere.run(save_key, key=row)

    found = await keyring.resolve(secret)
    assert found is not None and found.limits.requests_per_minute == 1


async def test_a_revocation_that_is_rolled_back_revokes_nothing(
    keyring: Keyring, key: Key, elsewhere: DatabaseThread
) -> None:
    row, secret = key
    await keyring.resolve(secret)

    def revoke_and_fail() -> None:
        with transaction.atomic():
            revoke_key(key=row)
            transaction.set_rollback(True)

    await elsewhere.run(revoke_and_fail)
    await keyring.poll()

    assert isinstance(peek(keyring, secret), Identity)


async def test_after_a_rotation_of_the_pepper_no_key_is_known(key: Key) -> None:
    _, secret = key
    ring = Keyring(pepper=b"a new pepper")

    assert await ring.resolve(secret) is None
    await ring.stop()


async def test_a_poll_writes_when_the_key_was_last_used(keyring: Keyring, key: Key, elsewhere: DatabaseThread) -> None:
    row, secret = key
    before = timezone.now()
    await keyring.resolve(secret)

    await keyring.poll()

    await elsewhere.run(row.refresh_from_db)
    assert row.last_used_at is not None and before <= row.last_used_at <= timezone.now()


def test_a_use_is_not_written_within_a_minute_of_the_last(key: Key) -> None:
    row, _ = key
    start_s = timezone.now().timestamp()

    def written_s(used_at_s: float) -> float:
        mark_keys_used({row.pk: used_at_s}, used_at_s)
        row.refresh_from_db()
        assert row.last_used_at is not None
        return row.last_used_at.timestamp() - start_s

    assert written_s(start_s) == pytest.approx(0, abs=1e-3)
    assert written_s(start_s + 59) == pytest.approx(0, abs=1e-3)
    assert written_s(start_s + 60.001) == pytest.approx(60.001, abs=1e-3)


async def test_the_version_moves_by_commits_of_others_only(alice: User, elsewhere: DatabaseThread) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the version is SQLite's")
    thread = DatabaseThread("test")

    def write(is_staff: bool) -> None:
        User.objects.filter(pk=alice.pk).update(is_staff=is_staff)

    first = await thread.run(read_data_version)
    await thread.run(write, True)
    assert await thread.run(read_data_version) == first

    await elsewhere.run(write, False)
    assert await thread.run(read_data_version) != first
    await thread.stop()


async def test_a_stopped_keyring_leaves_no_connection_behind(key: Key) -> None:
    _, secret = key
    seen: list[BaseDatabaseWrapper] = []

    def read(prefixes: Sequence[str]) -> list[KeyRow]:
        seen.append(connections["default"])
        return list_key_rows(prefixes)

    ring = Keyring(pepper=settings.KEY_PEPPER.encode(), read=read, poll_s=3600)
    await ring.start()
    assert await ring.resolve(secret) is not None
    await ring.stop()

    assert [one.connection for one in seen] == [None]
