"""The server as a process: how it starts, what it refuses, how it ends, and what is left when it is killed."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.client import call
from tests.live import LiveServer, free_port, is_alive, live_server, wait_until

SLOW = ("--ttft-ms", "1", "--itl-ms", "30")
FAST = ("--speed", "0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a fast worker, for tests that leave it as it is."""
    with live_server(tmp_path_factory.mktemp("server"), GPUCLOUD_BODY_TIMEOUT_S="0.5") as server:
        server.start_worker(*FAST, name="fast")
        yield server


@pytest.fixture
def unstarted(tmp_path: Path) -> Iterator[LiveServer]:
    """A server's folder, prepared; what runs there at the end is ended."""
    server = LiveServer(tmp_path)
    server.prepare()
    yield server
    server.stop(signal.SIGKILL)


def states(server: LiveServer) -> dict[str, int]:
    sql = "SELECT state, count(*) AS count FROM inference_request GROUP BY state"
    return {row["state"]: row["count"] for row in server.rows(sql)}


async def status_of(server: LiveServer, key: str) -> int:
    async with call(server, key=key, max_tokens=1) as client:
        return await client.head()


async def test_on_sigterm_running_requests_finish_and_new_ones_are_sent_elsewhere(tmp_path: Path):
    with live_server(tmp_path, GPUCLOUD_HEARTBEAT_S="0.5") as server:
        worker = server.start_worker(*SLOW)
        async with call(server, stream=True, max_tokens=50) as running, call(server, max_tokens=40) as whole:
            assert await running.head() == 200
            first = await running.token()
            assert server.process is not None

            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/readyz")[0] == 503, "not ready any more")

            async with call(server) as refused:
                error = (await refused.answer())["error"]
            assert (refused.status, error["code"], error["type"]) == (503, "server_draining", "server_error")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert server.get("/healthz")[0] == 200
            events = await running.events()
            assert (await whole.answer())["usage"]["completion_tokens"] == 40

        assert first
        assert events[-1] == "[DONE]"
        assert len(events) == 49 + 2, "all tokens but the first, the finish chunk, the farewell"
        assert server.process.wait(10) == 0
        assert worker.poll() is None, "the worker waits for the next server"
        assert states(server) == {"completed": 2}
        assert "Traceback" not in server.log()


async def test_what_outlives_the_drain_ends_with_a_typed_error(tmp_path: Path):
    with live_server(tmp_path, GPUCLOUD_DRAIN_S="0.5") as server:
        server.start_worker(*SLOW)
        async with call(server, stream=True, max_tokens=4000) as stream, call(server, max_tokens=4000) as whole:
            assert await stream.head() == 200
            await stream.token()
            assert server.process is not None
            began_s = time.monotonic()

            server.process.send_signal(signal.SIGTERM)

            last = json.loads((await stream.events())[-1])
            assert last["error"]["code"] == "server_draining"
            assert (await whole.answer())["error"]["code"] == "server_draining"
            assert (whole.status, whole.headers["retry-after"]) == (503, "1")
        assert server.process.wait(10) == 0
        assert time.monotonic() - began_s < 5
        assert states(server) == {"failed": 2}
        assert "Traceback" not in server.log()


async def test_a_second_signal_ends_the_server_at_once(tmp_path: Path):
    with live_server(tmp_path) as server:
        server.start_worker(*SLOW)
        async with call(server, stream=True, max_tokens=4000) as stream:
            assert await stream.head() == 200
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/readyz")[0] == 503, "draining")

            server.process.send_signal(signal.SIGTERM)

            server.process.wait(5)


async def test_after_kill_9_children_end_what_was_open_is_lost_and_the_books_balance(unstarted: LiveServer):
    server = unstarted
    server.start("--simulate", "1")
    async with call(server, model="gpt-4o", max_tokens=1) as done:
        await done.answer()
    children = server.children()
    assert len(children) == 1
    async with (
        call(server, model="gpt-4o", stream=True, max_tokens=4000) as stream,
        call(server, model="gpt-4o", max_tokens=4000),
    ):
        assert await stream.head() == 200
        wait_until(lambda: states(server) == {"completed": 1, "open": 2}, "both are on record")

        server.stop_server(signal.SIGKILL)

    wait_until(lambda: not any(is_alive(child) for child in children), "the children have ended", timeout_s=5)
    assert states(server) == {"completed": 1, "open": 2}
    server.start()
    assert states(server) == {"completed": 1, "lost": 2}
    billed = server.rows("SELECT completion_tokens FROM inference_request WHERE state = 'lost'")
    assert [row["completion_tokens"] for row in billed] == [0, 0]
    assert server.manage("balance").splitlines()[-1] == "balance: 0"
    assert server.stop() == 0


async def test_an_open_row_that_the_server_does_not_hold_is_found_while_it_serves_others(tmp_path: Path):
    with live_server(tmp_path) as server:
        server.start_worker(*SLOW)
        async with call(server, stream=True, max_tokens=400) as client:
            assert await client.head() == 200
            created_at = server.rows("SELECT created_at FROM inference_request")[0]["created_at"]
            sql = "SELECT node FROM inference_ledgercounter WHERE live_since = ?"
            wait_until(lambda: server.rows(sql, created_at), "the server has said what it holds")
            assert server.manage("balance").splitlines()[-1] == "balance: 0"

            with closing(sqlite3.connect(server.folder / "db.sqlite3")) as books:
                books.executescript(
                    "CREATE TEMP TABLE orphan AS SELECT * FROM inference_request;"
                    "UPDATE orphan SET id = 'req_orphan', created_at = datetime(created_at, '-1 second');"
                    "INSERT INTO inference_request SELECT * FROM orphan;"
                    "UPDATE inference_ledgercounter SET admitted = admitted + 1"
                )

            report = server.run_manage("balance")
    assert report.returncode == 1
    assert [line for line in report.stdout.splitlines() if "≠" in line] == [
        "orphaned: 1 ≠ 0 (open rows older than all that their node holds)"
    ]


def test_a_second_server_for_one_database_is_refused_by_name(server: LiveServer):
    second = server.run_manage("serve", "--port", str(free_port()))

    assert server.process is not None
    assert second.returncode == 1
    assert f"already running: pid {server.process.pid} at {server.url}" in second.stderr
    assert "Traceback" not in second.stderr
    assert server.get("/readyz")[0] == 200


def test_a_port_that_is_taken_is_refused_by_number(unstarted: LiveServer, server: LiveServer):
    done = unstarted.run_manage("serve", "--port", str(server.port))

    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{server.port}: Address already in use. Try another --port." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_is_not_migrated_is_refused(tmp_path: Path):
    done = LiveServer(tmp_path).run_manage("serve", "--port", str(free_port()))

    assert done.returncode == 1
    assert "migrations are pending" in done.stderr
    assert "manage.py migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_probes_answer_without_a_key(server: LiveServer):
    status, body = server.get("/healthz")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    assert json.loads(body)["version"]

    status, body = server.get("/readyz")
    assert (status, json.loads(body)) == (200, {"status": "ready", "ills": []})


def test_a_database_that_cannot_be_written_makes_the_server_unready_and_not_unhealthy(server: LiveServer):
    with closing(sqlite3.connect(server.folder / "db.sqlite3", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")

        status, body = server.get("/readyz")

        assert (status, json.loads(body)["ills"]) == (503, ["database: cannot write"])
        assert server.get("/healthz")[0] == 200
        lock.execute("ROLLBACK")
    wait_until(server.is_ready, "ready again")


def test_createkey_prints_the_key_alone(server: LiveServer):
    done = server.run_manage("createkey", "--user", "bob@example.com")

    assert done.returncode == 0
    assert done.stdout.strip().startswith("sk-")
    assert len(done.stdout.split()) == 1
    assert "bob@example.com" in done.stderr
    assert done.stdout.strip() not in done.stderr


@pytest.mark.parametrize("change", ["revoked_at = datetime('now')", "expires_at = datetime('now', '-1 second')"])
async def test_a_key_that_another_process_ends_is_refused_within_a_second(server: LiveServer, change: str):
    key = server.manage("createkey", "--user", "bob@example.com", "--name", "short-lived", "--rpm", "0").strip()
    assert await status_of(server, key) == 200

    server.execute(f"UPDATE accounts_apikey SET {change} WHERE name = 'short-lived'")
    ended_s = time.monotonic()
    while await status_of(server, key) == 200:
        assert time.monotonic() - ended_s < 1.0, "still accepted a second later"

    async with call(server, key=key) as client:
        error = (await client.answer())["error"]
    assert (client.status, error["code"]) == (401, "invalid_api_key")


def test_a_body_that_does_not_come_is_not_waited_for(server: LiveServer):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {server.key}\r\nContent-Length: 100\r\n\r\n{{".encode()
        )

        answer = raw.makefile("rb").read()

    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


async def test_the_development_server_serves_the_same(unstarted: LiveServer):
    unstarted.launch("runserver", "--noreload", str(unstarted.port))
    unstarted.start_worker(*FAST)

    async with call(unstarted, max_tokens=3) as whole:
        answer: Any = await whole.answer()
    async with call(unstarted, max_tokens=3, stream=True) as stream:
        assert await stream.head() == 200
        events = await stream.events()

    assert answer["usage"]["completion_tokens"] == 3
    assert events[-1] == "[DONE]"
    assert len(events) == 1 + 3 + 2
    unstarted.stop(signal.SIGINT)
