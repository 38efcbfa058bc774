"""`/api` over real sockets: from a new account to a bill, and what only a socket can show."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import openai
import pytest
import schemathesis

from tests.apifuzz import QUICK, fuzz
from tests.live import LiveServer, live_server, wait_until

PASSWORD = "a staple for a battery, correct"


class Person:
    """Somebody with a token, over HTTP."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.token = ""

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of an answer; `path` is below `/api`."""
        status, _, raw = self.ask_raw(method, path, body)
        return status, json.loads(raw) if raw else None

    def ask_raw(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and bytes of an answer."""
        url = path if path.startswith("http") else f"{self.server.url}/api{path}"
        request = urllib.request.Request(url, method=method, data=None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def log_in(self, email: str) -> None:
        """Make an account and log in to it."""
        status, _ = self.ask("POST", "/auth/register", {"email": email, "password": PASSWORD})
        assert status == 201
        status, tokens = self.ask("POST", "/auth/login", {"email": email, "password": PASSWORD})
        assert status == 200
        self.token = tokens["access"]


def chat(server: LiveServer, secret: str) -> str:
    """Return the id of a request that the official client made."""
    with openai.OpenAI(base_url=server.base_url, api_key=secret, max_retries=0, timeout=20) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="llama-3-8b", messages=[{"role": "user", "content": "Hello"}], max_tokens=5, seed=7
        )
        return raw.headers["x-request-id"]


def test_from_a_new_account_to_a_bill_and_a_revoked_key(live: LiveServer) -> None:
    dora = Person(live)
    dora.log_in("dora@example.com")

    status, key = dora.ask("POST", "/keys", {"name": "=notebook"})
    assert (status, key["masked"]) == (201, f"{key['key'][:11]}…{key['key'][-4:]}")

    request_id = chat(live, key["key"])

    # The row, the sums and the totals were committed before the answer was complete.
    _, requests = dora.ask("GET", "/requests")
    assert [(row["id"], row["state"], row["key_id"]) for row in requests["results"]] == [
        (request_id, "completed", key["id"])
    ]
    _, request = dora.ask("GET", f"/requests/{request_id}")
    assert [line["event"] for line in request["timeline"]] == ["admitted", "assigned", "first token", "settled"]
    _, usage = dora.ask("GET", "/usage?by=key,model")
    (line,) = usage["results"]
    assert (line["key_name"], line["model"], line["completed"], line["completion_tokens"]) == (
        "=notebook",
        "llama-3-8b",
        1,
        5,
    )
    assert usage["totals"]["prompt_tokens"] == request["prompt_tokens"] > 0
    _, shown = dora.ask("GET", f"/keys/{key['id']}")
    assert shown["totals"] == {
        "requests": 1,
        "prompt_tokens": request["prompt_tokens"],
        "completion_tokens": 5,
    }
    _, metrics = dora.ask("GET", "/monitoring/metrics")
    assert (metrics["requests"], metrics["tokens"]["completion"]) == (1, 5)
    assert metrics["ttft_ms"]["p50"] > 0

    status, headers, raw = dora.ask_raw("GET", "/usage?by=key&format=csv")
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert headers["transfer-encoding"] == "chunked"
    head, csv_line = raw.decode().splitlines()
    assert head.split(",")[:3] == ["start", "key_id", "key_name"]
    assert csv_line.split(",")[1:5] == [str(key["id"]), "'=notebook", "1", "1"]

    status, rotated = dora.ask("POST", f"/keys/{key['id']}/rotate", {"overlap_s": 3})
    assert status == 200
    until = datetime.fromisoformat(rotated["previous_until"])
    chat(live, rotated["key"])
    chat(live, key["key"])
    assert datetime.now(UTC) < until, "both secrets were to be tried while both live"
    wait_until(lambda: datetime.now(UTC) >= until, "the old secret's end")
    with pytest.raises(openai.AuthenticationError):
        chat(live, key["key"])
    chat(live, rotated["key"])

    status, _ = dora.ask("DELETE", f"/keys/{key['id']}")
    assert status == 204
    with pytest.raises(openai.AuthenticationError):
        chat(live, rotated["key"])
    _, usage = dora.ask("GET", "/usage")
    assert usage["totals"]["completed"] == 4


def test_monitoring_shows_the_workers_that_are_connected(live: LiveServer) -> None:
    eve = Person(live)
    eve.log_in("eve@example.com")

    _, workers = eve.ask("GET", "/monitoring/workers")
    _, queue = eve.ask("GET", "/monitoring/queue")

    assert {worker["name"] for worker in workers["results"]} >= {"fast", "second"}
    fast = next(worker for worker in workers["results"] if worker["name"] == "fast")
    seen = datetime.fromisoformat(fast["last_heartbeat_at"])
    assert abs((datetime.now(UTC) - seen).total_seconds()) < 60
    assert fast["vram_total_bytes"] >= fast["vram_used_bytes"] > 0
    assert (queue["depth"], queue["oldest_wait_ms"]) == (0, 0)


def test_one_person_sees_nothing_of_another(live: LiveServer) -> None:
    frank, grace = Person(live), Person(live)
    frank.log_in("frank@example.com")
    grace.log_in("grace@example.com")
    _, key = frank.ask("POST", "/keys")
    request_id = chat(live, key["key"])

    assert grace.ask("GET", f"/requests/{request_id}")[0] == 404
    assert grace.ask("DELETE", f"/keys/{key['id']}")[0] == 404
    for path in ("/requests", "/keys", "/usage", f"/usage?key={key['id']}", f"/requests?id={request_id}"):
        assert grace.ask("GET", path)[1]["results"] == []
    assert grace.ask("GET", "/monitoring/metrics")[1]["requests"] == 0
    assert grace.ask("POST", "/workers/wrk_1/evict")[0] == 403
    chat(live, key["key"])


def test_the_pages_of_a_list_are_linked_under_the_name_that_was_asked(live: LiveServer) -> None:
    heidi = Person(live)
    heidi.log_in("heidi@example.com")
    for name in ("a", "b"):
        heidi.ask("POST", "/keys", {"name": name})

    _, first = heidi.ask("GET", "/keys?page_size=1")
    _, second = heidi.ask("GET", first["next"])

    assert first["next"].startswith(f"{live.url}/api/keys?")
    assert [page["results"][0]["name"] for page in (first, second)] == ["b", "a"]


def test_what_an_operator_wants_of_a_worker_is_done(live: LiveServer) -> None:
    judy = Person(live)
    judy.log_in("judy@example.com")
    live.execute("UPDATE accounts_user SET is_staff = 1 WHERE email = 'judy@example.com'")

    def second() -> dict[str, Any]:
        _, workers = judy.ask("GET", "/monitoring/workers")
        return next(worker for worker in workers["results"] if worker["name"] == "second")

    status, wanted = judy.ask("POST", f"/workers/{second()['id']}/cordon")
    assert (status, wanted["intent"], wanted["changed"]) == (200, "cordoned", True)
    wait_until(lambda: second()["status"] == "cordoned", "the worker is cordoned", 5)

    status, wanted = judy.ask("POST", f"/workers/{wanted['id']}/uncordon")
    assert (status, wanted["intent"], wanted["changed"]) == (200, "none", True)
    wait_until(lambda: second()["status"] == "online", "the worker is back", 5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("staff", [False, True])
def test_the_schema_holds_over_a_long_questioning(tmp_path: Path, staff: bool) -> None:
    rates = {f"GPUCLOUD_API_CALLS_PER_{who}": "1000000/m" for who in ("IP", "USER")}
    with live_server(tmp_path, **rates, GPUCLOUD_LOGINS_PER_IP="1000/m") as server:
        server.start_worker("--speed", "0", "--model", "llama-3-8b")
        ivan = Person(server)
        ivan.log_in("ivan@example.com")
        if staff:
            server.execute("UPDATE accounts_user SET is_staff = 1 WHERE email = 'ivan@example.com'")
        _, key = ivan.ask("POST", "/keys")
        known = {
            "key_id": key["id"],
            "request_id": chat(server, key["key"]),
            "worker_id": ivan.ask("GET", "/monitoring/workers")[1]["results"][0]["id"],
            "token_id": 1,
        }
        schema = schemathesis.openapi.from_url(f"{server.url}/api/schema")

        def token() -> str:
            _, tokens = ivan.ask("POST", "/auth/login", {"email": "ivan@example.com", "password": PASSWORD})
            return str(tokens["access"])

        asked = fuzz(schema, token, known, budget=hypothesis.settings(QUICK, max_examples=50))

        assert asked > 2_000
        assert server.is_ready()
        assert "Traceback" not in server.log()
