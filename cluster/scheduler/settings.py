"""The Scheduler's time-outs and bounds, and nothing else."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long things may take and how often they are tried, before the Scheduler gives up on them."""

    queue_timeout_s: float = 30.0
    no_worker_grace_s: float = 10.0
    """How long a model that was served may be without a worker before its tasks are refused."""
    total_timeout_s: float = 600.0
    worker_stale_s: float = 7.5
    """No new work for a worker that was silent this long."""
    worker_silent_s: float = 16.0
    """Then it is lost."""
    cancel_ack_s: float = 2.0
    max_attempts: int = 3
    max_deaths: int = 2
    """Attempts that may end with their worker's death before the task itself is suspected."""
