"""What the ledger is told of a request: frozen values, no database and no clock.

Every time is stamped by the caller: `created_at_s` by the wall clock, durations by a monotonic one.
A timeline's `at_ms` counts from the admission.
"""

from __future__ import annotations

import msgspec

from cluster.domain import Choice, Outcome


class Admitted(msgspec.Struct, frozen=True, array_like=True, tag="admitted", gc=False):
    """The request was accepted: where its time begins."""

    at_ms: float = 0.0


class Queued(msgspec.Struct, frozen=True, array_like=True, tag="queued", gc=False):
    """No worker could take it at once."""

    at_ms: float
    why: str
    """A word of `cluster.domain.WaitReason`."""
    position: int = 0
    """In its model's line; 1 is next."""


class Assigned(msgspec.Struct, frozen=True, array_like=True, tag="assigned", gc=False):
    """An attempt was given to a worker."""

    at_ms: float
    attempt: int
    worker_id: str
    worker_name: str
    worker_gpu: str = ""
    from_token: int = 0
    """The token it begins at; above 0 it continues what an earlier attempt began."""
    choice: Choice | None = None
    """Why this worker and no other."""


class FirstToken(msgspec.Struct, frozen=True, array_like=True, tag="first_token", gc=False):
    """The first token of all reached the client's stream."""

    at_ms: float


class Retried(msgspec.Struct, frozen=True, array_like=True, tag="retried", gc=False):
    """An attempt ended without its answer, and the task looks for another worker."""

    at_ms: float
    attempt: int
    """The one that ended."""
    why: str
    """`worker_lost` (a failover), or what the worker or its silence amounted to (a retry)."""
    from_token: int = 0
    """Where the next attempt begins."""


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="settled", gc=False):
    """The outcome was decided."""

    at_ms: float
    outcome: str
    code: str = ""
    """The finish reason, or the error's code."""


Noted = Queued | Assigned | Retried
"""What is kept of a timeline, with times to a tenth; the rest of it stands in the row's own columns."""
TimelineEvent = Admitted | Queued | Assigned | FirstToken | Retried | Settled


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
    timeline: tuple[Noted, ...] = ()
    """What befell it on the way, in order. Empty costs nothing, and the plain story is told all the same."""

    @property
    def billed_tokens(self) -> int:
        """The completion tokens to bill: what was delivered, and nothing for a lost request."""
        return 0 if self.outcome is Outcome.LOST else self.delivered_tokens
