"""Watches an ASGI connection for the client's departure, without a task.

`http.disconnect` is the only sign that a client is gone: a plain ASGI application is not
cancelled, and `send` to a gone client returns silently. The usual watcher is a task that awaits
`receive()`; this one drives that coroutine by hand, which costs half as much per request: it runs
it up to the future it waits for, and lets that future resume it.

Most requests are over before their client could have left, so `Watch` waits a moment before it watches
at all: a request that ends within `AFTER_S` costs an entry in a dict.

It works for any `receive` that waits on plain asyncio futures (uvicorn, daphne, hypercorn). One
that needs `asyncio.current_task()` would not do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec

from gpucloud.lib.asgi import Message, Receive
from gpucloud.lib.linger import Linger

AFTER_S = 0.05
"""How long a request may run unwatched; half as long at the least."""


class Watch:
    """Watches the connections of one event loop."""

    def __init__(self, *, after_s: float = AFTER_S) -> None:
        self._young: Linger[Watched] = Linger(Watched.begin, longest_s=after_s)
        """Not watched yet; most are stopped before they would be."""

    def start(self, receive: Receive, on_disconnect: Callable[[], None]) -> Watched:
        """Return a handle on a connection that will be watched until it is stopped."""
        watched = Watched(receive, on_disconnect, self._young)
        self._young.add(watched)
        return watched


class Watched(msgspec.Struct, eq=False):
    """A connection in the care of a `Watch`."""

    _receive: Receive
    _on_disconnect: Callable[[], None] | None
    _young: Linger[Watched]
    _watcher: DisconnectWatcher | None = None

    def begin(self) -> None:
        """Watch from now on, unless stopped before."""
        if self._on_disconnect is not None:
            self._watcher = DisconnectWatcher(self._receive, self._on_disconnect)

    def stop(self) -> None:
        """Watch no more; safe to call twice."""
        self._on_disconnect = None
        self._young.let_go(self)
        if self._watcher is not None:
            self._watcher.close()


class DisconnectWatcher:
    """Calls `on_disconnect` once when the client leaves, unless closed before."""

    __slots__ = ("_coroutine", "_future", "_on_disconnect", "_receive")

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None]) -> None:
        self._receive = receive
        self._on_disconnect: Callable[[], None] | None = on_disconnect
        self._future: asyncio.Future[Any] | None = None
        self._coroutine = cast("Coroutine[Any, None, Message]", receive())
        self._advance(None)

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        self._on_disconnect = None
        if self._future is not None:
            self._future.remove_done_callback(self._advance)
            self._future = None
        self._coroutine.close()

    def _advance(self, _done: asyncio.Future[Any] | None) -> None:
        self._future = None
        while self._on_disconnect is not None:
            try:
                waits_for = self._coroutine.send(None)
            except StopIteration as stop:
                message = stop.value
            except (Exception, asyncio.CancelledError):
                # A broken `receive` can only mean a broken connection.
                message = {"type": "http.disconnect"}
            else:
                if waits_for is None:  # a bare `yield`, as `asyncio.sleep(0)` does
                    asyncio.get_running_loop().call_soon(self._advance, None)
                    return
                # What a Task does with the future it is handed: take the flag, ask to be called.
                waits_for._asyncio_future_blocking = False
                self._future = waits_for
                waits_for.add_done_callback(self._advance)
                return
            if message["type"] == "http.disconnect":
                on_disconnect, self._on_disconnect = self._on_disconnect, None
                on_disconnect()
                return
            self._coroutine = cast("Coroutine[Any, None, Message]", self._receive())
