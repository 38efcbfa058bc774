from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from gpucloud.intake import MAX_API_BYTES, MAX_FORM_BYTES, MAX_HEADERS, take_in
from gpucloud.lib.asgi import Message, Receive, Scope, Send


class Visit:
    """One request through the door, and what became of it."""

    def __init__(self, path: str = "/login/", *, method: str = "POST", **head: Any) -> None:
        self.scope: Scope = {"type": "http", "path": path, "method": method, "headers": [], **head}
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.answer = b""
        self.arrived: bytes | None = None
        """The body as the application saw it; None if it was not asked."""

    async def come(self, parts: Sequence[bytes] = (b"",), *, hang: bool = False, leave: bool = False) -> Visit:
        waiting = [
            {"type": "http.request", "body": part, "more_body": hang or leave or index < len(parts) - 1}
            for index, part in enumerate(parts)
        ]

        async def receive() -> Message:
            if waiting:
                return waiting.pop(0)
            if hang:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])
            else:
                self.answer += message["body"]

        await take_in(self._application, timeout_s=0.05)(self.scope, receive, send)
        return self

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        self.arrived = message["body"]
        assert not message["more_body"]
        assert (await receive())["type"] == "http.disconnect", "what comes after the body is the connection's"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_a_body_arrives_whole_however_it_came():
    visit = await Visit().come([b"a=1", b"", b"&b=2"])

    assert (visit.status, visit.arrived) == (200, b"a=1&b=2")


@pytest.mark.parametrize(("path", "limit"), [("/api/keys", MAX_API_BYTES), ("/admin/", MAX_FORM_BYTES)])
async def test_a_body_is_taken_up_to_its_bound(path: str, limit: int):
    assert (await Visit(path).come([b"x" * limit])).status == 200
    refused = await Visit(path).come([b"x" * limit, b"x"])
    announced = await Visit(path, headers=[(b"content-length", b"%d" % (limit + 1))]).come([b"x"], hang=True)

    assert (refused.status, refused.arrived) == (413, None)
    assert (announced.status, announced.arrived) == (413, None)


async def test_an_absurd_length_is_no_trouble():
    assert (await Visit(headers=[(b"content-length", b"9" * 5_000)]).come()).status == 413


async def test_a_login_with_a_huge_password_is_a_bad_value():
    visit = await Visit("/api/auth/login").come([b'{"password": "', b"x" * 1_000_000, b'"}'])

    assert (visit.status, visit.arrived) == (400, None)
    assert json.loads(visit.answer)["code"] == "max_length"


async def test_a_body_that_trickles_in_is_cut():
    visit = await Visit("/api/keys").come([b"{"], hang=True)

    assert (visit.status, visit.arrived) == (408, None)
    assert json.loads(visit.answer)["code"] == "request_timeout"


async def test_who_leaves_before_the_body_is_whole_gets_no_answer():
    visit = await Visit().come([b"{"], leave=True)

    assert (visit.status, visit.arrived) == (0, None)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ({"headers": [(b"x", b"y")] * (MAX_HEADERS + 1)}, 431),
        ({"headers": [(b"cookie", b"y" * 40_000)]}, 431),
        ({"query_string": b"next=" + b"x" * 40_000}, 431),
        ({"raw_path": b"/" + b"x" * 40_000}, 431),
        ({"query_string": b"q=%00"}, 400),
        ({"path": "/docs/\0/", "raw_path": b"/docs/%00/"}, 400),
        ({"method": "TRACE"}, 405),
        ({"method": "CONNECT"}, 405),
        ({"headers": [(b"content-encoding", b"gzip")]}, 415),
        ({"headers": [(b"content-encoding", b"identity"), (b"content-encoding", b"br")]}, 415),
    ],
)
async def test_what_the_head_gives_away_is_refused_before_the_body(head: dict[str, Any], status: int):
    visit = await Visit(**head).come([b"x"], hang=True)

    assert (visit.status, visit.arrived) == (status, None)
    assert visit.headers[b"cache-control"] == b"no-store"


async def test_refusals_of_the_api_are_json_and_others_a_line():
    api = await Visit("/api/keys", query_string=b"%00").come()
    page = await Visit("/login/", query_string=b"%00").come()

    assert json.loads(api.answer) == {"code": "bad_request", "detail": "A URL must not contain NUL characters (%00)."}
    assert page.headers[b"content-type"].startswith(b"text/plain")
