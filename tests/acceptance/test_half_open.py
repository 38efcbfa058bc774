"""Peers that vanish without a packet: a network that silently stops carrying, made of a namespace of its own.

For the soak run only, and only where one may make network namespaces (root, `ip`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import ROOT, WORKER_TOKEN, LiveServer, wait_until

GATEWAY, PEER = "10.231.77.1", "10.231.77.2"
NOTICED_S = 20.0
"""Promise 5: half-open clients are found within it."""

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip"),
]

CLIENT = """
import json, socket, sys, time
host, port, key, stream = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "1"
body = json.dumps({"model": "llama-3-8b", "messages": [{"role": "user", "content": "Hello"}],
                   "stream": stream, "max_tokens": 700, "seed": 246})
with socket.create_connection((host, port)) as client:
    client.sendall(f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Type: application/json\\r\\n"
                   f"Authorization: Bearer {key}\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    if stream:
        client.recv(1)
    print("begun", flush=True)
    time.sleep(120)
"""


class Elsewhere:
    """A network namespace that is one cable away from the server."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._outside, self._inside = f"{name}a"[:15], f"{name}b"[:15]

    def build(self) -> None:
        ip("netns", "add", self._name)
        ip("link", "add", self._outside, "type", "veth", "peer", "name", self._inside)
        ip("link", "set", self._inside, "netns", self._name)
        ip("addr", "add", f"{GATEWAY}/24", "dev", self._outside)
        ip("link", "set", self._outside, "up")
        ip("-n", self._name, "addr", "add", f"{PEER}/24", "dev", self._inside)
        ip("-n", self._name, "link", "set", self._inside, "up")

    def remove(self) -> None:
        for command in (("link", "del", self._outside), ("netns", "del", self._name)):
            subprocess.run(["ip", *command], capture_output=True)

    def pull_the_cable(self) -> None:
        """Carry nothing any more, and say so to nobody."""
        ip("-n", self._name, "link", "set", self._inside, "down")

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self._name, *command],
            env=os.environ | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    elsewhere = Elsewhere(f"gpc{os.getpid()}")
    try:
        try:
            elsewhere.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        yield elsewhere
    finally:
        elsewhere.remove()


@pytest.fixture
def server(elsewhere: Elsewhere, tmp_path: Path) -> Iterator[LiveServer]:
    """A server at the near end of the cable."""
    server = LiveServer(tmp_path, GPUCLOUD_HEARTBEAT_S="0.5", GPUCLOUD_ALLOWED_HOSTS=GATEWAY)
    server.prepare()
    server.url = f"http://{GATEWAY}:{server.port}"
    server.start("--host", GATEWAY)
    yield server
    server.stop(signal.SIGKILL)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_behind_a_pulled_cable_is_noticed_in_time(server: LiveServer, elsewhere: Elsewhere, stream: bool):
    server.start_worker("--ttft-ms", "100", "--itl-ms", "150", name="slow")
    arguments = (GATEWAY, str(server.port), server.key, "1" if stream else "0")
    client = elsewhere.start(sys.executable, "-c", CLIENT, *arguments)
    try:
        assert client.stdout is not None and client.stdout.readline() == "begun\n"
        wait_until(lambda: server.rows("SELECT id FROM inference_request"), "it is on record")

        elsewhere.pull_the_cable()
        began_s = time.monotonic()

        ended = "SELECT * FROM inference_request WHERE ended_at IS NOT NULL"
        (row,) = wait_until(lambda: server.rows(ended), "the client is noticed to be gone", NOTICED_S + 2)
        assert (row["state"], row["error_code"]) == ("cancelled", "client_closed")
        assert time.monotonic() - began_s <= NOTICED_S
    finally:
        client.kill()
        client.communicate()


def test_a_worker_behind_a_pulled_cable_is_evicted_in_time(server: LiveServer, elsewhere: Elsewhere):
    command = (sys.executable, "-m", "cluster.worker", "--gateway", server.url, "--name", "far", "--speed", "0")
    worker = elsewhere.start(*command, GPUCLOUD_WORKER_TOKEN=WORKER_TOKEN)
    try:
        wait_until(lambda: "worker joined: far" in server.log(), "the far worker joined")

        elsewhere.pull_the_cable()
        began_s = time.monotonic()

        wait_until(lambda: "worker left: far" in server.log(), "the far worker is evicted")
        assert 1.0 <= time.monotonic() - began_s <= 3.0
    finally:
        worker.kill()
        worker.communicate()
