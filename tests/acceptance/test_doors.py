"""Everybody at the doors that are not Django's: `/v1`, the probes and the sockets, against the matrix."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from gpucloud.env import BASE_DIR
from inference.openai.routing import DataPlane
from tests.integration.security.matrix import DATA_PLANE, METHODS, PROBES, SOCKETS
from tests.live import WORKER_TOKEN, LiveServer

PASSWORD = "correct horse battery staple"
MODEL = "/v1/models/llama-3-8b"
HELLO = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def session(live: LiveServer) -> str:
    """The cookie of an operator who is logged in."""
    email = "walker@example.com"
    live.run_manage("createsuperuser", "--noinput", "--email", email, DJANGO_SUPERUSER_PASSWORD=PASSWORD)
    page, body = ask(live, "GET", "/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', body.decode())
    csrf = page.headers["set-cookie"].partition(";")[0]
    assert token
    form = f"csrfmiddlewaretoken={token[1]}&username={email}&password={PASSWORD.replace(' ', '+')}"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": csrf}
    answer, _ = ask(live, "POST", "/login/", form.encode(), **headers)
    (cookie,) = [line for line in answer.headers.get_all("set-cookie") if line.startswith("sessionid=")]
    return cookie.partition(";")[0]


@pytest.fixture(scope="module")
def token(live: LiveServer, session: str) -> str:
    """An access token of the REST API; needs the operator."""
    body = json.dumps({"email": "walker@example.com", "password": PASSWORD}).encode()
    answer, content = ask(live, "POST", "/api/auth/login", body, **{"Content-Type": "application/json"})
    assert answer.status == 200
    return str(json.loads(content)["access"])


def ask(
    server: LiveServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = b"" if response.status == 101 else response.read()
    connection.close()
    return response, content


def test_every_route_of_the_data_plane_is_in_the_matrix() -> None:
    plane = DataPlane(MagicMock(), MagicMock(), MagicMock())
    routes = {path: set(methods) for path, methods in plane._routes.items()} | {MODEL: set(plane._model_route)}

    assert routes == {path: set(methods) for path, methods in DATA_PLANE.items()}


def test_every_route_beside_django_is_in_the_matrix() -> None:
    routes = re.findall(r'route\(\s*r"\^([^"]*)"', (BASE_DIR / "gpucloud" / "asgi.py").read_text())

    assert set(routes) == {"(?:healthz|readyz)$", *[f"{path[1:]}$" for path, _ in sockets() if "nowhere" not in path]}
    assert set(PROBES) == {"/healthz", "/readyz"}


def test_asvs_8_2_1_the_data_plane_knows_keys_and_nothing_else(live: LiveServer, session: str, token: str) -> None:
    callers = {
        "nobody": {},
        "session": {"Cookie": session},
        "token": {"Authorization": f"Bearer {token}"},
        "worker token": {"Authorization": f"Bearer {WORKER_TOKEN}"},
        "session as a key": {"Authorization": f"Bearer {session.partition('=')[2]}"},
        "basic": {"Authorization": "Basic YTpi"},
        "key": {"Authorization": f"Bearer {live.key}"},
    }
    wrong = []
    for path, methods in DATA_PLANE.items():
        for method in METHODS:
            for caller, headers in callers.items():
                expected = methods.get(method, 405) if caller == "key" or method not in methods else 401
                body = json.dumps(HELLO).encode() if method == "POST" else None
                answer, _ = ask(live, method, path, body, **headers, **{"Content-Type": "application/json"})
                if answer.status != expected:
                    wrong.append(f"{method} {path} by {caller}: {answer.status}, not {expected}")
    assert wrong == []


def test_asvs_14_2_1_no_secret_counts_in_a_url(live: LiveServer, token: str) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "eA" * 11 + "=="

    for name in ("api_key", "key", "token", "access_token", "jwt", "authorization"):
        assert ask(live, "GET", f"/v1/models?{name}={live.key}")[0].status == 401
        assert ask(live, "GET", f"/api/auth/me?{name}={token}")[0].status == 401
        assert ask(live, "GET", f"/ws/worker/?{name}={WORKER_TOKEN}", **upgrade)[0].status == 403


@pytest.mark.parametrize(("path", "status"), list(PROBES.items()))
def test_probes_are_open_and_tell_no_more_than_that(live: LiveServer, path: str, status: int) -> None:
    answer, body = ask(live, "GET", path)

    assert answer.status == status
    assert set(json.loads(body)) <= {"status", "version", "ills"}
    assert answer.headers["x-content-type-options"] == "nosniff"


def sockets() -> Iterator[tuple[str, list[int]]]:
    for line in SOCKETS.strip().split("\n"):
        path, *statuses = line.split()
        yield path, [int(status) for status in statuses]


@pytest.mark.parametrize(("path", "statuses"), list(sockets()))
def test_asvs_4_4_1_each_socket_lets_its_own_in_and_nobody_else(
    live: LiveServer, session: str, token: str, path: str, statuses: list[int]
) -> None:
    page, foreign = {"Origin": live.url}, {"Origin": "https://evil.example"}
    worker = {"Authorization": f"Bearer {WORKER_TOKEN}"}
    callers: list[dict[str, Any]] = [
        page if "panels" in path else {},
        {"Cookie": session} | page,
        {"Cookie": session} | foreign,
        {"Authorization": f"Bearer {token}"} | (page if "panels" in path else {}),
        {"Authorization": f"Bearer {live.key}"} | (page if "panels" in path else {}),
        worker,
        worker | page,
    ]
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "eA" * 11 + "=="

    got = [ask(live, "GET", f"{path}?panels=pill", **upgrade, **headers)[0].status for headers in callers]

    assert got == statuses


def test_a_page_on_another_port_of_this_host_gets_no_panels(live: LiveServer, session: str) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "eA" * 11 + "==", "Cookie": session}

    for origin in (f"http://127.0.0.1:{live.port + 1}", f"http://localhost:{live.port}", "null"):
        assert ask(live, "GET", "/ws/panels/?panels=pill", **upgrade, Origin=origin)[0].status == 403
    assert ask(live, "GET", "/ws/panels/?panels=pill", **upgrade)[0].status == 403
