"""The server killed at every point that matters, and at any: what clients saw and what is on record agree.

Workers live in the test's process and outlive the server; each crash is followed by a start on the
same database, which closes what was left open.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpucloud.lib.crashpoint import EXIT_CODE, POINTS
from tests.client import until
from tests.history import Said, Saw, check, read_lines
from tests.live import WORKER_TOKEN, LiveServer
from tests.scripted_worker import ScriptedBackend, make_agent, make_options
from tests.witness import Witness

RANDOM_KILLS = 5
SOAK_KILLS = 1_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """A prepared server that is not running; whatever runs at the end is ended."""
    server = LiveServer(tmp_path, GPUCLOUD_HEARTBEAT_S="0.5", GPUCLOUD_REQUEST_LOG="0")
    server.prepare()
    yield server
    server.stop(signal.SIGKILL)


@asynccontextmanager
async def workers(server: LiveServer, count: int = 2) -> AsyncIterator[None]:
    """Workers that dial the server whenever it is there."""
    # Each vain try to dial is a warning, and while the server is down there are dozens a second.
    log = logging.getLogger("cluster.worker.agent")
    level = log.level
    log.setLevel(logging.ERROR)
    running = []
    for number in range(count):
        name = f"w{number}"
        backend = ScriptedBackend(make_options(), name=name, record=said_path(server))
        agent = make_agent(backend, name=name, gateway=server.url, token=WORKER_TOKEN)
        running.append(asyncio.create_task(agent.run()))
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        log.setLevel(level)


def said_path(server: LiveServer) -> Path:
    return server.folder / "said.jsonl"


async def start(server: LiveServer, *, workers: int = 2) -> None:
    """Start the server without holding up the workers, and return once they are there."""
    joined = server.log().count("worker joined: ")
    await asyncio.to_thread(server.start)
    await until(lambda: server.log().count("worker joined: ") >= joined + workers, "the workers have joined")


def arm(server: LiveServer, crash: str) -> None:
    """Have the next server die at a point, or not."""
    server.environment["GPUCLOUD_TESTING"] = "1"
    server.environment["GPUCLOUD_CRASH"] = crash


def assert_history(server: LiveServer, saw: Sequence[Saw], after: str, *, said: Sequence[Said] = ()) -> None:
    """Compare all accounts. The server has just been started, and has closed what was left open."""
    assert check(saw, server.folder / "db.sqlite3", said=said) == [], after


async def test_killed_at_each_crash_point_the_server_leaves_nothing_undecided(server: LiveServer):
    witness = Witness(server, server.folder / "saw.jsonl")
    before = "nothing"
    async with workers(server):
        for point in POINTS:
            arm(server, f"{point}:12")
            await start(server)
            assert_history(server, witness.saw, f"after {before}")
            seen = len(witness.saw)
            assert server.process is not None

            await witness.ask_many(40)

            assert await asyncio.to_thread(server.process.wait, 10) == EXIT_CODE, point
            server.process = None
            ends = {saw.end for saw in witness.saw[seen:]}
            assert "cut" in ends, f"{point} cut nobody off: that proves nothing"
            before = point
        arm(server, "")
        await start(server)
        assert_history(server, witness.saw, f"after {before}", said=read_lines(said_path(server), Said))
    assert sum(saw.done for saw in witness.saw) > 10, "hardly anything was completed: that proves little"


async def test_killed_at_any_time_the_server_leaves_nothing_undecided(server: LiveServer):
    await kill_again_and_again(server, RANDOM_KILLS, seed=1)
    assert server.manage("balance").splitlines()[-1] == "balance: 0"


@pytest.mark.soak
@pytest.mark.timeout(3 * 3_600)
async def test_killed_a_thousand_times_the_server_leaves_nothing_undecided(server: LiveServer):
    await kill_again_and_again(server, SOAK_KILLS, seed=2)
    assert server.manage("balance").splitlines()[-1] == "balance: 0"


async def kill_again_and_again(server: LiveServer, times: int, *, seed: int) -> None:
    """Kill the server under load, each time at another moment, and compare all accounts at the end."""
    rng = random.Random(seed)
    witness = Witness(server, server.folder / "saw.jsonl", rng=rng)
    async with workers(server):
        seen = 0
        for number in range(times):
            await start(server)
            assert_history(server, witness.saw[seen:], f"after kill {number}")
            seen = len(witness.saw)
            witness.enough = False
            load = asyncio.create_task(witness.ask_many(10_000))
            await asyncio.sleep(rng.uniform(0.02, 0.6))

            server.stop_server(signal.SIGKILL)

            witness.enough = True
            await load
        await start(server)
        assert_history(server, witness.saw, "at the end", said=read_lines(said_path(server), Said))
    cut = sum(saw.end == "cut" and saw.status is not None for saw in witness.saw)
    print(f"{times} kills, {len(witness.saw)} requests, {cut} answers cut off")
    assert cut >= times
