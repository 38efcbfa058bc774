"""`run_ready`: what is at hand comes at once, and what waits goes on as if nothing had happened."""

from __future__ import annotations

import asyncio

import pytest

from gpucloud.lib.ready import Rest, run_ready


async def test_what_is_at_hand_comes_without_waiting():
    async def answer() -> int:
        return 7

    assert run_ready(answer()) == 7


async def test_what_fails_at_once_raises_at_once():
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_ready(fail())


async def test_the_rest_goes_on_through_every_further_wait():
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def add() -> int:
        return await queue.get() + await queue.get()

    rest = run_ready(add())
    assert isinstance(rest, Rest)
    asyncio.get_running_loop().call_soon(queue.put_nowait, 1)
    asyncio.get_running_loop().call_later(0.001, queue.put_nowait, 2)

    assert await rest == 3


async def test_an_error_of_what_it_waits_for_reaches_the_coroutine_itself():
    waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def recover() -> str:
        try:
            await waits
        except ConnectionResetError:
            await asyncio.sleep(0)
            return "recovered"
        return "not reached"

    rest = run_ready(recover())
    waits.set_exception(ConnectionResetError())

    assert isinstance(rest, Rest)
    assert await rest == "recovered"


async def test_a_cancelled_wait_cancels_the_coroutine():
    heard: list[BaseException] = []

    async def listen() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            heard.append(error)
            raise

    async def wait() -> None:
        rest = run_ready(listen())
        assert isinstance(rest, Rest)
        await rest

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [type(error) for error in heard] == [asyncio.CancelledError]
