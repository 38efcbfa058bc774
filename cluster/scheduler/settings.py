"""The Scheduler's time-outs, bounds and shares, and nothing else."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long things may take, how often they are tried and who may have how much."""

    max_waiting: int = 1_000
    """Tasks that may wait, over all models."""
    max_waiting_share: float = 0.25
    """How much of that one tenant may have."""
    max_waiting_tokens: int = 16_000_000
    """Tokens of prompts that may wait: some 100 MB."""
    queue_timeout_s: float = 30.0
    no_worker_grace_s: float = 10.0
    """How long a model that was served may be without a worker before its tasks are refused."""
    total_timeout_s: float = 600.0

    quantum_tokens: int = 1_024
    """What a tenant may use of its tier in one round of turns."""
    estimated_tokens: int = 1_024
    """The most that a task is charged for its answer before the answer's length is known."""
    aged_after_s: float = 10.0
    """A task that has waited longer is aged: it may go before higher tiers, and be kept a worker free."""
    aged_every: int = 10
    """Of so many dispatches of a model, one may go to an aged task of a lower tier."""

    max_attempts: int = 3
    max_deaths: int = 2
    """Attempts that may end with their worker's death before the task itself is suspected."""
    return_s: float = 20.0
    """A worker whose process is back within this did not die."""
    isolation_patience_s: float = 20.0
    """How long a task with which a worker died waits for a worker of its own before it takes any."""
    retry_share: float = 0.2
    """Tasks that may be tried again at a time after failures that workers reported, of those that run."""
    retry_floor: int = 10
    """So many may always."""

    worker_stale_s: float = 7.5
    """No new work for a worker that was silent this long."""
    worker_silent_s: float = 16.0
    """Then it is lost."""
    cancel_ack_s: float = 2.0
    """A worker that has not acknowledged a cancel after this is suspect."""
    suspect_after: int = 3
    """So is one whose attempts have stalled so many times with none that ended well between."""
    probe_after_s: float = 5.0
    """When a suspect is first probed; doubles up to `probe_longest_s`."""
    probe_longest_s: float = 60.0
    probe_timeout_s: float = 10.0
    flap_losses: int = 3
    flap_window_s: float = 60.0
    """A worker whose links broke so often within this is flapping."""
    quarantine_s: float = 5.0
    """What it gets at first; doubles up to `quarantine_longest_s`."""
    quarantine_longest_s: float = 120.0
    flap_memory_s: float = 600.0
    """After so long without a loss all is forgotten."""
