from __future__ import annotations

import asyncio
import threading

import pytest
from django.db import connection

from gpucloud.lib.dbthread import DatabaseThread


def _opened() -> object:
    connection.ensure_connection()
    return connection.connection


@pytest.mark.django_db(transaction=True)
async def test_a_connection_is_kept_between_calls_and_replaced_after_an_error() -> None:
    if connection.vendor != "sqlite":
        pytest.skip("elsewhere a pool does the keeping")
    thread = DatabaseThread("test")

    def fail() -> None:
        raise RuntimeError("no")

    first = await thread.run(_opened)
    assert await thread.run(_opened) is first
    with pytest.raises(RuntimeError, match="no"):
        await thread.run(fail)
    assert await thread.run(_opened) is not first

    await thread.stop()


async def test_stopping_ends_the_thread_after_what_was_begun() -> None:
    thread = DatabaseThread("ends")
    begun, release = threading.Event(), threading.Event()

    def work() -> threading.Thread:
        begun.set()
        assert release.wait(10)
        return threading.current_thread()

    running = asyncio.create_task(thread.run(work))
    await asyncio.to_thread(begun.wait, 10)
    stopping = asyncio.create_task(thread.stop())
    release.set()
    await stopping

    worker = await running
    worker.join(10)
    assert not worker.is_alive()


async def test_calls_run_in_order_on_one_thread() -> None:
    thread = DatabaseThread("order")

    idents = {await thread.run(threading.get_ident) for _ in range(5)}

    assert len(idents) == 1
    assert idents != {threading.get_ident()}
    await thread.stop()
