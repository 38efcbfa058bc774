"""Reads of users and keys. Async code gets frozen structs; sync code may get rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from django.db import connection
from django.db.models import QuerySet

from accounts.models import ApiKey, User, normalize_email

CHUNK_ROWS = 500


class KeyRow(msgspec.Struct, frozen=True):
    """All that decides whether a key may pass, and for whom: `_KEY_COLUMNS`, in their order."""

    key_id: int
    prefix: str
    digest: str
    name: str
    tier: str
    highest_tier: str
    requests_per_minute: int
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
    "requests_per_minute",
    "user_id",
    "user__email",
    "user__is_active",
    "revoked_at",
    "expires_at",
)


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


def list_key_rows(prefixes: Sequence[str]) -> list[KeyRow]:
    """Return what is stored under these prefixes; an unknown one is left out."""
    rows: list[KeyRow] = []
    for start in range(0, len(prefixes), CHUNK_ROWS):
        chunk = prefixes[start : start + CHUNK_ROWS]
        found = ApiKey.objects.filter(prefix__in=chunk).order_by().values_list(*_KEY_COLUMNS)
        rows.extend(KeyRow(*columns) for columns in found)
    return rows


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
