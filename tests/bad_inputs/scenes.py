"""Rows of `/v1` and `/api` that take more than one request. A scene returns the answer that its row is about."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.bad_inputs.bodies import chat, login
from tests.bad_inputs.rows import Row
from tests.bad_inputs.stage import Stage
from tests.bad_inputs.wire import Answer, NoAnswer, ask, compose
from tests.live import live_server, wait_until

Scene = Callable[[Stage, Row], Awaitable[Answer]]


async def _half_close(stage: Stage, row: Row) -> Answer:
    """A client that half closes is one that leaves; its slot comes free."""
    running = stage.server.rows("SELECT count(*) AS n FROM inference_request")[0]["n"]
    raw = compose(row.method, row.path, stage.headers(row), stage.fill(chat(max_tokens=500)))
    try:
        await ask(stage.port, raw, half_close=True)
    except NoAnswer:
        pass
    for _ in range(100):
        (row_,) = stage.server.rows("SELECT count(*) AS n FROM inference_request WHERE state = 'running'")
        if not row_["n"]:
            break
        await asyncio.sleep(0.05)
    assert not row_["n"], f"of {running + 1} requests {row_['n']} still run"
    return await stage.chat()


async def _requests_limit(stage: Stage, row: Row) -> Answer:
    answers = await asyncio.gather(*[stage.chat(key=stage.values["LIMITED"]) for _ in range(6)])
    assert Counter(answer.status for answer in answers) == {200: 5, 429: 1}
    (refused,) = [answer for answer in answers if answer.status == 429]
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-ratelimit-limit-requests"] == "5"
    return refused


async def _tokens_limit(stage: Stage, row: Row) -> Answer:
    for _ in range(10):
        answer = await stage.chat(key=stage.values["THIRSTY"], max_tokens=20)
        if answer.status != 200:
            break
    return answer


async def _budget(stage: Stage, row: Row) -> Answer:
    await stage.chat(key=stage.values["POOR"])
    answer = await stage.chat(key=stage.values["POOR"])
    assert answer.headers["x-should-retry"] == "false"
    return answer


async def _no_worker(stage: Stage, row: Row) -> Answer:
    return await stage.chat(model="gpt-3.5-turbo")


async def _full_and_draining(stage: Stage, row: Row, folder: Path) -> tuple[Answer, Answer]:
    """Return the answers of a server whose queue is full, and of one that drains."""
    bounds = {
        "GPUCLOUD_MAX_WAITING": "2",
        "GPUCLOUD_MAX_WAITING_SHARE": "1",
        "GPUCLOUD_NO_WORKER_GRACE_S": "30",
        "GPUCLOUD_DRAIN_S": "5",
    }
    with live_server(folder, **bounds) as server:
        headers = [("Host", "x"), ("Content-Type", "application/json"), ("Authorization", f"Bearer {server.key}")]
        raw = compose("POST", "/v1/chat/completions", headers, stage.fill(chat(max_tokens=20)))
        others_key = server.manage("createkey", "--user", "bob@example.com", "--rpm", "0").strip()
        others = raw.replace(server.key.encode(), others_key.encode())
        asked = [asyncio.create_task(ask(server.port, each)) for each in (raw, others, others)]
        (done,), waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        full = done.result()
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz")[0] == 503, "not ready any more")
        draining = await ask(server.port, raw)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return full, draining


async def _bad_logins(stage: Stage, row: Row) -> Answer:
    headers = [(name, value) for name, value in stage.headers(row) if name != "X-Forwarded-For"]

    async def attempt(password: str) -> Answer:
        body = stage.fill(login(email="$LOCKED", password=password).decode()).encode()
        return await ask(
            stage.port, compose(row.method, row.path, [*headers, ("X-Forwarded-For", stage.address())], body)
        )

    statuses = [(await attempt("wrong")).status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    right = await attempt(stage.values["PASS"])
    assert right.status == 429, "the right password is no better while the account is locked"
    return right


async def _registrations(stage: Stage, row: Row) -> Answer:
    headers = stage.headers(row)
    for number in range(50):
        body = json.dumps({"email": f"crowd{number}@x.test", "password": "x"}).encode()
        answer = await ask(stage.port, compose(row.method, row.path, headers, body))
        if answer.status == 429:
            break
    return answer


async def _one_key_too_many(stage: Stage, row: Row) -> Answer:
    sql = (
        "INSERT INTO accounts_apikey SELECT {columns} FROM accounts_apikey, "
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001) SELECT i FROM n) "
        "WHERE accounts_apikey.id = ?"
    )
    columns = [found["name"] for found in stage.server.rows("PRAGMA table_info(accounts_apikey)")]
    unique = {"id": "100000 + i", "prefix": "printf('sk-%08d', i)", "digest": "printf('%064x', i)"}
    picked = ", ".join(unique.get(name, f'"{name}"') for name in columns)
    stage.server.execute(sql.format(columns=picked), stage.values["OWN_KEY_ID"])
    try:
        body = json.dumps({"name": "one more"}).encode()
        return await ask(stage.port, compose(row.method, row.path, stage.headers(row), body))
    finally:
        stage.server.execute("DELETE FROM accounts_apikey WHERE id > 100000")


SCENES: dict[str, Scene] = {
    "v1-http-20": _half_close,
    "v1-lim-01": _requests_limit,
    "v1-lim-02": _tokens_limit,
    "v1-lim-03": _budget,
    "v1-lim-05": _no_worker,
    "api-auth-06": _bad_logins,
    "api-auth-12": _registrations,
    "api-key-09": _one_key_too_many,
}
OVERLOADED = ("v1-lim-04", "v1-lim-06")
"""Rows about a server of their own; see `play_overload`."""

play_overload = _full_and_draining
