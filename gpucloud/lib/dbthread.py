"""A thread of its own for blocking database work that a coroutine waits for.

Django keeps a connection per thread, so who runs on which thread decides what is reused and what
leaks. On SQLite the thread keeps its connection: opening one costs more than the read, and
`PRAGMA data_version` means something only on a kept one. Elsewhere a pool does the keeping, and
the connection goes back after each call. After an error it is closed anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import connection

P = ParamSpec("P")
R = TypeVar("R")


class DatabaseThread:
    """Runs one call at a time, in order."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what `call` returns, or raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: _run(call, *args, **kwargs))

    async def stop(self) -> None:
        """Wait for what was begun, drop what was not, and close the thread's connection."""
        closed = asyncio.get_running_loop().run_in_executor(self._executor, _close)
        self._executor.shutdown(wait=False)
        await closed


def _run(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    keep = False
    try:
        result = call(*args, **kwargs)
        keep = connection.vendor == "sqlite"
        return result
    finally:
        if not keep:
            _close()


def _close() -> None:
    # `connection` means this thread's own only when it is asked for on this thread.
    connection.close()
