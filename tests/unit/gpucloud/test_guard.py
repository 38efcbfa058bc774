"""Slow, fat and confused clients on bare sockets, and what must not come of them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from gpucloud.guard import MAX_HEAD_BYTES, MAX_HEADERS
from inference.openai.http import Exchange
from tests.client import until
from tests.unit.gpucloud.rig import KEEP_ALIVE_S, Peer, echo, post, serve

TIMEOUT_S = 0.3


async def refusal(peer: Peer) -> tuple[int, dict[str, Any]]:
    """Return status and error of the last answer, after which nothing comes."""
    status, headers, body = await peer.answer()
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert await peer.rest() == b""
    return status, json.loads(body)["error"]


async def trickle(peer: Peer, raw: bytes) -> None:
    """Send byte after byte until the server has had enough."""
    for byte in raw:
        if peer.closed:
            return
        peer.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def test_a_head_that_trickles_in_is_cut():
    async with serve(echo, header_timeout_s=TIMEOUT_S) as server, server.connect() as peer:
        began_s = time.monotonic()

        slow = asyncio.create_task(trickle(peer, b"GET / HTTP/1.1\r\nX-Slow: " + b"a" * 500))
        status, error = await refusal(peer)

        assert (status, error["code"]) == (408, None)
        assert TIMEOUT_S <= time.monotonic() - began_s < TIMEOUT_S + 1
        await slow


async def test_a_head_that_trickles_in_on_a_kept_connection_is_cut_too():
    async with serve(echo, header_timeout_s=TIMEOUT_S) as server, server.connect() as peer:
        peer.get("first")
        assert (await peer.answer())[0] == 200
        await asyncio.sleep(2 * TIMEOUT_S)  # being idle between requests is the keep-alive's affair

        slow = asyncio.create_task(trickle(peer, b"GET / HTTP/1.1\r\nX-Slow: " + b"a" * 500))
        status, _ = await refusal(peer)

        assert status == 408
        await slow


async def test_who_says_nothing_at_all_is_closed_without_a_word():
    async with serve(echo, header_timeout_s=TIMEOUT_S) as server, server.connect() as peer:
        assert await peer.rest() == b""


async def test_empty_lines_do_not_keep_a_connection():
    async with serve(echo, header_timeout_s=TIMEOUT_S) as server, server.connect() as peer:
        slow = asyncio.create_task(trickle(peer, b"\r\n" * 500))

        assert (await refusal(peer))[0] == 408
        await slow


async def test_empty_lines_after_an_answer_do_not_keep_a_connection():
    async with serve(echo, keep_alive_s=KEEP_ALIVE_S) as server, server.connect() as peer:
        peer.get()
        await peer.answer()
        slow = asyncio.create_task(trickle(peer, b"\r\n" * 500))

        await peer.rest()
        await slow


async def test_a_head_in_pieces_that_is_quick_enough_is_served():
    async with serve(echo, header_timeout_s=1.0) as server, server.connect() as peer:
        await trickle(peer, b"GET /in-pieces HTTP/1.1\r\nHost: x\r\n\r\n")

        status, _, body = await peer.answer()

        assert (status, json.loads(body)["path"]) == (200, "/in-pieces")


async def test_a_slow_answer_is_no_slow_head():
    async def late(exchange: Exchange, cycle: Any) -> None:
        await asyncio.sleep(3 * TIMEOUT_S)
        await echo(exchange, cycle)

    async with serve(late, header_timeout_s=TIMEOUT_S) as server, server.connect() as peer:
        peer.get("first")
        peer.send(b"GET /second HTTP/1.1\r\nHo")  # the next one's head comes while the first is under way

        status, _, body = await peer.answer()
        assert (status, json.loads(body)["path"]) == (200, "/first")
        peer.send(b"st: x\r\n\r\n")
        assert json.loads((await peer.answer())[2])["path"] == "/second"


@pytest.mark.parametrize("prefix", [b"", b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_an_endless_header_is_refused_while_it_arrives(prefix: bytes):
    async with serve(echo) as server, server.connect() as peer:
        if prefix:
            peer.send(prefix)
            await peer.answer()
        peer.send(b"GET / HTTP/1.1\r\nX-Fat: ")
        for _ in range(2 * MAX_HEAD_BYTES // 1024):
            peer.send(b"a" * 1024)
            await asyncio.sleep(0)

        assert (await refusal(peer))[0] == 431


async def test_endless_headers_are_refused_while_they_arrive():
    async with serve(echo) as server, server.connect() as peer:
        peer.send(b"GET / HTTP/1.1\r\n")
        for index in range(2 * MAX_HEADERS):
            peer.send(b"X-%d: 1\r\n" % index)
            await asyncio.sleep(0.0005)

        assert (await refusal(peer))[0] == 431


@pytest.mark.parametrize(
    "headers", [b"X-Fat: " + b"a" * MAX_HEAD_BYTES + b"\r\n", b"".join(b"X-%d: 1\r\n" % n for n in range(3_000))]
)
async def test_a_fat_handshake_is_refused(headers: bytes):
    async with serve(echo) as server, server.connect() as peer:
        peer.send(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + headers + b"\r\n"
        )

        assert (await refusal(peer))[0] == 431


@pytest.mark.parametrize(
    "raw",
    [
        b"this is not HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX : space before the colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: first\r\n\r\n",
        b"GET / HTTP/1.1\nHost: bare line feeds\n\n\x00",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n\x00\x00",
    ],
)
async def test_what_is_not_http_is_answered_once_or_not_at_all(raw: bytes):
    async with serve(echo) as server, server.connect() as peer:
        peer.send(raw)
        peer.writer.write_eof()

        answers = await peer.rest()

        assert answers.count(b"HTTP/1.1 ") <= 1
        assert b"/evil" not in answers
        assert not answers or answers.split()[1] in (b"400", b"501", b"200")


async def test_nonsense_does_not_get_into_an_answer_that_is_under_way():
    began = asyncio.Event()

    async def streaming(exchange: Exchange, cycle: Any) -> None:
        await exchange.start_stream()
        await exchange.send_part(b"data: 1\n\n")
        began.set()
        while (await exchange.receive())["type"] != "http.disconnect":
            pass

    async with serve(streaming) as server, server.connect() as peer:
        peer.get()
        await began.wait()

        peer.send(b"\x00nonsense\r\n\r\n")

        rest = await peer.rest()
        assert rest.count(b"HTTP/1.1") == 1
        assert rest.endswith(b"data: 1\n\n\r\n")


async def test_an_answer_before_the_whole_request_arrives_though_the_client_goes_on_sending():
    async def refuse(exchange: Exchange, cycle: Any) -> None:
        await exchange.send_json({"read": 0}, status=413)

    async with serve(refuse) as server, server.connect() as peer:
        size = 8 * 1024 * 1024
        peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            peer.send(b"a" * 65536)
            await peer.writer.drain()

        status, headers, body = await peer.answer()

        assert (status, headers["connection"], body) == (413, "close", b'{"read":0}')
        assert await peer.rest() == b""
        peer.writer.close()
        await until(lambda: not server.protocols, "the connection is gone")


async def test_a_body_that_comes_later_keeps_its_connection():
    async with serve(echo) as server, server.connect() as peer:
        raw = post("late", b"abc")
        peer.send(raw[:-1])
        await asyncio.sleep(0.05)
        peer.send(raw[-1:])
        assert (await peer.answer())[0] == 200

        peer.get("next")
        assert (await peer.answer())[0] == 200


async def test_trailers_are_no_headers():
    async def show(exchange: Exchange, cycle: Any) -> None:
        body = await exchange.read_body(max_bytes=1000, timeout_s=5)
        await exchange.send_json({"body": body.decode(), "headers": len(exchange._headers)})

    async with serve(show) as server, server.connect() as peer:
        peer.send(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
        )
        assert json.loads((await peer.answer())[2]) == {"body": "abc", "headers": 1}

        peer.get()
        assert (await peer.answer())[0] == 200


@pytest.mark.parametrize(
    "padding", [b"0\r\n" + b"X: 1\r\n" * 100_000, b"1;" + b"x" * 1_000_000, b"1;x=%b\r\na\r\n" % (b"y" * 900) * 1_000]
)
async def test_a_body_may_not_be_padded_for_ever(padding: bytes):
    async with serve(echo, max_body_bytes=10_000) as server, server.connect() as peer:
        peer.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for at in range(0, len(padding), 8192):
                peer.send(padding[at : at + 8192])
                await peer.writer.drain()
            await peer.rest()
        except ConnectionError:
            pass
        await until(lambda: not server.protocols, "the connection is gone")
