"""A real gpucloud for tests and benchmarks: real processes, real sockets, a folder of its own.

`LiveServer` is `manage.py serve` on a free port over a fresh database; workers are processes that
dial in. Nothing is shared with the checkout's own state, and nothing outlives the test.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKER_TOKEN = "wk-live-test-token-for-this-machine-only"
START_TIMEOUT_S = 60.0
THROTTLES = (
    "LOGIN_FAILURES_PER_ACCOUNT",
    "LOGIN_FAILURES_PER_IP",
    "LOGINS_PER_IP",
    "REGISTRATIONS_PER_IP",
    "REFRESHES_PER_IP",
    "API_CALLS_PER_IP",
    "API_CALLS_PER_USER",
)
"""Settings of rates; each is a variable with `GPUCLOUD_` before it."""


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
        self.environment = process_environment(
            GPUCLOUD_DATA_DIR=str(folder), GPUCLOUD_WORKER_TOKEN=WORKER_TOKEN, **environment
        )
        self.program: tuple[str, ...] = (str(ROOT / "manage.py"),)
        """What runs the management command that serves."""
        self.process: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.key = ""

    def prepare(self) -> None:
        """Have a database with a user and a key: copies of what the first server made."""
        template, self.key = _prepared()
        shutil.copytree(template, self.folder, dirs_exist_ok=True)

    def manage(self, *arguments: str) -> str:
        """Run a management command that succeeds and return its standard output."""
        done = self.run_manage(*arguments)
        if done.returncode:
            raise AssertionError(f"manage.py {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run_manage(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a management command to its end, however it ends."""
        return subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *arguments: str) -> None:
        """Start the server and wait until it is ready."""
        self.launch("serve", "--port", str(self.port), *arguments)

    def launch(self, *command: str) -> None:
        """Start a management command that serves on our port, and wait until it is ready."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *command],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                preexec_fn=_hear_interrupts,
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

    def start_worker(
        self, *arguments: str, name: str = "w1", program: Sequence[str] = ("-m", "cluster.worker"), token: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a worker process and wait until it has joined."""
        joined = self.log().count("worker joined: ")
        with (self.folder / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, *program, "--gateway", self.url, "--name", name, *arguments],
                env=self.environment | {"GPUCLOUD_WORKER_TOKEN": token or WORKER_TOKEN},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        self.workers.append(worker)
        wait_until(lambda: self.log().count("worker joined: ") > joined, f"worker {name} joined; log:\n{self.log()}")
        return worker

    def stop_workers(self) -> None:
        """End all workers at once and wait until the server has noticed."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers.clear()
        if self.process is not None:
            joined, left = "worker joined: ", "worker left: "
            wait_until(lambda: self.log().count(joined) <= self.log().count(left), "all workers have left")

    def stop_server(self, sig: int = signal.SIGTERM, timeout_s: float = 35.0) -> int:
        """End the server alone and return its exit code."""
        assert self.process is not None
        self.process.send_signal(sig)
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """End the server and its workers; return the server's exit code."""
        code = 0 if self.process is None else self.stop_server(sig)
        self.stop_workers()
        return code

    def children(self) -> list[int]:
        """Return the ids of the server's own child processes."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def log(self) -> str:
        """Return the server's log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def request_lines(self) -> list[dict[str, Any]]:
        """Return the structured request lines of the log."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith('{"at"')]

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """Return what the database holds, read from outside."""
        with closing(sqlite3.connect(f"file:{self.folder / 'db.sqlite3'}?mode=ro", uri=True, timeout=5)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, parameters)]

    def execute(self, sql: str, *parameters: Any) -> None:
        """Change the database from outside, as another process would."""
        with closing(sqlite3.connect(self.folder / "db.sqlite3", timeout=5)) as connection, connection:
            connection.execute(sql, parameters)


def _hear_interrupts() -> None:
    # A shell starts what runs in its background deaf to Ctrl-C, and that is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def process_environment(**environment: str) -> dict[str, str]:
    """Return the environment of a process of ours: nothing of the checkout's own settings is in it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GPUCLOUD_", "DJANGO_"))}
    # Compiled once and not in every process: that is two thirds of a start.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return inherited | {
        "DJANGO_SETTINGS_MODULE": "gpucloud.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": str(ROOT / ".pytest_cache" / "pycache"),
        # Tests kill workers of the same names again and again; only those about flapping mean it.
        "GPUCLOUD_FLAP_LOSSES": "1000",
        # And to log in as often as they like; only those about throttles mean it.
        **{f"GPUCLOUD_{name}": "off" for name in THROTTLES},
        **environment,
    }


@cache
def _prepared() -> tuple[Path, str]:
    """Return a folder with a migrated database, a user and a key, and that key."""
    folder = Path(tempfile.mkdtemp(prefix="gpucloud-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = LiveServer(folder)
    server.manage("migrate", "--verbosity", "0")
    return folder, server.manage("createkey", "--user", "alice@example.com", "--rpm", "0").strip()


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
