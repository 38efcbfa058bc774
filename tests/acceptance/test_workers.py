"""Worker processes that come, work, die and are sent away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client import call
from tests.live import ROOT, LiveServer, live_server, process_environment, wait_until

SILENT = ("--ttft-ms", "60000", "--itl-ms", "0")
"""A worker that has not said a word when its end comes."""
SLOW = ("--ttft-ms", "1", "--itl-ms", "30")
FAST = ("--speed", "0")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("workers")
    with live_server(folder, GPUCLOUD_HEARTBEAT_S="0.5", GPUCLOUD_NO_WORKER_GRACE_S="1") as server:
        yield server


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    """A server without workers."""
    yield shared
    shared.stop_workers()


def row_of(server: LiveServer, request_id: str) -> dict[str, Any]:
    sql = "SELECT * FROM inference_request WHERE id = ? AND ended_at IS NOT NULL"
    (row,) = wait_until(lambda: server.rows(sql, request_id), f"final row of {request_id}")
    return row


def wait_until_assigned(server: LiveServer) -> None:
    """Return once a request is on record; the only worker has it then."""
    wait_until(lambda: server.rows("SELECT id FROM inference_request WHERE state = 'open'"), "the request is on record")


def run_worker(*arguments: str, token: str = "wk-some-token") -> subprocess.CompletedProcess[str]:
    """Run a worker that must end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "cluster.worker", *arguments],
        env=process_environment(GPUCLOUD_WORKER_TOKEN=token),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_worker_killed_before_its_first_token_is_not_noticed_by_the_client(server: LiveServer, stream: bool):
    doomed = server.start_worker(*SILENT, name="doomed")
    async with call(server, stream=stream, max_tokens=5) as client:
        wait_until_assigned(server)
        server.start_worker(*FAST, name="healthy")

        doomed.kill()

        assert await client.head() == 200
        if stream:
            events = await client.events()
            assert events[-1] == "[DONE]"
            assert not any(event.startswith('{"error"') for event in events)
        else:
            assert (await client.answer())["usage"]["completion_tokens"] == 5
    row = row_of(server, client.request_id)
    assert (row["state"], row["attempts"], row["worker_name"]) == ("completed", 2, "healthy")
    assert (row["delivered_tokens"], row["completion_tokens"]) == (5, 5)


async def test_a_worker_killed_in_the_middle_of_a_stream_that_no_other_can_continue_ends_it_with_a_typed_error(
    server: LiveServer,
):
    doomed = server.start_worker(*SLOW, name="doomed")
    async with call(server, stream=True, max_tokens=400) as client:
        assert await client.head() == 200
        for _ in range(3):
            await client.token()
        server.start_worker(*FAST, "--model", "mistral-7b", name="other-model")

        doomed.kill()

        *tokens, last = await client.events()
    error = json.loads(last)["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "worker_lost", None)
    row = row_of(server, client.request_id)
    delivered = 3 + len(tokens)
    assert (row["state"], row["error_code"], row["attempts"]) == ("failed", "worker_lost", 1)
    assert (row["delivered_tokens"], row["completion_tokens"]) == (delivered, delivered)


async def test_a_worker_killed_in_the_middle_of_a_whole_answer_is_not_noticed(server: LiveServer):
    doomed = server.start_worker(*SLOW, name="doomed")
    async with call(server, max_tokens=400, seed=1) as client:
        wait_until_assigned(server)
        server.start_worker(*FAST, name="healthy")

        doomed.kill()

        answer = await client.answer()
    row = row_of(server, client.request_id)
    assert answer["usage"]["completion_tokens"] == row["completion_tokens"] > 0
    assert (row["state"], row["attempts"], row["worker_name"]) == ("completed", 2, "healthy")


async def test_a_stopped_worker_is_evicted_when_it_has_been_silent_too_long(server: LiveServer):
    frozen = server.start_worker(*SILENT, name="frozen")
    async with call(server, max_tokens=5) as client:
        wait_until_assigned(server)
        server.start_worker(*FAST, name="healthy")

        frozen.send_signal(signal.SIGSTOP)

        answer = await client.answer()
    assert answer["usage"]["completion_tokens"] == 5
    assert row_of(server, client.request_id)["attempts"] == 2
    wait_until(lambda: "worker left: frozen" in server.log(), "the frozen worker is evicted")


async def test_a_worker_told_to_end_finishes_what_it_runs_and_takes_nothing_new(server: LiveServer):
    leaving = server.start_worker(*SLOW, name="leaving")
    async with call(server, stream=True, max_tokens=25) as running:
        assert await running.head() == 200
        await running.token()

        leaving.send_signal(signal.SIGTERM)
        server.start_worker(*FAST, name="staying")
        async with call(server, max_tokens=3) as another:
            await another.answer()

        assert (await running.events())[-1] == "[DONE]"
    assert leaving.wait(10) == 0
    assert row_of(server, running.request_id)["worker_name"] == "leaving"
    assert row_of(server, another.request_id)["worker_name"] == "staying"


@pytest.mark.parametrize("program", [("manage.py", "runworker"), ("-m", "cluster.worker")])
async def test_both_ways_to_start_a_worker_are_the_same(server: LiveServer, program: tuple[str, ...]):
    worker = server.start_worker(*FAST, "--model", "llama-3-8b", name="either", program=program)

    async with call(server, max_tokens=3) as client:
        answer = await client.answer()

    assert answer["usage"]["completion_tokens"] == 3
    assert row_of(server, client.request_id)["worker_name"] == "either"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0


async def test_one_worker_serves_several_models(server: LiveServer):
    server.start_worker(*FAST, "--gpu", "A6000", "--model", "llama-3-8b", "mistral-7b", name="both")

    for model in ("llama-3-8b", "mistral-7b"):
        async with call(server, model=model, max_tokens=3) as client:
            answer = await client.answer()
        assert answer["model"] == model
        assert row_of(server, client.request_id)["worker_name"] == "both"


async def test_one_process_may_be_many_workers(server: LiveServer):
    joined = server.log().count("worker joined: many-")

    server.start_worker(*FAST, "--count", "3", name="many")

    wait_until(lambda: server.log().count("worker joined: many-") == joined + 3, "all three joined")


@pytest.mark.parametrize("program", [("manage.py", "runworker"), ("-m", "cluster.worker")])
def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(program: tuple[str, ...]):
    done = subprocess.run(
        [sys.executable, *program, "--gpu", "RTX4090", "--model", "llama-2-70b"],
        env=process_environment(GPUCLOUD_WORKER_TOKEN="wk-some-token"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.returncode == 2
    assert "llama-2-70b" in done.stderr
    assert "RTX4090" in done.stderr
    assert done.stderr.count("GB") >= 2, done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_token_ends_the_worker_with_a_clear_line(server: LiveServer):
    done = run_worker("--gateway", server.url, *FAST, token="wk-wrong")

    assert done.returncode == 1
    assert "error: the gateway does not accept the worker token" in done.stderr
    assert "wk-wrong" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_for_other_models_ends_the_worker_with_a_clear_line(server: LiveServer):
    token = server.manage("createworkertoken", "--model", "mistral-*").strip()

    done = run_worker("--gateway", server.url, *FAST, "--model", "llama-3-8b", token=token)

    assert done.returncode == 1
    assert "this token does not permit the model llama-3-8b" in done.stderr


def test_a_revoked_token_closes_the_links_that_are_up(server: LiveServer):
    token = server.manage("createworkertoken", "--name", "short-lived").strip()
    worker = server.start_worker(*FAST, name="revoked", token=token)

    server.execute("UPDATE cluster_workertoken SET revoked_at = datetime('now') WHERE name = 'short-lived'")

    assert worker.wait(4) == 1
    assert "the gateway does not accept the worker token" in (server.folder / "revoked.log").read_text()
    assert run_worker("--gateway", server.url, token=token).returncode == 1


async def test_an_evicted_worker_loses_its_link_once_and_its_work_moves_on(server: LiveServer):
    server.start_worker(*SILENT, name="evicted")
    async with call(server, max_tokens=5) as client:
        wait_until_assigned(server)
        server.start_worker(*FAST, name="healthy")
        wait_until(lambda: server.rows("SELECT id FROM cluster_worker WHERE name = 'evicted'"), "it is written down")

        server.manage(
            "shell",
            "-c",
            "from cluster.selectors import list_workers; from cluster.services import evict_worker;"
            "evict_worker(worker_id=list_workers().get(name='evicted').pk)",
        )

        assert (await client.answer())["usage"]["completion_tokens"] == 5
    assert row_of(server, client.request_id)["worker_name"] == "healthy"
    wait_until(lambda: server.log().count("worker joined: evicted") == 2, "it has dialled in again")
    (evicted,) = wait_until(
        lambda: server.rows("SELECT * FROM cluster_worker WHERE name = 'evicted' AND link <> evict_link"),
        "its new link is written down",
    )
    assert evicted["evict_link"] in server.log()
    assert "4410 evicted by an operator" in (server.folder / "evicted.log").read_text()


async def test_a_worker_comes_back_to_a_server_that_was_restarted(server: LiveServer):
    """Many at once: some dial again while the old server still listens, and must not take that for a refusal."""
    names = [f"worker joined: loyal-{number} " for number in range(1, 9)]
    server.start_worker(*FAST, "--count", "8", name="loyal")
    wait_until(lambda: all(name in server.log() for name in names), "all joined")

    assert server.stop_server() == 0
    server.start()

    # The longest wait between two tries is 10 s.
    wait_until(lambda: all(server.log().count(name) == 2 for name in names), "all came back", timeout_s=25)
    async with call(server, max_tokens=3) as client:
        assert (await client.answer())["usage"]["completion_tokens"] == 3
