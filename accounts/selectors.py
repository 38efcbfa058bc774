"""Reads of users and keys. Async code gets frozen structs; sync code may get rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec
from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.models import ApiKey, User, normalize_email

CHUNK_ROWS = 500


class KeyRow(msgspec.Struct, frozen=True):
    """All that decides whether the holder of a secret may pass, and on which terms.

    A key that was rotated has two for a while, which differ in prefix, digest and expiry.
    """

    key_id: int
    prefix: str
    digest: str
    name: str
    tier: str
    highest_tier: str
    test: bool
    models: list[str]
    requests_per_minute: int
    tokens_per_minute: int
    concurrent_requests: int
    max_tokens: int
    monthly_tokens: int
    user_id: int
    email: str
    user_is_active: bool
    revoked_at: datetime | None
    expires_at: datetime | None


_KEY_COLUMNS = (
    "pk",
    "prefix",
    "digest",
    "name",
    "tier",
    "highest_tier",
    "test",
    "models",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "max_tokens",
    "monthly_tokens",
    "user_id",
    "user__email",
    "user__is_active",
    "revoked_at",
    "expires_at",
)
"""What a `KeyRow` is made of, in its order."""
_PREVIOUS_COLUMNS = ("previous_prefix", "previous_digest", "previous_until")


def tenant_of(user_id: int) -> str:
    """Return the opaque name under which the cluster knows a user."""
    return f"u:{user_id}"


def get_user(*, email: str) -> User | None:
    """Return the user with this address, in any case."""
    return User.objects.filter(email=normalize_email(email)).first()


def get_key(*, user: User, key_id: int) -> ApiKey | None:
    """Return a user's own key."""
    return ApiKey.objects.filter(user=user, pk=key_id).first()


def list_keys(*, user: User) -> QuerySet[ApiKey]:
    """Return a user's keys, the newest first."""
    return ApiKey.objects.filter(user=user)


def search_keys(
    *, user: User, state: str | None = None, test: bool | None = None, name: str | None = None
) -> QuerySet[ApiKey]:
    """Return those of a user's keys that match everything given, the newest first.

    `state` is `live`, `expired` or `revoked`, `name` a part of the key's name in any case.
    """
    keys = list_keys(user=user)
    match state:
        case "live":
            keys = keys.filter(_not_expired(), revoked_at=None)
        case "expired":
            keys = keys.filter(~_not_expired(), revoked_at=None)
        case "revoked":
            keys = keys.exclude(revoked_at=None)
    if test is not None:
        keys = keys.filter(test=test)
    return keys.filter(name__icontains=name) if name else keys


def get_key_names(key_ids: Collection[int]) -> dict[int, str]:
    """Return the names of these keys, whosever they are, by id."""
    return dict(ApiKey.objects.filter(pk__in=key_ids).order_by().values_list("pk", "name"))


def list_key_rows(prefixes: Sequence[str]) -> list[KeyRow]:
    """Return what is stored under these prefixes; an unknown one is left out."""
    rows: list[KeyRow] = []
    for start in range(0, len(prefixes), CHUNK_ROWS):
        chunk = set(prefixes[start : start + CHUNK_ROWS])
        asked = Q(prefix__in=chunk) | Q(previous_prefix__in=chunk)
        found = ApiKey.objects.filter(asked).order_by().values_list(*_KEY_COLUMNS, *_PREVIOUS_COLUMNS)
        for *columns, prefix, digest, until in found:
            row = KeyRow(*columns)
            if row.prefix in chunk:
                rows.append(row)
            if prefix in chunk:
                ends_at = until if row.expires_at is None else min(until, row.expires_at)
                rows.append(msgspec.structs.replace(row, prefix=prefix, digest=digest, expires_at=ends_at))
    return rows


def count_live_keys(*, user: User) -> int:
    """Return how many keys of a user are neither revoked nor expired."""
    return ApiKey.objects.filter(_not_expired(), user=user, revoked_at=None).count()


def read_data_version() -> int | None:
    """Return a number that moves when another connection commits; None where there is none.

    It is SQLite's `PRAGMA data_version`: it never moves for the connection's own commits, and
    two readings compare only on one connection.
    """
    if connection.vendor != "sqlite":
        return None
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA data_version")
        return int(cursor.fetchone()[0])


def _not_expired() -> Q:
    return Q(expires_at=None) | Q(expires_at__gt=timezone.now())
