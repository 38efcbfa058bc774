"""Good requests with a few bytes or values changed: whatever they have become, the server stands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_inputs.bodies import chat, login
from tests.bad_inputs.stage import ENVIRONMENT, Stage
from tests.bad_inputs.wire import Answer, NoAnswer, ask, compose
from tests.live import live_server

TOGETHER = 20
"""Requests of one example, sent at once."""
FINE = range(200, 500)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    quick = ENVIRONMENT | {"GPUCLOUD_HEADER_TIMEOUT_S": "0.5", "GPUCLOUD_BODY_TIMEOUT_S": "0.5"}
    with live_server(tmp_path_factory.mktemp("mutations"), **quick) as server:
        server.start_worker("--speed", "0", "--model", "llama-3-8b", "mistral-7b", name="good")
        yield Stage(server)
        log = server.log()
        assert "Traceback" not in log
        assert " ERROR " not in log


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\0", "\ud800", 2**63, -(2**63) - 1, 1e308, "$MODEL", [], {}, "system"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PARAMETERS = st.sampled_from(
    [
        *("model", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options", "seed"),
        *("user", "metadata", "logit_bias", "logprobs", "service_tier", "tools", "response_format", "unheard_of"),
    ]
)
CHATS = st.dictionaries(PARAMETERS, VALUES, max_size=3).map(lambda changes: chat(**changes))
LOGINS = st.builds(lambda email, password: login(email=email, password=password), VALUES, VALUES)
PIECES = st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\0", b":", b'"'])
SPLICES = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 8), PIECES), min_size=1, max_size=4)
WHOLE: st.SearchStrategy[list[Any]] = st.just([])
KINDS = {
    "values": st.tuples(st.just("/v1/chat/completions"), CHATS, WHOLE),
    "bytes": st.tuples(st.just("/v1/chat/completions"), CHATS, SPLICES),
    "logins": st.tuples(st.just("/api/auth/login"), LOGINS, WHOLE | SPLICES),
}


def spliced(raw: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    """Return bytes with pieces of them replaced."""
    for at, length, piece in splices:
        at %= len(raw)
        raw = raw[:at] + piece + raw[at + length :]
    return raw


def request(stage: Stage, path: str, body: bytes) -> bytes:
    headers = [
        ("Host", "127.0.0.1"),
        ("Content-Type", "application/json"),
        ("Authorization", f"Bearer {stage.values['GOODKEY']}"),
        ("X-Forwarded-For", stage.address()),
    ]
    return compose("POST", path, headers, stage.fill(body))


async def send(stage: Stage, raws: list[bytes]) -> list[Answer | NoAnswer | TimeoutError]:
    async def one(raw: bytes) -> Answer | NoAnswer | TimeoutError:
        try:
            return await ask(stage.port, raw)
        except (NoAnswer, TimeoutError) as error:
            return error

    return list(await asyncio.gather(*map(one, raws)))


def check(stage: Stage, raws: list[bytes]) -> None:
    """Send requests at once; each gets an answer that is no 5xx, or a closed door, and a good one still works."""
    for raw, answer in zip(raws, asyncio.run(send(stage, raws)), strict=True):
        assert not isinstance(answer, TimeoutError), raw
        if isinstance(answer, Answer):
            assert answer.status in FINE, (raw, answer)
            if answer.status >= 400 and raw.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n"):
                assert answer.error["message"]
    assert asyncio.run(stage.chat()).status == 200


def play(stage: Stage, batch: list[tuple[str, bytes, list[tuple[int, int, bytes]]]]) -> None:
    check(stage, [spliced(request(stage, path, body), splices) for path, body, splices in batch])


def batches(kind: str) -> Any:
    together = 5 if kind == "logins" else TOGETHER
    return st.lists(KINDS[kind], min_size=together, max_size=together)


MANY = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=300)


@pytest.mark.parametrize("kind", KINDS)
@settings(MANY, max_examples=5)
@given(data=st.data())
def test_a_few_changed_requests_break_nothing(stage: Stage, kind: str, data: Any):
    play(stage, data.draw(batches(kind)))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@MANY
@given(data=st.data())
def test_many_changed_requests_break_nothing(stage: Stage, kind: str, data: Any):
    play(stage, data.draw(batches(kind)))
