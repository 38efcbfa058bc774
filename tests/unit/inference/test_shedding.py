"""A loop that lags is given nothing more: the whole of /v1 says so before it does any work."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from inference.openai.routing import DataPlane
from inference.requestlog import RequestLog


class Untouched:
    """Stands for what a refused request must not reach."""

    def list_models(self, *_: object) -> None: ...

    get_model = create_chat_completion = list_models

    def peek(self, *_: object) -> None:
        raise AssertionError("a key was looked up")


async def ask(lag_s: float, path: str) -> list[dict[str, Any]]:
    """Return what is sent in answer to a GET without a key."""
    keyring = cast("Any", Untouched())
    plane = DataPlane(cast("Any", Untouched()), keyring, RequestLog(enabled=False), lag_s=lambda: lag_s, shed_lag_s=0.5)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await plane({"method": "GET", "path": path, "headers": []}, cast("Any", None), send)
    return sent


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/nowhere"])
async def test_while_the_loop_lags_every_path_sheds(path: str):
    start, body = await ask(0.51, path)

    assert start["status"] == 503
    assert {(b"retry-after", b"1"), (b"retry-after-ms", b"1000")} <= set(start["headers"])
    assert msgspec.json.decode(body["body"])["error"]["code"] == "engine_overloaded"


async def test_a_loop_that_keeps_up_does_not(path: str = "/v1/models"):
    start, _ = await ask(0.5, path)

    assert start["status"] == 401
