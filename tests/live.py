"""A real gpucloud for tests and benchmarks: real processes, real sockets, a folder of its own.

`LiveServer` is `manage.py serve` on a free port over a fresh database; workers are processes that
dial in. Nothing is shared with the checkout's own state, and nothing outlives the test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKER_TOKEN = "wk-live-test-token-for-this-machine-only"
START_TIMEOUT_S = 60.0


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """Return the first true value of `condition`; fail with `what` if there is none in time.

    For facts about other processes, which cannot be awaited; inside one process use events.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class LiveServer:
    """One node with its own database and its own workers."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.base_url = f"{self.url}/v1"
        self.log_path = folder / "server.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GPUCLOUD_", "DJANGO_"))},
            "DJANGO_SETTINGS_MODULE": "gpucloud.settings",
            "GPUCLOUD_DATA_DIR": str(folder),
            "GPUCLOUD_WORKER_TOKEN": WORKER_TOKEN,
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.key = ""

    def prepare(self) -> None:
        """Make the database, a user and a key."""
        self.manage("migrate", "--verbosity", "0")
        self.key = self.manage("createkey", "--user", "alice@example.com", "--rpm", "0").strip()

    def manage(self, *arguments: str, check: bool = True) -> str:
        """Run a management command and return its standard output."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and done.returncode:
            raise AssertionError(f"manage.py {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *arguments: str) -> None:
        """Start the server and wait until it is ready."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(self.port), *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        wait_until(self.is_ready, f"server ready; its log:\n{self.log()}", START_TIMEOUT_S)

    def is_ready(self) -> bool:
        """Return whether `/readyz` says so."""
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Return status and body of a GET."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def start_worker(self, *arguments: str, name: str = "w1") -> subprocess.Popen[bytes]:
        """Start a worker process and wait until it has joined."""
        joined = self.log().count("worker joined: ")
        with (self.folder / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "cluster.worker", "--gateway", self.url, "--name", name, *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        self.workers.append(worker)
        wait_until(lambda: self.log().count("worker joined: ") > joined, f"worker {name} joined; log:\n{self.log()}")
        return worker

    def stop(self, sig: int = signal.SIGTERM, timeout_s: float = 35.0) -> int:
        """End the server and its workers; return the server's exit code."""
        code = 0
        if self.process is not None:
            self.process.send_signal(sig)
            code = self.process.wait(timeout_s)
            self.process = None
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers.clear()
        return code

    def log(self) -> str:
        """Return the server's log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def request_lines(self) -> list[dict[str, Any]]:
        """Return the structured request lines of the log."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith('{"at"')]

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """Return what the database holds, read from outside."""
        connection = sqlite3.connect(f"file:{self.folder / 'db.sqlite3'}?mode=ro", uri=True, timeout=5)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql, parameters)]
        finally:
            connection.close()


@contextmanager
def live_server(folder: Path, **environment: str) -> Iterator[LiveServer]:
    """Run a prepared server for the length of a block."""
    server = LiveServer(folder, **environment)
    server.prepare()
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
