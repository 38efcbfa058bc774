"""How much a key may use."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one key; 0 means none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    monthly_tokens: int = 0
    """Billed tokens, prompt and completion, in a calendar month (UTC)."""


UNLIMITED = Limits()
