"""Every write of users and keys. Admin, REST, pages and commands all come through here.

Bad values raise Django's `ValidationError`, with a sentence per field. What changes who may pass
is told to this process's keyrings when it commits; the others see it by their poll.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.invalidation import forget_on_commit
from accounts.keys import make_key
from accounts.models import ApiKey, Tier, User
from accounts.selectors import get_user

TIERS: tuple[str, ...] = tuple(Tier.values)
DEFAULT_TIER: str = Tier.DEFAULT.value
DEFAULT_REQUESTS_PER_MINUTE = 60
MARK_EVERY_S = 60.0
"""A key's `last_used_at` is written at most this often."""


def create_user(*, email: str, password: str | None = None, is_staff: bool = False) -> User:
    """Create a user; without a password it can use keys but not log in."""
    return User.objects.create_user(email, password, is_staff=is_staff)


def ensure_user(*, email: str) -> tuple[User, bool]:
    """Return the user with this address, created without a password if need be, and whether it was."""
    if user := get_user(email=email):
        return user, False
    try:
        with transaction.atomic():
            return create_user(email=email), True
    except (IntegrityError, ValidationError):
        if user := get_user(email=email):  # somebody else created it in between
            return user, False
        raise


def save_user(*, user: User) -> User:
    """Store a user that was changed; clearing `is_active` stops all of its keys."""
    with transaction.atomic():
        user.save()
        if user.pk:
            forget_on_commit(user.api_keys.values_list("prefix", flat=True))
    return user


def create_key(
    *,
    user: User,
    name: str = "default",
    tier: str = DEFAULT_TIER,
    highest_tier: str | None = None,
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Create a key and return it with its secret, which nothing can show again.

    Unless told otherwise the highest tier it may use is its default tier.
    """
    secret = make_key()
    key = ApiKey(
        user=user,
        name=name.strip(),
        tier=tier,
        highest_tier=highest_tier or tier,
        requests_per_minute=requests_per_minute,
        expires_at=expires_at,
    )
    key.describe(secret, settings.KEY_PEPPER.encode())
    key.full_clean()
    key.save(force_insert=True)
    return key, secret


def save_key(*, key: ApiKey) -> ApiKey:
    """Store a key whose name, tiers, limit or expiry was changed."""
    key.full_clean()
    with transaction.atomic():
        key.save(update_fields=["name", "tier", "highest_tier", "requests_per_minute", "expires_at"])
        forget_on_commit([key.prefix])
    return key


def revoke_key(*, key: ApiKey) -> bool:
    """Refuse a key from now on, for good; return whether it was not revoked before."""
    with transaction.atomic():
        revoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
        forget_on_commit([key.prefix])
    key.refresh_from_db(fields=["revoked_at"])
    return bool(revoked)


def mark_keys_used(used_at_s: Mapping[int, float], now_s: float) -> None:
    """Write when keys (by id) were last used, but for those written less than a minute before `now_s`."""
    stale = datetime.fromtimestamp(now_s - MARK_EVERY_S, UTC)
    ApiKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lte=stale)).bulk_update(
        [ApiKey(pk=key_id, last_used_at=datetime.fromtimestamp(at_s, UTC)) for key_id, at_s in used_at_s.items()],
        ["last_used_at"],
        batch_size=200,
    )
