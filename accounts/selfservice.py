"""What people do with their own keys, and how far that goes: `services`, under a ceiling.

Staff have no ceiling. Everybody else may set any term of a key of their own, up to what the settings
allow (`SELF_SERVICE`); what an operator has granted beyond that may be kept or lowered, not raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

from accounts.models import (
    MAX_CONCURRENT_REQUESTS,
    MAX_MONTHLY_TOKENS,
    MAX_REQUESTS_PER_MINUTE,
    MAX_TOKENS,
    MAX_TOKENS_PER_MINUTE,
    ApiKey,
    User,
)
from accounts.services import DEFAULT_REQUESTS_PER_MINUTE, DEFAULT_TIER, TIERS, actor_of, create_key, save_key

LIMITS = {
    "requests_per_minute": MAX_REQUESTS_PER_MINUTE,
    "tokens_per_minute": MAX_TOKENS_PER_MINUTE,
    "concurrent_requests": MAX_CONCURRENT_REQUESTS,
    "max_tokens": MAX_TOKENS,
    "monthly_tokens": MAX_MONTHLY_TOKENS,
}
"""The limits of a key, and the most that any key may have of each."""


class UnableToChange(ValidationError):
    """The key is revoked, and that is for good."""


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a key may have; a limit of 0 is nobody's concern but the owner's."""

    highest_tier: str = TIERS[0]
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    max_tokens: int = 0
    monthly_tokens: int = 0


def ceiling_for(user: User) -> Ceiling:
    """Return how far this user may go with keys of their own."""
    return Ceiling() if user.is_staff else msgspec.convert(settings.SELF_SERVICE, Ceiling)


def create_own_key(*, user: User, terms: Mapping[str, Any]) -> tuple[ApiKey, str]:
    """Create a key for its owner and return it with its secret; what `terms` leave out is the default.

    Raise `ValidationError` for terms above the owner's ceiling.
    """
    ceiling = ceiling_for(user)
    full = _defaults(ceiling) | dict(terms)
    highest = full.get("highest_tier") or full.get("tier")
    _refuse_above(ceiling, full | ({"highest_tier": highest} if highest else {}))
    return create_key(user=user, actor=actor_of(user), **full)


def change_own_key(*, user: User, key_id: int, terms: Mapping[str, Any]) -> ApiKey | None:
    """Change some terms of a key for its owner and return it; None if the user has no such key.

    Raise `UnableToChange` for a revoked key, `ValidationError` for terms above the owner's ceiling.
    """
    with transaction.atomic():
        key = ApiKey.objects.select_for_update().filter(user=user, pk=key_id).first()
        if key is None:
            return None
        if key.revoked_at is not None:
            raise UnableToChange("This key is revoked, for good. Make a new one.", "revoked")
        _refuse_above(ceiling_for(user), terms, key)
        for name, value in terms.items():
            setattr(key, name, value)
        return save_key(key=key, actor=actor_of(user))


def _defaults(ceiling: Ceiling) -> dict[str, Any]:
    """Return the terms of a key whose maker asks for none: the product's, or the ceiling's if that is lower."""
    caps = {name: getattr(ceiling, name) for name in LIMITS}
    defaults: dict[str, Any] = {name: cap for name, cap in caps.items() if cap}
    rpm = DEFAULT_REQUESTS_PER_MINUTE
    defaults["requests_per_minute"] = min(rpm, defaults.get("requests_per_minute", rpm))
    if _rank(DEFAULT_TIER) < _rank(ceiling.highest_tier):
        defaults["tier"] = ceiling.highest_tier
    return defaults


def _refuse_above(ceiling: Ceiling, terms: Mapping[str, Any], key: ApiKey | None = None) -> None:
    problems = {}
    for name in LIMITS:
        cap = getattr(ceiling, name)
        if cap and name in terms and not _is_within(terms[name], cap, getattr(key, name, None)):
            problems[name] = f"Expected 1 to {cap}: more is for an operator to grant."
    granted = [ceiling.highest_tier, *([key.highest_tier] if key else [])]
    if "highest_tier" in terms and _rank(terms["highest_tier"]) < min(map(_rank, granted)):
        problems["highest_tier"] = f"Expected {ceiling.highest_tier} or lower: more is for an operator to grant."
    if problems:
        raise ValidationError(problems)


def _is_within(value: int, cap: int, granted: int | None) -> bool:
    # 0 is no limit: as a wish the most of all, as something granted enough for any wish.
    if granted == 0:
        return True
    return 0 < value <= max(cap, granted or 0)


def _rank(tier: str) -> int:
    return TIERS.index(tier) if tier in TIERS else len(TIERS)
