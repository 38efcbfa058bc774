"""Being alive is not making progress: workers that stall, clients that do not read, people who wait."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.worker.agent import Agent
from tests.client import CHAT, call, seed_of_a_long_answer, until, worker
from tests.fakes import FakeBackend
from tests.live import WORKER_TOKEN, LiveServer, live_server, wait_until
from tests.witness import MODEL, Witness

PROGRAM = ("-m", "tests.scripted_worker")
SLOW = ("--ttft-ms", "20", "--itl-ms", "20")
STUCK_S = 1.0
LARGE = "x" * 10_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    environment = {
        "GPUCLOUD_HEARTBEAT_S": "0.5",
        "GPUCLOUD_FIRST_TOKEN_S": "1.5",
        "GPUCLOUD_NEXT_TOKEN_S": "1",
        "GPUCLOUD_STUCK_WRITER_S": str(STUCK_S),
        # Later than the first picture of the queue, which is where a position is read from.
        "GPUCLOUD_EARLY_HEADERS_S": "0.7",
    }
    with live_server(tmp_path_factory.mktemp("progress"), **environment) as server:
        yield server


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    """A server without workers."""
    yield shared
    shared.stop_workers()


@pytest.fixture
def witness(server: LiveServer, tmp_path: Path) -> Witness:
    return Witness(server, tmp_path / "saw.jsonl")


def row_of(server: LiveServer, request_id: str | None) -> dict[str, Any]:
    sql = "SELECT * FROM inference_request WHERE id = ? AND ended_at IS NOT NULL"
    (row,) = wait_until(lambda: server.rows(sql, request_id), "the final row")
    return row


def resident_bytes(server: LiveServer) -> int:
    """Return how much memory the server holds."""
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def test_a_worker_that_only_sends_heartbeats_loses_its_task_to_another(server: LiveServer, witness: Witness):
    server.start_worker("--never-work", name="idler", program=PROGRAM)
    asked = asyncio.create_task(witness.ask(stream=True, max_tokens=10))
    await until(lambda: server.rows("SELECT id FROM inference_request WHERE state = 'open'"), "it is on record")
    await asyncio.to_thread(server.start_worker, *SLOW, name="worker", program=PROGRAM)

    saw = await asked

    assert saw.done
    assert row_of(server, saw.request)["attempts"] == 2


async def test_a_worker_that_stalls_in_the_middle_of_a_stream_has_it_continued_by_an_equal(
    server: LiveServer, witness: Witness
):
    server.start_worker(*SLOW, "--stall-after", "5", name="staller", program=PROGRAM)

    def bring_another(tokens: int) -> None:
        if tokens == 3:
            server.start_worker(*SLOW, name="equal", program=PROGRAM)

    saw = await witness.ask(stream=True, max_tokens=30, seed=seed_of_a_long_answer(MODEL), on_token=bring_another)

    assert saw.done and len(saw.texts) == 30
    assert row_of(server, saw.request)["worker_name"] == "equal"


async def test_a_client_that_never_reads_holds_little_and_is_cut(server: LiveServer):
    backend = FakeBackend()
    agent = asyncio.create_task(Agent(backend, name="large", gateway=server.url, token=WORKER_TOKEN).run())
    await until(lambda: "worker joined: large" in server.log(), "the worker joined")
    before = resident_bytes(server)
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 6_000}
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        client.connect(("127.0.0.1", server.port))
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {server.key}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        try:
            await until(lambda: backend.assigned, "an assignment")
            task = backend.assigned[0].task
            for seq in range(0, 4_000, 20):
                if backend.cancelled:
                    break
                backend.step(task, 1, seq, *[LARGE] * 20)
                await asyncio.sleep(0.02)

            await until(lambda: (task, 1) in backend.cancelled, "the stuck stream is cut", timeout_s=4 * STUCK_S)
            assert resident_bytes(server) - before < 25_000_000
            assert row_of(server, task)["state"] == "cancelled"
        finally:
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)


async def test_who_waits_gets_headers_early_and_comments_with_its_position(server: LiveServer):
    async with worker(server) as backend, call(server) as running, call(server, stream=True) as waiting:
        task = (await until(lambda: backend.assigned, "an assignment"))[0].task

        assert await waiting.head() == 200
        assert not waiting.headers.get("content-length")
        lines = [await waiting._reader.readline() for _ in range(2)]  # a chunk's length, then its first line

        assert lines[1].startswith(b": queue position=1")
        backend.finish(task, 1)
        await running.answer()
        task = (await until(lambda: backend.assigned[1:], "the next assignment"))[0].task
        backend.step(task, 1, 0, "at last")
        backend.finish(task, 1)
        assert await waiting.token() == "at last"
        assert (await waiting.events())[-1] == "[DONE]"


async def test_the_priority_tier_is_served_before_a_flexible_request_that_came_first(server: LiveServer):
    key = server.manage("createkey", "--user", "bob@example.com", "--rpm", "0").strip()
    server.execute("UPDATE accounts_apikey SET highest_tier = 'priority'")
    on_record = "SELECT id FROM inference_request WHERE state = 'open'"
    async with worker(server) as backend, call(server, key=key) as running:
        await until(lambda: backend.assigned, "the first runs")
        async with call(server, key=key, service_tier="flex") as flex:
            await until(lambda: len(server.rows(on_record)) == 2, "both are on record")
            async with call(server, key=key, service_tier="priority") as priority:
                await until(lambda: len(server.rows(on_record)) == 3, "all three are on record")
                for number in range(3):
                    task = (await until(lambda number=number: backend.assigned[number:], "an assignment"))[0].task
                    backend.step(task, 1, 0, f"answer {number}")
                    backend.finish(task, 1)
                answers = [await client.answer() for client in (running, flex, priority)]

    assert [answer["service_tier"] for answer in answers] == ["default", "flex", "priority"]
    assert [answer["choices"][0]["message"]["content"][-1] for answer in answers] == ["0", "2", "1"]


async def test_a_server_that_was_stopped_and_continued_blames_none_of_its_workers(server: LiveServer, witness: Witness):
    server.start_worker("--ttft-ms", "20", "--itl-ms", "100", name="patient", program=PROGRAM)
    left = server.log().count("worker left: ")
    assert server.process is not None
    pid = server.process

    def pause(tokens: int) -> None:
        if tokens == 3:
            pid.send_signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(3.5, pid.send_signal, signal.SIGCONT)

    saw = await witness.ask(stream=True, max_tokens=40, seed=seed_of_a_long_answer(MODEL), on_token=pause)

    assert saw.done
    assert server.log().count("worker left: ") == left
