"""What the ledger is told of a request: frozen values, no database and no clock.

Every time is stamped by the caller: `created_at_s` by the wall clock, durations by a monotonic one.
"""

from __future__ import annotations

import msgspec

from cluster.domain import Outcome


class Opened(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request at its admission. `id` is our `x-request-id`."""

    id: str
    key_id: int | None
    """None for the playground, which needs no key."""
    user_id: int
    model: str
    source: str
    """`api` or `playground`."""
    stream: bool
    tier: str
    node: str
    prompt_tokens: int
    created_at_s: float


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a request ended: decided once, by whoever settles first."""

    outcome: Outcome
    finish_reason: str | None = None
    error_code: str | None = None
    generated_tokens: int = 0
    """Computed by workers, delivered or not."""
    delivered_tokens: int = 0
    """Handed to the client's socket."""
    attempts: int = 0
    worker_id: str = ""
    worker_name: str = ""
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    total_ms: float = 0.0

    @property
    def billed_tokens(self) -> int:
        """The completion tokens to bill: what was delivered, and nothing for a lost request."""
        return 0 if self.outcome is Outcome.LOST else self.delivered_tokens
