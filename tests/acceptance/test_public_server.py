"""A server as operators run it in public: an https URL, a trusted proxy, pages of another origin.

The proxy is 127.0.0.1; a client that binds to 127.0.0.2 is anybody else.
"""

from __future__ import annotations

import asyncio
import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.integration.security.test_boot import PRODUCTION
from tests.live import WORKER_TOKEN, LiveServer, free_port, live_server

APP_PORT = free_port()
APP = f"http://127.0.0.1:{APP_PORT}"
FOREIGN = f"http://localhost:{APP_PORT}"
CHAT = "/v1/chat/completions"
HELLO = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
BY_PROXY = {"X-Forwarded-Proto": "https", "Host": "gpu.example"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A public server, and a worker on its own machine."""
    # A key's row is good under the pepper that it was made with, which is in the folder.
    environment = {name: value for name, value in PRODUCTION.items() if name != "GPUCLOUD_WORKER_TOKEN"}
    with live_server(
        tmp_path_factory.mktemp("public"), GPUCLOUD_CORS_ORIGINS=f"{APP},https://app.example", **environment
    ) as server:
        server.key = server.manage("createkey", "--user", "alice@example.com", "--rpm", "0").strip()
        server.start_worker("--speed", "0", "--model", "llama-3-8b", token=WORKER_TOKEN)
        yield server


def ask(
    server: LiveServer, method: str, path: str, body: Any = None, *, source: str = "127.0.0.1", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20, source_address=(source, 0))
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers)
    response = connection.getresponse()
    content = b"" if response.status == 101 else response.read()
    connection.close()
    return response, content


def call(server: LiveServer, path: str = CHAT, body: Any = None, **headers: str) -> http.client.HTTPResponse:
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}", "Origin": APP} | headers
    response, _ = ask(server, "POST", path, HELLO | (body or {}), **sent)
    return response


def test_asvs_3_4_2_an_allowed_page_may_read_every_answer(server: LiveServer) -> None:
    answers = {
        200: call(server),
        400: call(server, body={"model": 1}),
        401: call(server, Authorization="Bearer wrong"),
        404: call(server, "/v1/nowhere"),
        405: call(server, "/v1/models"),
        415: call(server, **{"Content-Type": "text/plain"}),
    }
    streamed = call(server, body={"stream": True})

    assert {status: answer.status for status, answer in answers.items()} == {status: status for status in answers}
    assert streamed.headers["content-type"].startswith("text/event-stream")
    for answer in (*answers.values(), streamed):
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["vary"] == "Origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert answer.headers["access-control-allow-credentials"] is None
        assert answer.headers["x-request-id"].startswith("req_")


def test_asvs_3_4_2_a_foreign_page_is_told_nothing(server: LiveServer) -> None:
    for origin in (FOREIGN, "null", "https://app.example.evil.example"):
        answer = call(server, Origin=origin)
        preflight, _ = ask(server, "OPTIONS", CHAT, **{"Origin": origin, "Access-Control-Request-Method": "POST"})

        assert (answer.status, preflight.status) == (200, 405)
        for each in (answer, preflight):
            assert not [name for name in each.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/nowhere", "/api/auth/login"])
def test_a_preflight_needs_no_key_and_no_redirect(server: LiveServer, path: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight, body = ask(server, "OPTIONS", path, Origin="https://app.example", Host="gpu.example", **asked)

    assert preflight.status in (200, 204)
    assert body == b""
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert preflight.headers["access-control-allow-credentials"] is None


def test_the_rest_api_tells_foreign_pages_nothing(server: LiveServer) -> None:
    mine, _ = ask(server, "GET", "/api/auth/me", Origin=APP, **BY_PROXY)
    foreign, _ = ask(server, "GET", "/api/auth/me", Origin=FOREIGN, **BY_PROXY)

    assert mine.headers["access-control-allow-origin"] == APP
    assert foreign.headers["access-control-allow-origin"] is None
    assert mine.status == foreign.status == 401
    page, _ = ask(server, "GET", "/login/", Origin=APP, **BY_PROXY)
    assert page.headers["access-control-allow-origin"] is None


def test_asvs_3_4_1_pages_are_for_https_alone(server: LiveServer) -> None:
    plain, _ = ask(server, "GET", "/login/", Host="gpu.example")
    secure, _ = ask(server, "GET", "/login/", **BY_PROXY)

    assert plain.status == 301
    assert plain.headers["location"] == "https://gpu.example/login/"
    assert secure.status == 200
    assert secure.headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"


def test_asvs_4_1_3_what_a_stranger_says_of_its_own_connection_is_not_believed(server: LiveServer) -> None:
    lied, _ = ask(server, "GET", "/login/", source="127.0.0.2", **BY_PROXY)

    assert lied.status == 301
    elsewhere, _ = ask(server, "GET", "/login/", Host="gpu.example", **{"X-Forwarded-Host": "evil.example"})
    assert elsewhere.headers["location"] == "https://gpu.example/login/"


def test_asvs_3_3_1_cookies_are_bound_to_this_host_and_to_https(server: LiveServer) -> None:
    page, _ = ask(server, "GET", "/login/", **BY_PROXY)

    (cookie,) = page.headers.get_all("set-cookie")
    assert cookie.startswith("__Host-csrftoken=")
    for part in ("HttpOnly", "Secure", "SameSite=Lax", "Path=/"):
        assert part in cookie
    assert "Domain" not in cookie


def test_a_login_works_behind_the_proxy_and_opens_the_panels_to_the_public_page_only(server: LiveServer) -> None:
    email, password = "charlie@example.com", "correct-horse-battery-staple"
    server.run_manage("createsuperuser", "--noinput", "--email", email, DJANGO_SUPERUSER_PASSWORD=password)
    page, body = ask(server, "GET", "/login/", **BY_PROXY)
    token = body.partition(b'csrfmiddlewaretoken" value="')[2].partition(b'"')[0].decode()
    form = f"csrfmiddlewaretoken={token}&username={email}&password={password}"
    sent = BY_PROXY | {"Content-Type": "application/x-www-form-urlencoded", "Cookie": page.headers["set-cookie"]}
    foreign, _ = ask(server, "POST", "/login/", form.encode(), **sent, Origin="http://gpu.example")
    answer, _ = ask(server, "POST", "/login/", form.encode(), **sent, Origin="https://gpu.example")
    (session,) = [line for line in answer.headers.get_all("set-cookie") if "sessionid" in line]

    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "eA" * 11 + "==", "Cookie": session.partition(";")[0]} | BY_PROXY
    panels = {
        origin: ask(server, "GET", "/ws/panels/?panels=pill", **upgrade, Origin=origin)[0].status
        for origin in ("https://gpu.example", "http://gpu.example", "https://evil.example", APP)
    }

    assert foreign.status == 403
    assert answer.status == 302
    assert session.startswith("__Host-sessionid=")
    assert list(panels.values()) == [101, 403, 403, 403]


def test_pages_answer_to_their_own_name_only_and_the_data_plane_to_any(server: LiveServer) -> None:
    page, body = ask(server, "GET", "/login/", **(BY_PROXY | {"Host": "evil.example"}))
    answer = call(server, Host="evil.example")

    assert page.status == 400
    assert b"evil.example" not in body
    # Nothing there is made from the host's name, and no cookie counts: rebinding a name gains nothing.
    assert answer.status == 200


@pytest.mark.browser
async def test_in_a_browser_an_allowed_page_may_call_and_a_foreign_one_may_not(
    server: LiveServer, chromium: Browser
) -> None:
    site = http.server.ThreadingHTTPServer(("127.0.0.1", APP_PORT), _EmptyPage)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    calling = """async ([url, key, body]) => {
        const answer = await fetch(url, {method: "POST", body: JSON.stringify(body), headers: {
            "Authorization": `Bearer ${key}`, "Content-Type": "application/json", "OpenAI-Beta": "x",
            "X-Stainless-Lang": "js"}})
        return [answer.status, answer.headers.get("x-request-id"), await answer.text()]
    }"""
    arguments = [server.base_url + "/chat/completions", server.key, HELLO | {"stream": True}]
    try:
        page = await chromium.new_page()
        await page.goto(APP)
        status, request_id, text = await page.evaluate(calling, arguments)
        await page.goto(FOREIGN)
        with pytest.raises(Exception, match="Failed to fetch"):
            await page.evaluate(calling, arguments)
    finally:
        await asyncio.to_thread(site.shutdown)
        site.server_close()

    assert status == 200
    assert request_id.startswith("req_")
    assert text.endswith("data: [DONE]\n\n")


class _EmptyPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""
