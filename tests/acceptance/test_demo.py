"""`manage.py demo`: from an empty folder to a cloud that answers, and what it says about it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from cluster.simulation.fleet import DEFAULT_FLEET
from tests.live import ROOT, LiveServer, is_alive, wait_until

FACTS = ("url", "login", "password", "api key", "curl")


def start_demo(server: LiveServer, *wrapper: str, **environment: str) -> dict[str, str]:
    """Start the demo with a pipe for a terminal and return what it prints, by name."""
    with server.log_path.open("ab") as log:
        server.process = process = subprocess.Popen(
            [sys.executable, *wrapper, str(ROOT / "manage.py"), "demo", "--port", str(server.port)],
            env=server.environment | environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    # The demo goes on running: a line that it did not flush would not come.
    assert process.stdout is not None
    with process.stdout as printed:
        return facts(b"".join(printed.readline() for _ in FACTS).decode())


def facts(printed: str) -> dict[str, str]:
    lines = [line.partition(": ") for line in printed.splitlines()]
    assert tuple(name for name, _, _ in lines) == FACTS, printed
    assert "\x1b" not in printed, "plain: no colours"
    return {name: value for name, _, value in lines}


def log_in(url: str, login: str, password: str) -> str:
    """Return the page that a browser sees after logging in."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    form = browser.open(f"{url}/login/", timeout=10).read().decode()
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
    fields = {"csrfmiddlewaretoken": token, "username": login, "password": password}
    answer = browser.open(f"{url}/login/", urllib.parse.urlencode(fields).encode(), timeout=10)
    assert answer.url == f"{url}/", "logged in, one is sent home"
    return str(answer.read().decode())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    """A folder with nothing in it; what runs there at the end is ended."""
    server = LiveServer(tmp_path)
    yield server
    server.stop(signal.SIGKILL)


def test_the_demo_works_as_it_says_and_is_the_same_the_next_time(server: LiveServer):
    said = start_demo(server)

    assert said["url"] == server.url
    answer = subprocess.run(said["curl"], shell=True, capture_output=True, text=True, timeout=30)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
    assert said["api key"] in said["curl"]
    assert said["login"] in log_in(said["url"], said["login"], said["password"])
    kept = server.folder / "demo.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    for worker in DEFAULT_FLEET:
        wait_until(lambda worker=worker: f"worker joined: {worker.name}" in server.log(), f"{worker.name} joined")

    second = server.run_manage("demo", "--port", str(server.port + 1))
    assert second.returncode == 1
    assert facts(second.stdout) == said
    assert f"already running at {server.url}" in second.stderr
    assert "Traceback" not in second.stderr

    children = server.children()
    assert len(children) == len(DEFAULT_FLEET)
    assert server.stop_server() == 0
    assert not any(is_alive(child) for child in children)

    # The next time below a parent that dies without a word, as `make` does on kill -9.
    wrapper = ("-c", "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])")
    again = start_demo(server, *wrapper, GPUCLOUD_END_WITH_PARENT="1")
    assert again == said
    (demo,) = server.children()
    server.stop_server(signal.SIGKILL)
    wait_until(lambda: not is_alive(demo), "the demo has ended with its parent")
    assert "Traceback" not in server.log()
