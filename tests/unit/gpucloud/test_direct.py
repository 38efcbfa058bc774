"""Requests that an application takes from the server without ASGI, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpucloud.lib.asgi import Receive, Scope, Send
from inference.openai.http import open_exchange
from tests.client import until
from tests.unit.gpucloud.rig import KEEP_ALIVE_S, echo, post, serve


class Taker:
    """An application that is offered what comes whole, and takes what its path asks it to."""

    def __init__(self) -> None:
        self.offered: list[Any] = []
        self.taken: list[Any] = []
        self.gone: list[bytes] = []

    def take(self, request: Any) -> bool:
        self.offered.append(request)
        if request.url.startswith(b"/call"):
            return False
        request.on_gone = lambda: self.gone.append(request.url)
        self.taken.append(request)
        if request.url.startswith(b"/now"):
            self.reply(request)
        return True

    def reply(self, request: Any) -> bool:
        body = b"direct " + request.url + b" " + request.take_body()
        return request.answer(200, b"content-length: %d\r\n" % len(body), body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = open_exchange(scope, receive, send, "req_1")
        exchange.read_headers()
        await echo(exchange, None)


async def test_a_request_that_came_whole_is_taken_and_answered_in_one_piece():
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        for number in range(3):
            peer.send(post("now", b"%d" % number))
            status, headers, body = await peer.answer()

            assert (status, body) == (200, b"direct /now %d" % number)
            assert "date" in headers
        assert taker.gone == []


async def test_what_is_not_taken_goes_the_way_of_all_requests():
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        peer.send(post("call", b"hello"))
        assert (await peer.answer())[2] == b'{"path":"/call","body":"hello"}'
        peer.send(post("now", b"x"))
        assert (await peer.answer())[2] == b"direct /now x"
        peer.get("call/again")
        assert (await peer.answer())[2] == b'{"path":"/call/again","body":""}'


@pytest.mark.parametrize("head", [b"Connection: close", b"Expect: 100-continue"])
async def test_what_needs_more_than_one_answer_is_not_offered(head: bytes):
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        peer.send(post("now", b"hello", head))

        status, _, body = await peer.answer()

        if status == 100:
            status, _, body = await peer.answer()
        assert (status, body) == (200, b'{"path":"/now","body":"hello"}')
        assert taker.offered == []


async def test_a_body_that_comes_in_parts_is_not_offered():
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        whole = post("now", b"hello")
        peer.send(whole[:-3])
        await until(lambda: server.protocols and server.protocols[0].cycle is not None, "the server has read")
        peer.send(whole[-3:])

        assert (await peer.answer())[2] == b'{"path":"/now","body":"hello"}'
        assert taker.offered == []


@pytest.mark.parametrize("next_path", ["call", "now", "later"])
async def test_what_is_sent_behind_a_taken_request_waits_for_its_answer(next_path: str):
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        peer.send(post("later", b"1") + post(next_path, b"2") + post("call", b"3"))
        await until(lambda: taker.taken, "it is taken")
        await asyncio.sleep(0.01)

        assert taker.reply(taker.taken[0])

        assert (await peer.answer())[2] == b"direct /later 1"
        assert (await peer.answer())[2] == b'{"path":"/%b","body":"2"}' % next_path.encode()
        assert (await peer.answer())[2] == b'{"path":"/call","body":"3"}'


async def test_who_took_a_request_is_told_when_its_client_leaves():
    taker = Taker()
    async with serve(taker) as server:
        async with server.connect() as peer:
            peer.send(post("later", b""))
            await until(lambda: taker.taken, "it is taken")

        await until(lambda: taker.gone, "it is told")

        assert taker.gone == [b"/later"]
        assert not taker.reply(taker.taken[0])


async def test_a_taken_request_is_answered_once():
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        peer.send(post("now", b"x"))
        await peer.answer()

        assert not taker.reply(taker.taken[0])


async def test_a_connection_with_a_taken_request_is_not_idle(keep_alive_s: float = KEEP_ALIVE_S):
    taker = Taker()
    async with serve(taker, keep_alive_s=keep_alive_s) as server, server.connect() as peer:
        peer.send(post("now", b""))
        await peer.answer()
        peer.send(post("later", b""))
        await asyncio.sleep(3 * keep_alive_s)

        assert taker.reply(taker.taken[1])

        assert (await peer.answer())[2] == b"direct /later "
        assert await peer.rest() == b""  # and then it is


async def test_a_server_that_stops_lets_a_taken_request_have_its_answer():
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        peer.send(post("later", b""))
        await until(lambda: taker.taken, "it is taken")
        (protocol,) = server.protocols

        protocol.shutdown()
        taker.reply(taker.taken[0])

        _, headers, body = await peer.answer()
        assert (headers["connection"], body) == ("close", b"direct /later ")
        assert await peer.rest() == b""


async def test_an_aborted_request_has_no_answer():
    taker = Taker()
    async with serve(taker) as server, server.connect() as peer:
        peer.send(post("later", b""))
        await until(lambda: taker.taken, "it is taken")

        taker.taken[0].abort()

        await until(lambda: taker.gone, "it is told")
