"""Tells every keyring of this process which keys have changed, as soon as that is committed.

The one thing here that is shared by the whole process, because a commit is: a service does not
know which event loops cache keys, and there is one per running gateway. Other processes, and
writes that pass no service, are noticed by each keyring's poll.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from django.db import transaction

Forget = Callable[[tuple[str, ...]], None]
"""Drops the keys with these prefixes; called from any thread."""

_subscribers: set[Forget] = set()
_lock = threading.Lock()


def subscribe(forget: Forget) -> None:
    """Call `forget` with the prefixes of keys that change from now on."""
    with _lock:
        _subscribers.add(forget)


def unsubscribe(forget: Forget) -> None:
    """Undo `subscribe`."""
    with _lock:
        _subscribers.discard(forget)


def forget_on_commit(prefixes: Iterable[str]) -> None:
    """Tell all subscribers once the running transaction commits, at once where there is none."""
    changed = tuple(prefixes)
    # Robust: what a cache does about it must not turn a committed change into an error.
    transaction.on_commit(lambda: _announce(changed), robust=True)


def _announce(prefixes: tuple[str, ...]) -> None:
    with _lock:
        subscribers = tuple(_subscribers)
    for forget in subscribers:
        forget(prefixes)
