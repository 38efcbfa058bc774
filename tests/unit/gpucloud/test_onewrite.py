"""The server's HTTP protocol over real sockets: what it adds to uvicorn's must not show."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from inference.openai.http import Exchange
from tests.client import until
from tests.unit.gpucloud.rig import KEEP_ALIVE_S, echo, post, serve


async def test_an_answer_in_one_write_is_a_well_formed_answer():
    async with serve(echo) as server, server.connect() as peer:
        peer.send(post("a", b"hello"))
        status, headers, body = await peer.answer()

        assert (status, body) == (200, b'{"path":"/a","body":"hello"}')
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"] == "req_1"
        assert headers["x-content-type-options"] == "nosniff"
        assert "date" in headers and "connection" not in headers

        peer.send(post("b", b""))
        assert (await peer.answer())[2] == b'{"path":"/b","body":""}'


async def test_both_ways_to_answer_say_the_same():
    async def answer(exchange: Exchange, cycle: Any) -> None:
        if exchange.path == "/messages":
            exchange._server = None
        await exchange.send_json({"a": 1}, status=401)

    async with serve(answer) as server, server.connect() as peer:
        peer.get("messages")
        by_messages = await peer.answer()
        peer.get("one")
        in_one = await peer.answer()

    assert in_one[0] == by_messages[0] == 401
    assert in_one[2] == by_messages[2]
    assert set(in_one[1]) == set(by_messages[1])


async def test_a_body_in_two_packets_is_read_whole():
    read: list[bytes | None] = []

    async def look_first(exchange: Exchange, cycle: Any) -> None:
        taken = cycle.take_body()
        read.append(taken)
        if taken is None:
            here.set()
        await echo(exchange, cycle)

    here = asyncio.Event()
    request = post("a", b"x" * 100)
    async with serve(look_first) as server, server.connect() as peer:
        peer.send(request[:-40])
        await asyncio.wait_for(here.wait(), 5)
        peer.send(request[-40:])

        assert (await peer.answer())[2] == b'{"path":"/a","body":"%b"}' % (b"x" * 100)
    assert read == [None]


async def test_a_large_body_is_read_whole_and_the_connection_goes_on():
    async with serve(echo) as server, server.connect() as peer:
        for _ in range(2):
            peer.send(post("a", b"x" * 500_000))
            assert len((await peer.answer())[2]) > 500_000


async def test_requests_that_are_sent_ahead_are_answered_in_order_each_with_its_own_body():
    async with serve(echo) as server, server.connect() as peer:
        peer.send(b"".join(post(str(number), b"body %d" % number) for number in range(10)))

        for number in range(10):
            assert (await peer.answer())[2] == b'{"path":"/%d","body":"body %d"}' % (number, number)

        peer.send(post("last", b""))
        assert (await peer.answer())[2] == b'{"path":"/last","body":""}'


async def test_a_request_that_is_sent_while_another_is_answered_waits_for_its_turn():
    order: list[str] = []

    async def slow_first(exchange: Exchange, cycle: Any) -> None:
        order.append(exchange.path)
        if exchange.path == "/first":
            await go_on.wait()
        await echo(exchange, cycle)

    go_on = asyncio.Event()
    async with serve(slow_first) as server, server.connect() as peer:
        peer.get("first")
        await until(lambda: order, "the first is there")
        peer.get("second")
        await until(lambda: server.protocols[0].pipeline, "the second is there")
        assert order == ["/first"]
        go_on.set()

        assert (await peer.answer())[2] == b'{"path":"/first","body":""}'
        assert (await peer.answer())[2] == b'{"path":"/second","body":""}'


async def test_a_head_request_has_no_body():
    async with serve(echo) as server, server.connect() as peer:
        peer.send(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, _ = await peer.answer(bodiless=True)
        assert (status, headers["content-length"]) == (200, "23")

        peer.get("b")
        assert (await peer.answer())[2] == b'{"path":"/b","body":""}'


@pytest.mark.parametrize(
    "request_head",
    [b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /a HTTP/1.0\r\n\r\n"],
    ids=["close", "HTTP/1.0"],
)
async def test_a_client_that_wants_no_more_than_one_answer_is_told_that_and_let_go(request_head: bytes):
    async with serve(echo) as server, server.connect() as peer:
        peer.send(request_head)

        _, headers, body = await peer.answer()

        assert headers["connection"] == "close"
        assert body == b'{"path":"/a","body":""}'
        assert await peer.rest() == b""


async def test_a_client_that_asks_first_is_told_to_go_on():
    async with serve(echo) as server, server.connect() as peer:
        request = post("a", b"hello", b"Expect: 100-continue")
        peer.send(request[:-5])
        assert (await peer.answer())[0] == 100
        peer.send(b"hello")

        assert (await peer.answer())[2] == b'{"path":"/a","body":"hello"}'


async def test_a_client_that_asks_first_may_be_refused_at_once():
    async def refuse(exchange: Exchange, cycle: Any) -> None:
        await exchange.send_json({"error": "no"}, status=401)

    async with serve(refuse) as server, server.connect() as peer:
        peer.send(post("a", b"hello", b"Expect: 100-continue")[:-5])

        assert (await peer.answer())[0] == 401


async def test_an_answer_that_cannot_be_written_at_once_falls_back_to_messages():
    said: list[bool] = []

    async def twice(exchange: Exchange, cycle: Any) -> None:
        await exchange.send_json({})
        said.append(cycle.answer(200, b"", b"again"))

    async with serve(twice) as server, server.connect() as peer:
        peer.get()
        assert (await peer.answer())[0] == 200
        peer.get()
        assert (await peer.answer())[0] == 200
    assert said == [False, False]


async def test_a_client_that_is_gone_is_answered_nothing_and_its_body_is_not_taken():
    said: list[Any] = []

    async def late(exchange: Exchange, cycle: Any) -> None:
        await until(lambda: cycle.disconnected, "the client is gone")
        said.extend([cycle.take_body(), cycle.answer(200, b"", b"")])
        done.set()

    done = asyncio.Event()
    async with serve(late) as server:
        async with server.connect() as peer:
            peer.send(post("a", b"hello"))
            await until(lambda: server.protocols, "the request is there")
        await asyncio.wait_for(done.wait(), 5)
    assert said == [None, False]


async def test_a_client_that_never_reads_is_dropped_and_its_send_returns():
    async def flood(exchange: Exchange, cycle: Any) -> None:
        await exchange.start_stream()
        while not cycle.disconnected:
            flooding.set()
            await exchange.send_part(b"x" * 100_000)
        returned.set()

    flooding, returned = asyncio.Event(), asyncio.Event()
    async with serve(flood) as server, server.connect() as peer:
        peer.writer.transport.pause_reading()
        peer.get()
        await asyncio.wait_for(flooding.wait(), 5)
        (protocol,) = server.protocols
        await until(lambda: protocol.flow.write_paused, "the socket is full")

        protocol.cycle.abort()  # type: ignore[attr-defined]

        await asyncio.wait_for(returned.wait(), 5)
        assert server.protocols == []


async def test_an_idle_connection_is_closed_after_its_time():
    async with serve(echo, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
        loop = asyncio.get_running_loop()
        peer.get()
        await peer.answer()
        answered_s = loop.time()

        assert await peer.rest() == b""

        assert loop.time() - answered_s >= KEEP_ALIVE_S - 0.05


async def test_a_connection_that_is_used_again_has_its_time_anew_with_one_timer():
    timers: list[float] = []
    async with serve(echo, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while loop.time() - began_s < 2 * KEEP_ALIVE_S:
            peer.get()
            await peer.answer()
            (protocol,) = server.protocols
            assert protocol.timeout_keep_alive_task is not None
            timers.append(protocol.timeout_keep_alive_task.when())
            await asyncio.sleep(0.01)

        assert len(set(timers)) <= 4 < len(timers), "a timer for each answer"
        answered_s = loop.time()
        assert await peer.rest() == b""
        assert loop.time() - answered_s >= KEEP_ALIVE_S - 0.05


async def test_a_connection_whose_answer_takes_long_is_not_idle():
    async def slow(exchange: Exchange, cycle: Any) -> None:
        if exchange.path == "/slow":
            await asyncio.sleep(3 * KEEP_ALIVE_S)
        await echo(exchange, cycle)

    async with serve(slow, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
        peer.get("quick")
        await peer.answer()
        peer.get("slow")

        assert (await peer.answer())[2] == b'{"path":"/slow","body":""}'
        assert not peer.closed
        assert await peer.rest() == b""


async def test_what_comes_after_an_answer_and_is_no_request_keeps_no_connection_open():
    """The body of a request that was refused by its head, or a request that never comes whole."""

    async def refuse(exchange: Exchange, cycle: Any) -> None:
        await exchange.send_json({"error": "no"}, status=401)

    for late in (b"lo", b"loGET /next HTTP/1.1\r\nHost:"):
        async with serve(refuse, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
            peer.send(post("a", b"hello")[:-2])
            await peer.answer()
            peer.send(late)

            assert await peer.rest() == b""


async def test_a_connection_that_becomes_a_websocket_is_not_closed_for_being_idle():
    async with serve(echo, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
        peer.get()
        await peer.answer()
        peer.send(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with asyncio.timeout(5):
            assert (await peer._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            assert await peer._reader.readexactly(12) == b"\x81\x0astill here"


async def test_a_client_that_tears_its_connection_down_leaves_nothing_behind():
    async with serve(echo, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
        peer.get()
        await peer.answer()
        (protocol,) = server.protocols
        raw = peer.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        peer.writer.transport.abort()

        await until(lambda: not server.protocols, "the server has noticed")
        await until(lambda: protocol.timeout_keep_alive_task is None, "its timer has ended")
