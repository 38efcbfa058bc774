"""A cache for counters of attempts, in the memory of the process.

Django's own lets what has expired lie until it is full, and counters have a new name in every window: it
would only ever grow to its bound. This one sweeps whenever it has doubled.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.locmem import LocMemCache

SWEEP_ENTRIES = 10_000


class CounterCache(LocMemCache):
    """LocMemCache, the size of what has not expired, twice at the most."""

    # Django has one object per thread over one store, so this belongs to all of them.
    _sweep_at: ClassVar[int] = SWEEP_ENTRIES

    def _set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT) -> None:
        # Called with the store's lock held.
        store: dict[str, Any] = self._cache  # type: ignore[attr-defined]
        if len(store) >= CounterCache._sweep_at:
            for old in [name for name in store if self._has_expired(name)]:  # type: ignore[attr-defined]
                self._delete(old)  # type: ignore[attr-defined]
            CounterCache._sweep_at = max(SWEEP_ENTRIES, 2 * len(store))
        super()._set(key, value, timeout)  # type: ignore[misc]
