"""Which pages may call /v1, and that nobody pays for it who does not ask."""

from __future__ import annotations

from typing import Any

import pytest

from inference.openai.cors import allow_origins

APP = "https://app.example"


class Server:
    """What a server hands to an application: its `send` is a method of something that can do more."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.aborted = False

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    def take_body(self) -> bytes:
        return b"the body"

    def abort(self) -> None:
        self.aborted = True

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


class Inner:
    """The data plane: remembers what it was given, and answers 401."""

    def __init__(self) -> None:
        self.send: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.send = send
        await send({"type": "http.response.start", "status": 401, "headers": [(b"x-request-id", b"req_1")]})
        await send({"type": "http.response.body", "body": b"{}"})


async def ask(*headers: tuple[str, str], method: str = "POST") -> tuple[Inner, Server]:
    inner, server = Inner(), Server()
    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/models",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    await allow_origins(inner, [APP, "http://localhost:3000"])(scope, None, server.send)  # type: ignore[arg-type]
    return inner, server


def test_without_origins_the_data_plane_stands_alone() -> None:
    inner = Inner()

    assert allow_origins(inner, []) is inner


async def test_a_request_that_is_not_a_pages_reaches_the_data_plane_as_it_came() -> None:
    inner, server = await ask(("authorization", "Bearer x"))

    assert inner.send == server.send
    assert server.headers == {b"x-request-id": b"req_1"}


async def test_a_refusal_too_can_be_read_by_an_allowed_page() -> None:
    _, server = await ask(("origin", APP))

    assert server.sent[0]["status"] == 401
    assert server.headers[b"access-control-allow-origin"] == APP.encode()
    assert server.headers[b"vary"] == b"Origin"
    assert {b"x-request-id", b"retry-after", b"x-ratelimit-remaining-tokens"} <= set(
        server.headers[b"access-control-expose-headers"].split(b", ")
    )
    assert b"access-control-allow-credentials" not in server.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://APP.example",
        "https://app.example/",
        "null",
        "*",
        "",
    ],
)
async def test_another_origin_is_told_nothing(origin: str) -> None:
    for method in ("POST", "OPTIONS"):
        _, server = await ask(("origin", origin), ("access-control-request-method", "POST"), method=method)

        assert server.sent[0]["status"] == 401
        assert [name for name in server.headers if name.startswith(b"access-control")] == []
        assert server.headers[b"vary"] == b"Origin"


async def test_two_origins_are_none() -> None:
    _, server = await ask(("origin", APP), ("origin", "https://evil.example"))

    assert b"access-control-allow-origin" not in server.headers


async def test_a_preflight_is_answered_before_anybody_asks_for_a_key() -> None:
    inner, server = await ask(
        ("origin", APP),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,OpenAI-Organization, x-stainless-retry-count,x-evil,cookie"),
        method="OPTIONS",
    )

    assert inner.send is None
    assert server.sent[0]["status"] == 204
    assert server.headers[b"access-control-allow-origin"] == APP.encode()
    assert b"POST" in server.headers[b"access-control-allow-methods"]
    allowed = set(server.headers[b"access-control-allow-headers"].split(b", "))
    assert {b"authorization", b"content-type", b"openai-organization", b"x-stainless-retry-count"} <= allowed
    assert not allowed & {b"x-evil", b"cookie", b"*"}
    assert int(server.headers[b"access-control-max-age"]) > 0


async def test_what_a_server_offers_beyond_asgi_is_still_there_for_a_page() -> None:
    inner, server = await ask(("origin", APP))
    offered = inner.send.__self__

    assert offered.take_body() == b"the body"
    assert offered.answer(200, b"", b"") is False
    offered.abort()
    assert server.aborted
