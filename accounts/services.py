"""Every write of users and keys. Admin, REST, pages and commands all come through here.

Bad values raise Django's `ValidationError`, with a sentence per field. What changes who may pass
is told to this process's keyrings when it commits; the others see it by their poll.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.invalidation import forget_on_commit
from accounts.keys import make_key
from accounts.logins import end_logins
from accounts.models import ApiKey, Tier, User
from accounts.selectors import count_live_keys, get_user
from gpucloud.lib.audit import ADDITION, COMMAND, Actor, find_changes, record

TIERS: tuple[str, ...] = tuple(Tier.values)
DEFAULT_TIER: str = Tier.DEFAULT.value
DEFAULT_REQUESTS_PER_MINUTE = 60
MARK_EVERY_S = 60.0
"""A key's `last_used_at` is written at most this often."""
MAX_KEYS = 1_000
"""Live ones of one user."""
LONGEST_OVERLAP = timedelta(days=30)

TERMS = (
    "name",
    "tier",
    "highest_tier",
    "models",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "max_tokens",
    "monthly_tokens",
    "expires_at",
)
"""What of a key may be changed."""


class TooManyKeys(ValidationError):
    """The user has as many keys as anybody may have."""


class UnableToRotate(ValidationError):
    """The key is not in use any more: a new secret would let in whom the old one does not."""


def actor_of(user: User) -> Actor:
    """Return the user as one who acts."""
    return Actor(user.pk, user.email)


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


def save_user(*, user: User, actor: Actor = COMMAND) -> User:
    """Store a user that was changed; clearing `is_active` stops all of its keys and ends its logins to the API."""
    with transaction.atomic():
        before = User.objects.filter(pk=user.pk).first() if user.pk else None
        user.save()
        if before is None:
            record(actor=actor, row=user, did="Created.", action=ADDITION)
        elif changes := find_changes(before, user, ("email", "is_active", "is_staff", "is_superuser")):
            record(actor=actor, row=user, did="Changed:", changes=changes)
        if not user.is_active:
            end_logins(user=user)
        forget_on_commit(prefix for key in user.api_keys.all() for prefix in _prefixes(key))
    return user


def create_key(
    *,
    user: User,
    name: str = "default",
    tier: str = DEFAULT_TIER,
    highest_tier: str | None = None,
    requests_per_minute: int = DEFAULT_REQUESTS_PER_MINUTE,
    tokens_per_minute: int = 0,
    concurrent_requests: int = 0,
    max_tokens: int = 0,
    monthly_tokens: int = 0,
    models: Sequence[str] = ("*",),
    expires_at: datetime | None = None,
    test: bool = False,
    actor: Actor = COMMAND,
) -> tuple[ApiKey, str]:
    """Create a key and return it with its secret, which nothing can show again.

    Unless told otherwise the highest tier it may use is its default tier. A test key is served by
    simulated workers only. Raise `TooManyKeys` when the user has `MAX_KEYS` live ones.
    """
    secret = make_key(test=test)
    key = ApiKey(
        user=user,
        name=name.strip(),
        tier=tier,
        highest_tier=highest_tier or (tier if tier in TIERS else DEFAULT_TIER),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent_requests,
        max_tokens=max_tokens,
        monthly_tokens=monthly_tokens,
        models=list(models),
        expires_at=expires_at,
        test=test,
    )
    key.describe(secret, _pepper())
    key.full_clean()
    with transaction.atomic():
        # Whoever else makes a key for this user waits here, so that nobody counts what is not there yet.
        User.objects.select_for_update().filter(pk=user.pk).first()
        if count_live_keys(user=user) >= MAX_KEYS:
            raise TooManyKeys(
                f"{MAX_KEYS} keys are as many as one account may have: revoke some first.", "limit_reached"
            )
        key.save(force_insert=True)
        record(actor=actor, row=key, did="Created.", action=ADDITION)
    return key, secret


def save_key(*, key: ApiKey, actor: Actor = COMMAND) -> ApiKey:
    """Store a key of which some `TERMS` were changed."""
    key.full_clean()
    with transaction.atomic():
        changes = find_changes(ApiKey.objects.get(pk=key.pk), key, TERMS)
        if changes:
            key.save(update_fields=list(changes))
            record(actor=actor, row=key, did="Changed:", changes=changes)
        forget_on_commit(_prefixes(key))
    return key


def rotate_key(*, key: ApiKey, overlap: timedelta = timedelta(days=1), actor: Actor = COMMAND) -> str:
    """Give a key a new secret and return it; the one before lives on for `overlap`, and one before that ends now.

    Raise `UnableToRotate` for a key that is revoked or has expired.
    """
    if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
        raise ValidationError({"overlap": f"Expected 0 to {LONGEST_OVERLAP.days} days."})
    secret, now = make_key(test=key.test), timezone.now()
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().get(pk=key.pk)
        if not row.is_live(now):
            raise UnableToRotate("This key is revoked or has expired. Make a new one.", "not_live")
        forgotten = _prefixes(row)
        row.previous_prefix, row.previous_digest, row.previous_last4 = row.prefix, row.digest, row.last4
        row.previous_until = now + overlap
        row.describe(secret, _pepper())
        row.save(update_fields=[*_SECRET_FIELDS, *(f"previous_{name}" for name in _SECRET_FIELDS), "previous_until"])
        until = f"{row.previous_until:%Y-%m-%d %H:%M} UTC"
        record(actor=actor, row=row, did=f"Rotated; the secret before works until {until}.")
        forget_on_commit({*forgotten, *_prefixes(row)})
    key.refresh_from_db()
    return secret


def revoke_key(*, key: ApiKey, actor: Actor = COMMAND) -> bool:
    """Refuse a key from now on, for good; return whether it was not revoked before."""
    with transaction.atomic():
        revoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
        if revoked:
            record(actor=actor, row=key, did="Revoked.")
        forget_on_commit(_prefixes(key))
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


def _prefixes(key: ApiKey) -> list[str]:
    return [prefix for prefix in (key.prefix, key.previous_prefix) if prefix]


def _pepper() -> bytes:
    return settings.KEY_PEPPER.encode()


_SECRET_FIELDS = ("prefix", "digest", "last4")
