"""What the data plane is told about whoever shows a key. How it is found out is in `keyring`."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from accounts.limits import UNLIMITED, Limits


class Refused(StrEnum):
    """Why a key may not pass. Clients are told one thing for all of these; logs may differ."""

    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    INACTIVE = "inactive"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling, and under which terms."""

    key_id: int
    user_id: int
    tenant: str
    """Opaque to the cluster."""
    tenant_label: str
    key_label: str
    prefix: str
    tier: str
    """For requests that name none."""
    highest_tier: str
    models: tuple[str, ...] | None = None
    """Globs of the models it may use; None for any."""
    max_tokens: int = 0
    """The most one request may generate; 0 means no cap of its own."""
    simulated_only: bool = False
    """Whether only simulated workers may serve it."""
    limits: Limits = UNLIMITED
    expires_at_s: float | None = None
    """Wall clock, seconds since the epoch."""
