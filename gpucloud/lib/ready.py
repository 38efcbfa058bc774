"""Runs a coroutine up to where it would wait, and no further.

A coroutine that has its answer at hand is then as cheap as a function, and what would have to
surround it if it waited (a time-out, a task) is only paid for when it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Rest(Awaitable[T]):
    """What is left of a coroutine that has begun to wait. Await it once."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, None, T], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def close(self) -> None:
        """Give the coroutine up instead of awaiting it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, None, T]:
        # The event loop is handed the future that the coroutine has already yielded. What comes of
        # it, an error or a cancellation among it, is the coroutine's own business.
        try:
            yield self._waits_for
        except GeneratorExit:
            self._coroutine.close()
            raise
        except BaseException as error:
            try:
                waits_for = self._coroutine.throw(error)
            except StopIteration as stop:
                return cast("T", stop.value)
            return (yield from Rest(self._coroutine, waits_for).__await__())
        return (yield from self._coroutine.__await__())


def run_ready(awaitable: Awaitable[T]) -> T | Rest[T]:
    """Return the coroutine's result, or the rest of it, which is to be awaited."""
    coroutine = cast("Coroutine[Any, None, T]", awaitable)
    try:
        waits_for = coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    return Rest(coroutine, waits_for)
