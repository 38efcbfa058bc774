"""Whole answers without ASGI: what is taken, what is left alone, and what is said when something breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from accounts.keyring import Identity
from accounts.limits import Limits
from inference.openai import endpoints as module
from inference.openai.endpoints import Endpoints
from inference.openai.routing import DataPlane
from inference.requestlog import RequestLog
from tests.unit.cluster.engine.rig import Rig
from tests.unit.inference.rig import Desk

HEADERS = [(b"authorization", b"Bearer sk-alice"), (b"content-type", b"application/json")]
CHAT = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


class Keys:
    """Knows one key, and has to look up all others."""

    terms: dict[str, Any] = {}

    def peek(self, secret: bytes, now: float) -> Identity | None:
        if secret != b"sk-alice":
            return None
        return Identity(
            key_id=1,
            user_id=1,
            tenant="u:1",
            tenant_label="Alice",
            key_label="laptop",
            prefix="sk",
            tier="default",
            highest_tier="default",
            **self.terms,
        )


class Request:
    """A request that has come whole."""

    url = b"/v1/chat/completions"

    def __init__(self, headers: list[tuple[bytes, bytes]] = HEADERS, **body: Any) -> None:
        self.headers = headers
        self.body = json.dumps(CHAT | body).encode()
        self.on_gone: Callable[[], None] | None = None
        self.status = 0
        self.head = b""
        self.said: dict[str, Any] = {}

    def take_body(self) -> bytes:
        return self.body

    def answer(self, status: int, head: bytes, body: bytes) -> bool:
        if self.status:
            return False
        self.status, self.head, self.said = status, head, json.loads(body)
        return True

    def abort(self) -> None:
        """Nobody asks for it."""


@pytest.fixture
async def desk():
    return Desk(Rig())


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def plane(desk: Desk, keys: Keys) -> DataPlane:
    endpoints = Endpoints(desk.completions, max_body_bytes=500_000, body_timeout_s=1.0)
    return DataPlane(endpoints, cast("Any", keys), RequestLog(enabled=False))


async def test_a_whole_answer_is_sent_once_it_is_on_record(desk: Desk, plane: DataPlane):
    worker, request = desk.rig.join(), Request()
    assert plane.take(request)
    task_id = next(iter(desk.rig.gateway.streams))

    worker.push(task_id, 0, "a", "b")
    worker.finish(task_id)

    assert (request.status, request.said["choices"][0]["message"]["content"]) == (200, "ab")
    assert desk.settlement.billed_tokens == 2
    assert not desk.rig.gateway.streams


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (HEADERS, {"stream": True}),
        ([(b"authorization", b"Bearer sk-bob"), HEADERS[1]], {}),
        (HEADERS, {"messages": [{"role": "user", "content": "x" * 250_000}]}),
        (HEADERS, {"user": "x" * 500_000}),
    ],
    ids=["a stream", "a key to look up", "a prompt to count in a thread", "a body that is too large"],
)
async def test_what_takes_more_than_its_answer_is_left_alone(
    desk: Desk, plane: DataPlane, headers: list[tuple[bytes, bytes]], body: dict[str, Any]
):
    request = Request(headers, **body)

    assert not plane.take(request)

    assert (request.status, desk.ledger.rows) == (0, [])


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [(HEADERS[1:], {}, 401), (HEADERS[:1], {}, 415), (HEADERS, {"max_tokens": 0}, 400), (HEADERS, {"model": "x"}, 404)],
)
async def test_what_is_wrong_is_said_at_once(
    plane: DataPlane, headers: list[tuple[bytes, bytes]], body: dict[str, Any], status: int
):
    request = Request(headers, **body)

    assert plane.take(request)

    assert request.status == status
    assert set(request.said["error"]) == {"message", "type", "param", "code"}


async def test_a_request_over_its_keys_limit_is_refused_with_all_that_helps(plane: DataPlane, keys: Keys):
    keys.terms = {"limits": Limits(requests_per_minute=1)}
    assert plane.take(Request())
    request = Request()

    assert plane.take(request)

    assert request.status == 429
    assert b"retry-after: " in request.head
    assert b"x-ratelimit-remaining-requests: 0" in request.head


async def test_the_work_for_a_client_that_leaves_is_stopped(desk: Desk, plane: DataPlane):
    desk.rig.join()
    request = Request()
    plane.take(request)
    assert request.on_gone is not None

    request.on_gone()

    assert desk.settlement.error_code == "client_closed"
    assert (request.status, desk.rig.gateway.streams) == (0, {})


async def test_a_failure_of_the_cluster_is_answered(desk: Desk, plane: DataPlane):
    request = Request()
    plane.take(request)

    desk.rig.gateway.fail_all("server_draining", "The server restarted.")

    assert (request.status, request.said["error"]["code"]) == (503, "server_draining")


async def test_a_fault_of_ours_while_a_request_is_taken_is_a_500(
    desk: Desk, plane: DataPlane, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_tell_standing", None)
    request = Request()

    assert plane.take(request)

    assert (request.status, request.said["error"]["type"]) == (500, "server_error")
    assert desk.settlement.error_code == "internal_error"


async def test_a_fault_of_ours_while_it_is_answered_is_a_500(
    desk: Desk, plane: DataPlane, monkeypatch: pytest.MonkeyPatch
):
    worker, request = desk.rig.join(), Request()
    plane.take(request)
    monkeypatch.setattr(module, "conclude", None)
    task_id = next(iter(desk.rig.gateway.streams))

    worker.finish(task_id)

    assert request.status == 500
    assert not desk.rig.gateway.streams
