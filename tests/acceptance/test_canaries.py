"""Canary strings in all that is secret or somebody's own words, and a search for them where they must not be.

Real processes, ordinary traffic and every failure that could quote them. Searched are the logs of server
and workers, all of the admin's pages, all bodies of errors, and the database file itself.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import json
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from accounts.keys import make_key
from gpucloud.lib.secret import make_secret
from tests.live import LiveServer, wait_until
from tests.sabotage import ANSWER

MARK = secrets.token_hex(4)
PROMPT = f"canary-prompt-{MARK}"
PASSWORD = f"canary-password-{MARK}"
WRONG_PASSWORD = f"canary-wrong-password-{MARK}"
BROKEN_KEY = f"sk-canary-key-{MARK}-{'k' * 30}"
BROKEN_TOKEN = f"wk-canary-token-{MARK}-{'t' * 30}"
EMAIL = "charlie@example.com"
CHAT = "/v1/chat/completions"
EVENTS = (
    *(b"worker let in: link=", b"worker refused: peer=127.0.0.1", b"Sabotage"),
    *(b"audit login user=", b"audit failed login account=", b"audit a used refresh token came back"),
    *(b"accounts.apikey=", b"did='Created.'"),
)
"""What the log must tell, without a canary in it."""


class Traffic:
    """Sends requests, and keeps the bodies of those that fail."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.errors: list[tuple[str, bytes]] = []
        self.statuses: list[int] = []
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Send a request, with the cookies so far, and return status and body; follow redirects."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.server.url + path, data, {"Content-Type": "application/json"} | named)
        request.method = method
        try:
            with self._opener.open(request, timeout=20) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        except http.client.HTTPException:
            status, content = 0, b""
        self.statuses.append(status)
        if status >= 400 or b'"error"' in content:
            self.errors.append((f"{method} {path}", content))
        return status, content

    def chat(self, prompt: str, *, key: str = "", **more: Any) -> tuple[int, bytes]:
        """Ask for a completion."""
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"{PROMPT} {prompt}"}]
        body = {"model": "llama-3-8b", "messages": messages, "max_tokens": 4, "user": PROMPT} | more
        return self.send("POST", CHAT, body, Authorization=f"Bearer {key or self.server.key}")

    def form(self, path: str, **fields: str) -> tuple[int, bytes]:
        """Send a form from its page."""
        _, page = self.send("GET", path)
        token = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', page)
        fields["csrfmiddlewaretoken"] = token[1].decode() if token else ""
        data = urllib.parse.urlencode(fields).encode()
        return self.send("POST", path, data, Content_Type="application/x-www-form-urlencoded")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A sabotaged server, its operator, and two sabotaged workers with a token of their own."""
    # Faults of workers are noticed in a tenth of the time.
    times = {f"GPUCLOUD_{name}_S": "0.2" for name in ("FIRST_TOKEN", "NEXT_TOKEN", "CANCEL_ACK", "PROBE_AFTER")}
    server = LiveServer(tmp_path_factory.mktemp("canaries"), GPUCLOUD_LOG_LEVEL="DEBUG", **times)
    server.prepare()
    server.environment["DJANGO_SUPERUSER_PASSWORD"] = PASSWORD
    server.manage("createsuperuser", "--noinput", "--email", EMAIL)
    server.token = server.manage("createworkertoken").strip()  # type: ignore[attr-defined]
    server.program = ("-m", "tests.sabotage", "manage")
    server.start()
    try:
        for name in ("w1", "w2"):
            server.start_worker(
                "--speed",
                "0",
                name=name,
                program=("-m", "tests.sabotage", "worker"),
                token=server.token,  # type: ignore[attr-defined]
            )
        yield server
    finally:
        server.stop(9)


def misbehave(traffic: Traffic) -> None:
    """Do everything that fails, with canaries in it."""
    for stream in (False, True):
        for fault in ("FAIL-START", "FAIL-LATER", "FAIL-WORKER", "FAIL-ASSIGN"):
            traffic.chat(fault, stream=stream)
    for fault in ("FAIL-STREAM", "FAIL-ENGINE"):
        traffic.chat(fault, stream=True)
    for more in (
        {"surprise": PROMPT},
        {"stop": [PROMPT] * 9},
        {"messages": [{"role": PROMPT, "content": PROMPT}]},
        {"messages": [{"role": "user", "content": {"text": PROMPT}}]},
        {"messages": PROMPT},
        {"temperature": PROMPT},
        {"max_tokens": 10**12},
        {"seed": PROMPT},
    ):
        traffic.chat("", **more)
    whole = json.dumps({"model": "llama-3-8b", "messages": [{"role": "user", "content": PROMPT}]}).encode()
    other = (whole.replace(b"canary", b"\xff"), whole.decode().encode("utf-16"))
    for body in (whole[:-3], whole + b"}", b"[" * 200 + whole, *other):
        traffic.send("POST", CHAT, body, Authorization=f"Bearer {traffic.server.key}")
    for key in (BROKEN_KEY, make_key(), f"{traffic.server.key}x", BROKEN_TOKEN):
        traffic.chat("", key=key)
    key, token = traffic.server.key, traffic.server.token  # type: ignore[attr-defined]
    traffic.send("GET", f"/v1/models/{key}", Authorization=f"Bearer {key}")
    for path in ("/v1/models", "/v1/nowhere", "/", "/api/keys", "/nowhere/", "/login/", "/ws/worker/"):
        for name, value in (("api_key", key), ("token", token), ("password", PASSWORD), ("q", BROKEN_KEY)):
            traffic.send("GET", f"{path}?{name}={value}")
    for path in (f"/v1/{key}", f"/{key}/", f"/docs/{token}/", f"/api/{key}"):
        traffic.send("GET", path, Authorization=f"Bearer {key}", Cookie=f"sessionid={PASSWORD}")
    traffic.send("GET", "/docs/sabotage/")
    for path in ("/login/", "/admin/login/"):
        traffic.form(path, username=EMAIL, password=WRONG_PASSWORD)
        traffic.form(path, username=WRONG_PASSWORD, password=PASSWORD)
    for path in ("/api/auth/login", "/api/auth/register", "/api/auth/refresh"):
        for body in (
            {"email": EMAIL, "password": WRONG_PASSWORD, "refresh": WRONG_PASSWORD},
            {"email": EMAIL, "password": {"x": WRONG_PASSWORD}, "refresh": [WRONG_PASSWORD]},
        ):
            traffic.send("POST", path, body)
        traffic.send("POST", path, f'{{"password": "{WRONG_PASSWORD}'.encode())


def dial(server: LiveServer, path: str = "/ws/worker/", **headers: str) -> None:
    """Knock at the workers' door."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "eA" * 11 + "=="
    connection.request("GET", path, headers=upgrade | headers)
    assert connection.getresponse().status in (101, 403)
    connection.close()


def crawl(traffic: Traffic, start: str = "/admin/") -> dict[str, bytes]:
    """Return all pages of the admin that links lead to; of each list its first pages only."""
    found: dict[str, bytes] = {}
    open_links = [start]
    while open_links and len(found) < 150:
        path = open_links.pop()
        if path in found or "logout" in path:
            continue
        _, page = traffic.send("GET", path)
        found[path] = page
        for link in re.findall(rb'href="(/admin/[^"?#]*)"', page):
            open_links.append(link.decode())
    return found


def test_asvs_16_2_5_no_secret_and_no_word_of_anybody_is_found_where_it_must_not_be(server: LiveServer) -> None:
    traffic = Traffic(server)
    token = server.token  # type: ignore[attr-defined]
    status, answered = traffic.chat("an ordinary question")
    assert (status, ANSWER in answered.decode()) == (200, True)
    status, streamed = traffic.chat("a stream", stream=True)
    assert (status, ANSWER in streamed.decode()) == (200, True)
    status, _ = traffic.form("/admin/login/", username=EMAIL, password=PASSWORD, next="/admin/")
    assert status == 200
    minted = [token, server.key]
    status, body = traffic.send("POST", "/api/auth/login", {"email": EMAIL, "password": PASSWORD})
    if status == 200:
        tokens = json.loads(body)
        minted += [tokens["access"], tokens["refresh"]]
        _, body = traffic.send("POST", "/api/keys", {"name": "canary"}, Authorization=f"Bearer {tokens['access']}")
        minted.append(json.loads(body)["key"])
        for _ in range(2):  # the second time it is replayed
            traffic.send("POST", "/api/auth/refresh", {"refresh": tokens["refresh"]})

    misbehave(traffic)
    for bearer in (token[:-1] + "x", BROKEN_TOKEN, make_secret("wk-"), server.key):
        dial(server, Authorization=f"Bearer {bearer}")
    dial(server, f"/ws/worker/?token={token}")
    dial(server, Authorization=f"Bearer {token}", Origin="https://evil.example")
    dial(server, f"/ws/panels/?panels={BROKEN_TOKEN}&token={token}", Origin=server.url)
    traffic.form("/admin/login/", username=EMAIL, password=PASSWORD, next="/admin/")
    pages = crawl(traffic)
    assert len(pages) > 30
    assert {500} <= set(traffic.statuses)
    wait_until(lambda: '"path":"/v1/models"' in server.log(), "request lines are flushed")
    server.stop(15)

    said = {"server log": server.log_path.read_bytes()}
    said |= {path.name: path.read_bytes() for path in server.folder.glob("w*.log")}
    said |= {f"database {path.name}": path.read_bytes() for path in server.folder.glob("db.sqlite3*")}
    said |= {f"page {path}": page for path, page in pages.items()}
    said |= {f"error of {what}": body for what, body in traffic.errors}
    for canary in canaries(minted):
        for where, content in said.items():
            if where.startswith("error of") and WRONG_PASSWORD.encode() == canary and b"login" in where.encode():
                continue  # the login page shows the name again that was typed into it
            assert canary not in content, f"{canary!r} in {where}: …{_around(content, canary)}…"
    for event in EVENTS:
        assert event in said["server log"], event
    assert b"Sabotage" in said["w1.log"] + said["w2.log"]


def canaries(minted: list[str]) -> Iterator[bytes]:
    """Return what is searched for; of a secret of ours what follows its public prefix."""
    for words in (PROMPT, PASSWORD, WRONG_PASSWORD, ANSWER):
        yield words.encode()
    for text in ("canary-password-7f3a", BROKEN_KEY[20:], BROKEN_TOKEN[20:]):
        yield text.encode()
    for secret in minted:
        parts = secret.split(".")
        yield (parts[-1] if len(parts) == 3 else secret[-49:-4]).encode()


def _around(content: bytes, canary: bytes) -> bytes:
    at = content.index(canary)
    return content[max(0, at - 200) : at + 100]
