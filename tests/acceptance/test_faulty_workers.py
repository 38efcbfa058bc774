"""Worker processes that stop, stutter and die at bad moments; clients that leave at any moment.

What became of each request is compared by `tests.history`: what its client saw, what the workers
wrote down that they said, and what the ledger holds.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.client import Call, call, seed_of_a_long_answer, until
from tests.history import Said, Saw, check, read_lines
from tests.live import LiveServer, live_server, wait_until
from tests.witness import MODEL, Witness

PROGRAM = ("-m", "tests.scripted_worker")
SLOW = ("--ttft-ms", "20", "--itl-ms", "20")
HEARTBEAT_S = 0.5
EVICTED_S = 3.2 * HEARTBEAT_S
_numbers = count(1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("faulty")
    with live_server(folder, GPUCLOUD_HEARTBEAT_S=str(HEARTBEAT_S), GPUCLOUD_NO_WORKER_GRACE_S="1") as server:
        yield server


@pytest.fixture
def server(shared: LiveServer) -> Iterator[LiveServer]:
    """A server without workers, whose books are right at the end of the test."""
    yield shared
    for worker in shared.workers:
        worker.send_signal(signal.SIGCONT)
    shared.stop_workers()


@pytest.fixture
def witness(server: LiveServer, tmp_path: Path) -> Iterator[Witness]:
    """A client whose account must agree with all others at the end of the test."""
    witness = Witness(server, tmp_path / "saw.jsonl")
    yield witness
    settled(server)
    assert check(witness.saw, server.folder / "db.sqlite3", said=said(server)) == []


def start_worker(server: LiveServer, *arguments: str, name: str = "w") -> subprocess.Popen[bytes]:
    """Start a worker process that writes down what it says."""
    name = f"{name}{next(_numbers)}"
    record = server.folder / f"{name}.said.jsonl"
    return server.start_worker("--record", str(record), *arguments, name=name, program=PROGRAM)


def said(server: LiveServer) -> list[Said]:
    """Return what all workers of the server said."""
    return [line for path in sorted(server.folder.glob("*.said.jsonl")) for line in read_lines(path, Said)]


def settled(server: LiveServer) -> None:
    """Return once every request has its outcome."""
    wait_until(lambda: not server.rows("SELECT id FROM inference_request WHERE state = 'open'"), "all is settled")


def row_of(server: LiveServer, saw: Saw) -> dict[str, object]:
    settled(server)
    (row,) = server.rows("SELECT * FROM inference_request WHERE id = ?", saw.request)
    return row


async def test_a_worker_stopped_before_its_first_token_and_continued_later_does_no_harm(
    server: LiveServer, witness: Witness
):
    frozen = start_worker(server, "--ttft-ms", "1000")
    asked = asyncio.create_task(witness.ask(stream=True, max_tokens=20))
    await until(lambda: server.rows("SELECT id FROM inference_request WHERE state = 'open'"), "it is on record")
    frozen.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(start_worker, server, *SLOW)

    saw = await asked
    frozen.send_signal(signal.SIGCONT)

    assert saw.done and row_of(server, saw)["attempts"] == 2
    # What it says late goes nowhere; it dials again and is of use.
    joined = server.log().count("worker joined: ")
    await until(lambda: server.log().count("worker joined: ") > joined, "it is back")
    await witness.ask_many(8)
    assert all(saw.done for saw in witness.saw)


async def test_a_worker_stopped_in_the_middle_of_a_stream_ends_it_typed_or_has_it_continued(
    server: LiveServer, witness: Witness
):
    frozen = start_worker(server, *SLOW)

    saw = await witness.ask(
        stream=True, max_tokens=200, on_token=lambda n: frozen.send_signal(signal.SIGSTOP) if n == 3 else None
    )
    frozen.send_signal(signal.SIGCONT)

    assert saw.done or saw.error == "worker_lost"
    joined = server.log().count("worker joined: ")
    await until(lambda: server.log().count("worker joined: ") > joined, "it is back")
    assert (await witness.ask(stream=True)).done


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_stream_goes_on_at_the_next_token_when_its_worker_is_gone_and_another_is_its_equal(
    server: LiveServer, witness: Witness, sent: signal.Signals
):
    first = start_worker(server, *SLOW, name="first-")

    def lose_it(tokens: int) -> None:
        if tokens == 3:
            start_worker(server, *SLOW, name="second-")
            first.send_signal(sent)

    saw = await witness.ask(stream=True, max_tokens=60, seed=seed_of_a_long_answer(MODEL), on_token=lose_it)

    assert saw.done and len(saw.texts) == 60
    row = row_of(server, saw)
    assert (row["state"], row["attempts"]) == ("completed", 2)
    assert str(row["worker_name"]).startswith("second-")
    # The second worker has said nothing that the first had been heard to say.
    pieces = [piece for piece in said(server) if piece.task == saw.request and piece.worker.startswith("second-")]
    assert min(piece.seq for piece in pieces) >= 3


async def test_what_a_worker_says_twice_is_heard_once(server: LiveServer, witness: Witness):
    start_worker(server, "--stutter")

    await witness.ask_many(20, at_once=5)

    assert all(saw.done for saw in witness.saw)


async def test_a_prompt_that_kills_its_workers_kills_two_and_no_other_request(server: LiveServer, witness: Witness):
    for _ in range(3):
        start_worker(server, *SLOW, "--die-on", "poison")
    workers = list(server.workers)

    async with call(server, messages=[{"role": "user", "content": "poison"}]) as poisoned:
        answer = await poisoned.answer()

    assert (poisoned.status, answer["error"]["code"]) == (500, "worker_crashed")
    # A process closes its sockets a moment before it is over.
    await until(lambda: sum(worker.poll() is not None for worker in workers) == 2, "two of them have died")
    assert (await witness.ask(stream=True, max_tokens=5)).done
    assert sum(worker.poll() is None for worker in workers) == 1


@pytest.mark.parametrize("how", [Call.leave, Call.vanish], ids=["FIN", "RST"])
async def test_a_client_may_leave_after_any_token(server: LiveServer, witness: Witness, how):
    start_worker(server, *SLOW)

    asks = [witness.ask(leave=how, after_tokens=tokens, stream=True, max_tokens=200) for tokens in range(8)]
    left = await asyncio.gather(*asks)

    settled(server)
    for tokens, saw in enumerate(left):
        if saw.request is not None:
            row = row_of(server, saw)
            assert (row["state"], row["error_code"]) == ("cancelled", "client_closed")
            assert int(str(row["delivered_tokens"])) >= tokens
    # All slots are free again: the worker takes as many as it ever could.
    await witness.ask_many(8, at_once=8, stream=False)
    assert all(saw.done for saw in witness.saw[8:])


async def test_whatever_happens_to_workers_and_clients_all_accounts_agree(server: LiveServer, witness: Witness):
    await swizzle(server, witness, seconds=6.0, workers=3, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
async def test_whatever_happens_for_a_long_time_all_accounts_agree(server: LiveServer, witness: Witness):
    await swizzle(server, witness, seconds=1_200.0, workers=6, seed=2)


async def swizzle(server: LiveServer, witness: Witness, *, seconds: float, workers: int, seed: int) -> None:
    """Under load, kill, stop and continue workers in random order, and let clients leave; then let all heal."""
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    for _ in range(workers):
        start_worker(server, *SLOW)
    ends_at_s = loop.time() + seconds

    async def come_and_go() -> None:
        while loop.time() < ends_at_s:
            leave = rng.choice((None, None, Call.leave, Call.vanish))
            await witness.ask(leave=leave, after_tokens=rng.randint(1, 10))

    clients = [asyncio.create_task(come_and_go()) for _ in range(10)]
    faults = 0
    stopped: list[subprocess.Popen[bytes]] = []
    while loop.time() < ends_at_s:
        running = [worker for worker in server.workers if worker.poll() is None and worker not in stopped]
        match rng.choice(("kill", "stop", "stop", "continue")):
            case "kill" if running:
                rng.choice(running).kill()
                await asyncio.to_thread(start_worker, server, *SLOW)
            case "stop" if running:
                stopped.append(rng.choice(running))
                stopped[-1].send_signal(signal.SIGSTOP)
            case "continue" if stopped:
                stopped.pop(rng.randrange(len(stopped))).send_signal(signal.SIGCONT)
            case _:
                continue
        faults += 1
        await asyncio.sleep(rng.uniform(0.1, EVICTED_S))
    for worker in stopped:
        worker.send_signal(signal.SIGCONT)
    async with asyncio.timeout(60):
        await asyncio.gather(*clients)

    print(f"{faults} faults, {len(witness.saw)} requests, {sum(saw.done for saw in witness.saw)} completed")
    assert faults >= 3 and sum(saw.done for saw in witness.saw) >= 5
    await witness.ask_many(8)
    assert all(saw.done for saw in witness.saw[-8:])
