"""The queue as its users meet it: how much may wait, who is told when to come again, and what is told afterwards."""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest

from cluster.protocol.messages import Assign
from tests.client import Call, call, until, worker
from tests.fakes import FakeBackend
from tests.live import LiveServer, live_server, wait_until

MODEL = "llama-3-8b"
MAX_WAITING, SHARE = 8, 0.5
OWN_SHARE = int(MAX_WAITING * SHARE)
REFUSED_WITHIN_MS = 50
SILENT = ("--ttft-ms", "60000", "--itl-ms", "0")
PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    environment = {
        "GPUCLOUD_HEARTBEAT_S": "0.5",
        "GPUCLOUD_QUEUE_TIMEOUT_S": "10",
        "GPUCLOUD_EARLY_HEADERS_S": "30",
        "GPUCLOUD_MAX_WAITING": str(MAX_WAITING),
        "GPUCLOUD_MAX_WAITING_SHARE": str(SHARE),
    }
    with live_server(tmp_path_factory.mktemp("queue"), **environment) as server:
        yield server
        assert server.manage("balance").splitlines()[-1] == "balance: 0"


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    """A server without workers, and without requests at the end of the test; its books balance after all tests."""
    yield shared
    shared.stop_workers()
    wait_until(lambda: not open_rows(shared), "all is settled")


@pytest.fixture(scope="module")
def keys(shared: LiveServer) -> list[str]:
    """Keys of three tenants."""
    others = [shared.manage("createkey", "--user", f"{name}@example.com", "--rpm", "0") for name in ("bob", "carol")]
    return [shared.key, *(key.strip() for key in others)]


def open_rows(server: LiveServer) -> list[dict[str, Any]]:
    return server.rows("SELECT id FROM inference_request WHERE state = 'open'")


def finish(backend: FakeBackend, assign: Assign) -> None:
    backend.step(assign.task, assign.attempt, 0, "done")
    backend.finish(assign.task, assign.attempt)


def serve_each(backend: FakeBackend, seconds: float, *, since: int = 0) -> None:
    """Have every task answered after so long, also those it has been given, but for the first few."""

    def on_assign(assign: Assign) -> None:
        asyncio.get_running_loop().call_later(seconds, finish, backend, assign)

    backend.on_assign = on_assign
    for assign in backend.assigned[since:]:
        on_assign(assign)


async def fill(stack: AsyncExitStack, server: LiveServer, key: str, count: int) -> list[Call]:
    """Put so many more requests of one tenant on record, and leave them there."""
    before = len(open_rows(server))
    calls = [await stack.enter_async_context(call(server, key=key)) for _ in range(count)]
    await until(lambda: len(open_rows(server)) == before + count, "all are on record")
    return calls


async def refusal(server: LiveServer, key: str) -> tuple[Call, dict[str, Any]]:
    async with call(server, key=key, stream=True) as refused:
        return refused, (await refused.answer())["error"]


async def test_a_full_share_is_429_and_a_full_queue_503_at_once_and_who_waits_is_served(
    server: LiveServer, keys: list[str]
):
    alice, bob, carol = keys
    async with AsyncExitStack() as stack, worker(server) as backend:
        waiting = await fill(stack, server, alice, 1 + OWN_SHARE)
        refused, error = await refusal(server, alice)
        assert (refused.status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
        refusals = [refused]

        waiting += await fill(stack, server, bob, MAX_WAITING - OWN_SHARE)
        refused, error = await refusal(server, carol)
        assert (refused.status, error["type"], error["code"]) == (503, "server_error", "engine_overloaded")
        refusals.append(refused)

        for refused in refusals:
            assert int(refused.headers["openai-processing-ms"]) < REFUSED_WITHIN_MS
            seconds, millis = int(refused.headers["retry-after"]), int(refused.headers["retry-after-ms"])
            assert 1 <= seconds <= 10
            assert seconds - 1 < millis / 1000 <= seconds
        serve_each(backend, 0.0)
        assert {(await answered.answer())["object"] for answered in waiting} == {"chat.completion"}
    states = server.rows("SELECT state, error_code, attempts FROM inference_request WHERE state = 'failed'")
    assert sorted(row["error_code"] for row in states) == ["engine_overloaded", "rate_limit_exceeded"]
    assert {row["attempts"] for row in states} == {0}


async def test_a_client_that_comes_again_when_it_was_told_to_is_served(server: LiveServer, keys: list[str]):
    alice = keys[0]
    sql = "SELECT id FROM inference_request WHERE error_code = 'rate_limit_exceeded'"
    async with (
        AsyncExitStack() as stack,
        worker(server) as backend,
        openai.AsyncOpenAI(base_url=server.base_url, api_key=alice, max_retries=1, timeout=20) as client,
    ):
        before = len(server.rows(sql))
        waiting = await fill(stack, server, alice, 1 + OWN_SHARE)
        for number, answered in enumerate(waiting[:3]):
            # The line moves, so from now on it is known how fast it moves.
            await until(lambda number=number: backend.assigned[number:], "an assignment")
            await asyncio.sleep(0.1)
            finish(backend, backend.assigned[number])
            await answered.answer()
        waiting = waiting[3:] + await fill(stack, server, alice, 3)
        refused, _ = await refusal(server, alice)
        assert refused.status == 429
        assert int(refused.headers["retry-after-ms"]) < 5_000
        await until(lambda: len(server.rows(sql)) == before + 1, "that is on record")

        asked = asyncio.create_task(
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=8)
        )
        await until(lambda: len(server.rows(sql)) == before + 2, "it is refused")
        serve_each(backend, 0.1, since=3)

        assert (await asked).choices[0].message.content == "done"
        assert len(server.rows(sql)) == before + 2
        for other in waiting:
            await other.answer()


async def test_a_whole_answer_that_its_client_leaves_is_billed_for_what_was_generated(server: LiveServer):
    async with worker(server, capacity=2) as backend:
        async with call(server) as leaving:
            await until(lambda: backend.assigned, "an assignment")
            async with call(server) as other:
                await until(lambda: len(backend.assigned) == 2, "the other's assignment")
                left, answered = (assign.task for assign in backend.assigned)
                backend.step(left, 1, 0, "half ", "an ", "answer")
                # Over the same link, so when it is answered the three tokens have arrived.
                backend.finish(answered, 1)
                await other.answer()

            leaving.leave()

            await until(lambda: (left, 1) in backend.cancelled, "it is cancelled")
        sql = "SELECT * FROM inference_request WHERE id = ? AND ended_at IS NOT NULL"
        (row,) = await until(lambda: server.rows(sql, left), "its final row")
    assert (row["state"], row["error_code"]) == ("cancelled", "client_closed")
    assert (row["completion_tokens"], row["generated_tokens"], row["delivered_tokens"]) == (3, 3, 0)


def test_what_befell_a_request_whose_worker_died_can_be_read_afterwards(server: LiveServer):
    first = server.start_worker(*SILENT, name="first")
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=20) as client:

        def replace_the_worker() -> None:
            wait_until(lambda: open_rows(server), "the request is on record")
            first.kill()
            wait_until(lambda: "worker left: first" in server.log(), "its death is noticed")
            server.start_worker("--speed", "0", name="second")

        replacing = threading.Thread(target=replace_the_worker)
        replacing.start()
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
        replacing.join()
    request_id = raw.headers["x-request-id"]

    story = json.loads(server.manage("shell", "--no-imports", "-c", SHOW_STORY.format(request_id=request_id)))

    kinds = [event[0] for event in story]
    assert kinds == ["admitted", "assigned", "retried", "queued", "assigned", "first_token", "settled"]
    assert story[1][2:5:2] == [1, "first"] and story[4][2:5:2] == [2, "second"]
    assert story[2][3] == "worker_lost"
    assert story[6][2:] == ["completed", "length"]
    times = [event[1] for event in story]
    assert times == sorted(times)
    page = read_admin_page(server, f"/admin/inference/request/{request_id}/change/")
    assert "attempt 1 ended: worker_lost; the next one starts afresh" in page
    assert "attempt 2 to second (H100); the only candidate" in page
    assert "no worker took tasks of its model" in page


SHOW_STORY = """
import msgspec
from accounts.models import User
from inference.selectors import get_timeline
User.objects.create_superuser("dora@example.com", "correct horse battery staple")
print(msgspec.json.encode(get_timeline(request_id="{request_id}")).decode())
"""


def read_admin_page(server: LiveServer, path: str) -> str:
    """Return a page of the admin as an operator sees it."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    login = f"{server.url}/admin/login/?next={urllib.parse.quote(path)}"
    with browser.open(login, timeout=10) as response:
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', response.read().decode())
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "username": "dora@example.com", "password": PASSWORD, "next": path}
    with browser.open(login, urllib.parse.urlencode(form).encode(), timeout=10) as response:
        assert response.url == server.url + path
        return str(response.read().decode())
