"""Counts attempts and says when there are too many: logins, registrations, calls of `/api`.

Built on django-ratelimit's counters, which live in fixed windows. At the edge of a window twice the
limit would fit into a moment, so each attempt is counted in two windows with different edges, and
either may refuse. Counting comes first, before any work, so that attempts that run side by side are
all seen; one that turns out to be good is taken back by `forgive`. Counters are one process's own.

`/v1` has limits of its own, exact ones, elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django_ratelimit.core import get_usage

PHASES = ("a", "b")
LOGGED_CHARS = 43
"""As much as a network has; an account is a hash, of which a part does."""

logger = logging.getLogger("gpucloud.audit")


class TooManyAttempts(Exception):
    """Refused without having looked at what was sent; more is counted again after `wait_s`."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(f"Too many attempts: try again in {wait_s} s.")
        self.wait_s = wait_s


def count(limit: str, value: str, rates: Sequence[str]) -> None:
    """Count an attempt of `value` (an address, an account) against each of `rates` (`10/m`), or refuse it.

    What one rate refuses is not counted against those after it.
    """
    for rate in rates:
        waits_s: list[int] = []
        for phase in PHASES:
            used = _usage(limit, value + phase, rate, increment=True)
            if used is None:
                continue
            over = used["count"] - used["limit"]
            if over > 0 and (over := over - _count_good(limit, value + phase, rate)) > 0:
                waits_s.append(used["time_left"])
            if over == 1:  # of a flood, the log gets a line or two
                logger.warning("audit throttled %s of %s at %s", limit, value[:LOGGED_CHARS], rate)
        if waits_s:
            # A window that is ending has 0 or -1 s left.
            raise TooManyAttempts(max(1, *waits_s))


def forgive(limit: str, value: str, rates: Sequence[str]) -> None:
    """Take back an attempt that was counted, for it was a good one."""
    for rate in rates:
        for phase in PHASES:
            _usage(f"{limit}:good", value + phase, rate, increment=True)


def _count_good(limit: str, value: str, rate: str) -> int:
    used = _usage(f"{limit}:good", value, rate, increment=False)
    return used["count"] if used else 0


def _usage(group: str, value: str, rate: str, *, increment: bool) -> dict[str, Any] | None:
    # The request is only handed on to callables like the key, which has no use for it.
    usage: dict[str, Any] | None = get_usage(
        None, group=group, key=lambda group, request: value, rate=rate, increment=increment
    )
    return usage
