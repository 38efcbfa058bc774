"""The watcher drives `receive()` by hand; here by every way in which a coroutine can wait or end."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from gpucloud.lib.watch import DisconnectWatcher, Watch
from tests.client import until

REQUEST = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


class Connection:
    """A client's connection: `receive` returns what the test put in, and waits for more."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.calls = 0
        self.left = 0
        """How often a `receive` was entered and left again, however."""
        for message in messages:
            self.queue.put_nowait(message)

    async def receive(self) -> MutableMapping[str, Any]:
        self.calls += 1
        try:
            return await self.queue.get()
        finally:
            self.left += 1


class Departure:
    """Remembers how often it was told that the client left."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def turns(count: int = 5) -> None:
    """Let the loop turn a few times: enough for every callback that is due."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_departure_is_told_once():
    connection, gone = Connection(), Departure()
    DisconnectWatcher(connection.receive, gone)
    await turns()
    assert gone.count == 0

    connection.queue.put_nowait(DISCONNECT)
    connection.queue.put_nowait(DISCONNECT)
    await turns()

    assert gone.count == 1
    assert connection.calls == 1


async def test_a_client_that_has_left_already_is_noticed_at_once():
    gone = Departure()

    DisconnectWatcher(Connection(DISCONNECT).receive, gone)

    assert gone.count == 1


async def test_other_messages_are_passed_over():
    connection, gone = Connection(REQUEST, REQUEST), Departure()
    DisconnectWatcher(connection.receive, gone)

    connection.queue.put_nowait(REQUEST)
    await turns()
    assert gone.count == 0

    connection.queue.put_nowait(DISCONNECT)
    await turns()
    assert gone.count == 1


async def test_a_bare_yield_is_resumed():
    gone = Departure()

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return DISCONNECT

    DisconnectWatcher(receive, gone)
    assert gone.count == 0
    await turns()

    assert gone.count == 1


async def test_a_receive_that_waits_twice_is_followed():
    gone = Departure()
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()

    async def receive() -> MutableMapping[str, Any]:
        await first
        await second
        return DISCONNECT

    DisconnectWatcher(receive, gone)
    first.set_result(None)
    await turns()
    assert gone.count == 0
    second.set_result(None)
    await turns()

    assert gone.count == 1


@pytest.mark.parametrize("error", [RuntimeError("broken"), asyncio.CancelledError()])
async def test_a_receive_that_fails_is_a_departure(error: BaseException):
    gone = Departure()
    waits = asyncio.get_running_loop().create_future()

    async def receive() -> MutableMapping[str, Any]:
        await waits
        raise error

    DisconnectWatcher(receive, gone)
    waits.set_result(None)
    await turns()

    assert gone.count == 1


async def test_a_receive_whose_future_fails_is_a_departure():
    gone = Departure()
    waits = asyncio.get_running_loop().create_future()

    async def receive() -> MutableMapping[str, Any]:
        await waits
        return REQUEST

    DisconnectWatcher(receive, gone)
    waits.set_exception(ConnectionResetError())
    await turns()

    assert gone.count == 1


async def test_after_close_a_departure_is_nobodys_business():
    connection, gone = Connection(), Departure()
    watcher = DisconnectWatcher(connection.receive, gone)

    watcher.close()
    watcher.close()
    connection.queue.put_nowait(DISCONNECT)
    await turns()

    assert gone.count == 0


async def test_close_ends_the_receive_that_was_under_way():
    connection = Connection()
    watcher = DisconnectWatcher(connection.receive, Departure())

    watcher.close()

    assert connection.left == connection.calls == 1


async def test_close_ends_a_receive_that_only_yielded():
    ended = Departure()

    async def receive() -> MutableMapping[str, Any]:
        try:
            await asyncio.sleep(0)
            return REQUEST
        finally:
            ended()

    watcher = DisconnectWatcher(receive, Departure())
    watcher.close()

    assert ended.count == 1
    await turns()


async def test_close_after_the_departure_is_harmless():
    gone = Departure()
    watcher = DisconnectWatcher(Connection(DISCONNECT).receive, gone)

    watcher.close()
    await turns()

    assert gone.count == 1


async def test_the_watcher_may_be_closed_by_what_it_calls():
    connection = Connection()
    watchers: list[DisconnectWatcher] = []
    watchers.append(DisconnectWatcher(connection.receive, lambda: watchers[0].close()))

    connection.queue.put_nowait(DISCONNECT)
    await turns()

    assert connection.left == connection.calls == 1


async def test_a_request_that_is_over_soon_is_never_watched():
    connection, gone = Connection(DISCONNECT), Departure()
    watch = Watch(after_s=0.01)

    watched = watch.start(connection.receive, gone)
    watched.stop()
    watched.stop()
    later, left_later = Connection(DISCONNECT), Departure()
    watch.start(later.receive, left_later)
    await until(lambda: left_later.count == 1, "the one that goes on is watched")

    assert (connection.calls, gone.count) == (0, 0)


async def test_a_request_that_goes_on_is_watched_until_it_is_stopped():
    connection, gone = Connection(), Departure()
    watch = Watch(after_s=0.01)
    watched = watch.start(connection.receive, gone)
    assert connection.calls == 0
    await until(lambda: connection.calls == 1, "it is watched")

    watched.stop()
    connection.queue.put_nowait(DISCONNECT)
    await turns()

    assert connection.left == 1
    assert gone.count == 0


async def test_those_who_come_while_others_are_watched_are_watched_in_their_turn():
    watch = Watch(after_s=0.01)
    connections = [Connection() for _ in range(3)]
    departures = [Departure() for _ in connections]
    for connection, gone in zip(connections, departures, strict=True):
        watch.start(connection.receive, gone)
        await asyncio.sleep(0.004)
    await until(lambda: all(connection.calls for connection in connections), "all are watched")

    for connection in connections:
        connection.queue.put_nowait(DISCONNECT)
    await turns()

    assert [gone.count for gone in departures] == [1, 1, 1]
