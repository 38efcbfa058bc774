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

from gpucloud.lib.asgi import Message, Receive

AFTER_S = 0.05
"""How long a request may run unwatched; young ones are looked at twice as often, so that a departure
is seen one and a half times as much later at most."""


class Watch:
    """Watches the connections of one event loop."""

    def __init__(self, *, after_s: float = AFTER_S) -> None:
        self._after_s = after_s
        self._young: dict[Watched, float] = {}
        """Not watched yet, by when they came (loop time), the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, receive: Receive, on_disconnect: Callable[[], None]) -> Watched:
        """Return a handle on a connection that will be watched until it is stopped."""
        watched = Watched(receive, on_disconnect)
        loop = asyncio.get_running_loop()
        self._young[watched] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._after_s, self._look)
        return watched

    def stop(self, watched: Watched) -> None:
        """Stop watching; safe to call twice."""
        if self._young.pop(watched, None) is None and watched.watcher is not None:
            watched.watcher.close()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        oldest_s = loop.time() - self._after_s
        for watched in [watched for watched, came_s in self._young.items() if came_s <= oldest_s]:
            del self._young[watched]
            watched.watcher = DisconnectWatcher(watched.receive, watched.on_disconnect)
        if self._young:
            self._timer = loop.call_later(self._after_s / 2, self._look)


class Watched:
    """A connection in the care of a `Watch`."""

    __slots__ = ("on_disconnect", "receive", "watcher")

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None]) -> None:
        self.receive = receive
        self.on_disconnect = on_disconnect
        self.watcher: DisconnectWatcher | None = None


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
