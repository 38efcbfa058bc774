"""Getting in over real sockets, from several addresses: this machine has all of 127.0.0.0/8."""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest

from tests.live import LiveServer, live_server

EMAIL, PASSWORD = "dora@example.com", "a staple for a battery, correct"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
# Long windows, so that no edge of one falls into a test; small figures, for each attempt costs a hash.
RATES = {
    "GPUCLOUD_LOGIN_FAILURES_PER_ACCOUNT": "10/d",
    "GPUCLOUD_LOGIN_FAILURES_PER_IP": "4/d",
    "GPUCLOUD_REGISTRATIONS_PER_IP": "5/d",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that throttles, on which Dora has an account."""
    with live_server(tmp_path_factory.mktemp("logins"), **RATES) as server:
        assert call(server, "register", {"email": EMAIL, "password": PASSWORD}, source="127.0.9.1")[0] == 201
        yield server


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The same behind a proxy at 127.0.0.1."""
    with live_server(tmp_path_factory.mktemp("proxied"), GPUCLOUD_TRUSTED_PROXIES="127.0.0.1", **RATES) as server:
        assert call(server, "register", {"email": EMAIL, "password": PASSWORD}, source="127.0.9.1")[0] == 201
        yield server


def send(
    server: LiveServer, method: str, path: str, raw: bytes = b"", *, source: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request from an address of one's own choice."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30, source_address=(source, 0))
    connection.request(method, path, raw, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


def call(
    server: LiveServer, name: str, body: Any = None, *, token: str = "", **more: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Ask `/api/auth/…`: a GET without a body, else a POST."""
    if token:
        more["Authorization"] = f"Bearer {token}"
    raw = b"" if body is None else json.dumps(body).encode()
    answer = send(server, "GET" if body is None else "POST", f"/api/auth/{name}", raw, Content_Type=JSON, **more)
    return answer[0], answer[1], json.loads(answer[2] or b"{}")


def log_in(server: LiveServer, password: str, *, email: str = EMAIL, **more: str) -> tuple[int, dict[str, Any]]:
    status, _, body = call(server, "login", {"email": email, "password": password}, **more)
    return status, body


def log_in_by_page(server: LiveServer, path: str, password: str, source: str) -> tuple[int, dict[str, str]]:
    """Fill in the form at `path` and send it, as a browser would."""
    _, headers, page = send(server, "GET", path, source=source)
    cookie = headers["set-cookie"].partition(";")[0]
    hidden = re.search(rb'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert hidden
    form = urlencode({"csrfmiddlewaretoken": hidden[1].decode(), "username": EMAIL, "password": password}).encode()
    answer = send(server, "POST", path, form, source=source, Content_Type=FORM, Cookie=cookie)
    return answer[0], answer[1]


def test_a_login_from_registering_to_logging_out(server: LiveServer) -> None:
    status, headers, first = call(server, "login", {"email": EMAIL, "password": PASSWORD})
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert call(server, "me", token=first["access"])[2]["email"] == EMAIL

    status, _, second = call(server, "refresh", {"refresh": first["refresh"]})
    assert status == 200
    assert call(server, "me", token=second["access"])[0] == 200

    assert call(server, "logout", {"refresh": second["refresh"]})[0] == 204
    assert call(server, "me", token=second["access"])[0] == 401
    assert call(server, "refresh", {"refresh": second["refresh"]})[0] == 401


def test_of_many_who_renew_with_one_token_at_once_one_gets_a_pair_and_the_login_is_over(server: LiveServer) -> None:
    _, first = log_in(server, PASSWORD)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: call(server, "refresh", {"refresh": first["refresh"]}), range(8)))

    assert sorted(status for status, _, _ in answers) == [200] + [401] * 7
    winner = next(body for status, _, body in answers if status == 200)
    assert call(server, "me", token=winner["access"])[0] == 401
    assert call(server, "refresh", {"refresh": winner["refresh"]})[0] == 401


def test_a_body_in_chunks_without_a_length_is_read_like_any_other(server: LiveServer) -> None:
    body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    connection.request(
        "POST", "/api/auth/login", iter([body[:9], body[9:]]), {"Content-Type": JSON}, encode_chunked=True
    )

    assert connection.getresponse().status == 200
    connection.close()


def test_asvs_9_1_1_forged_tokens_get_one_answer(server: LiveServer) -> None:
    _, tokens = log_in(server, PASSWORD)
    key = json.loads((server.folder / "secrets.json").read_text())["GPUCLOUD_JWT_KEY"]
    claims = jwt.decode(tokens["access"], options={"verify_signature": False})
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    forged = {
        "alg none": f"{none}.{tokens['access'].split('.')[1]}.",
        "another key": jwt.encode(claims, "x" * 48, "HS256"),
        "another algorithm": jwt.encode(claims, key * 2, "HS512"),
        "a key from elsewhere": jwt.encode(claims, "x" * 48, "HS256", {"jku": f"{server.url}/jwks", "kid": "1"}),
        "refresh as access": tokens["refresh"],
        "expired": jwt.encode(claims | {"exp": int(time.time())}, key, "HS256"),
        "another issuer": jwt.encode(claims | {"iss": "evil"}, key, "HS256"),
        "another audience": jwt.encode(claims | {"aud": "evil"}, key, "HS256"),
        "an API key": server.key,
    }
    # The key is the right one: the same claims, signed by it, are believed.
    assert call(server, "me", token=jwt.encode(claims, key, "HS256"))[0] == 200

    answers = {kind: call(server, "me", token=token) for kind, token in forged.items()}

    assert {kind: status for kind, (status, _, _) in answers.items()} == dict.fromkeys(forged, 401)
    assert {json.dumps(body) for _, _, body in answers.values()} == {
        '{"code": "token_not_valid", "detail": "This access token is not valid, or not any more."}'
    }
    assert call(server, "refresh", {"refresh": tokens["access"]})[0] == 401


def test_asvs_6_3_1_eleven_bad_logins_from_eleven_addresses_lock_the_account_on_every_way_in(
    server: LiveServer,
) -> None:
    email = "erin@example.com"
    call(server, "register", {"email": email, "password": PASSWORD}, source="127.0.9.1")

    answers = [log_in(server, "wrong", email=email, source=f"127.1.{number}.1")[0] for number in range(11)]

    assert answers == [401] * 10 + [429]
    started = time.monotonic()
    status, headers, body = call(
        server, "login", {"email": email, "password": PASSWORD}, source="127.1.99.1", X_Forwarded_For="198.51.100.7"
    )
    assert (status, body["code"]) == (429, "throttled")
    assert int(headers["retry-after"]) >= 1
    assert time.monotonic() - started < 0.2  # nothing was hashed
    assert log_in(server, PASSWORD, source="127.1.99.1")[0] == 200  # another account


def test_one_address_may_not_try_many_accounts_whatever_it_calls_itself(server: LiveServer) -> None:
    tries = [
        log_in(server, "wrong", email=f"u{number}@example.com", source="127.2.0.1", X_Forwarded_For=f"10.0.0.{number}")
        for number in range(5)
    ]

    assert [status for status, _ in tries] == [401] * 4 + [429]
    assert {json.dumps(body) for _, body in tries[:4]} == {
        '{"code": "authentication_failed", "detail": "No active account has this email and password together."}'
    }
    for path in ("/login/", "/admin/login/"):
        status, headers = log_in_by_page(server, path, PASSWORD, "127.2.0.1")
        assert (status, "sessionid" in str(headers)) == (429, False)
        assert int(headers["retry-after"]) >= 1
    assert log_in_by_page(server, "/login/", PASSWORD, "127.2.0.2")[0] == 302


def test_asvs_15_3_4_behind_a_proxy_its_clients_are_told_apart_and_cannot_pose_as_others(proxied: LiveServer) -> None:
    for number in range(5):
        # What the client wrote itself comes first; the proxy adds the last hop.
        log_in(proxied, "wrong", email=f"user{number}@example.com", X_Forwarded_For=f"10.0.0.{number}, 198.51.100.7")

    assert log_in(proxied, PASSWORD, X_Forwarded_For="198.51.100.7")[0] == 429
    assert log_in(proxied, PASSWORD, X_Forwarded_For="198.51.100.7, 127.0.0.1")[0] == 429
    assert log_in(proxied, PASSWORD, X_Forwarded_For="198.51.100.8")[0] == 200
    # Who is no proxy is believed nothing.
    assert log_in(proxied, PASSWORD, source="127.0.0.5", X_Forwarded_For="198.51.100.7")[0] == 200


def test_api6_fifty_registrations_from_one_network_are_stopped(server: LiveServer) -> None:
    def register(number: int) -> int:
        body = {"email": f"new{number}@example.com", "password": PASSWORD}
        return call(server, "register", body, source=f"127.3.0.{number + 1}")[0]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(register, range(50)))

    assert sorted(answers) == [201] * 5 + [429] * 45
    assert len(server.rows("SELECT id FROM accounts_user WHERE email LIKE 'new%'")) == 5


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_asvs_6_3_8_how_long_a_refusal_takes_does_not_tell_who_has_an_account(tmp_path: Path) -> None:
    """Unknown, wrong and inactive by turns; their ranks are compared two by two (Mann-Whitney)."""
    with live_server(tmp_path) as server:
        for email in ("known@example.com", "off@example.com"):
            call(server, "register", {"email": email, "password": PASSWORD})
        server.execute("UPDATE accounts_user SET is_active = 0 WHERE email = 'off@example.com'")
        kinds = {"unknown@example.com": PASSWORD, "known@example.com": "wrong", "off@example.com": PASSWORD}
        took_s: dict[str, list[float]] = {email: [] for email in kinds}

        for _ in range(200):
            for email, password in kinds.items():
                started = time.perf_counter()
                assert log_in(server, password, email=email)[0] == 401
                took_s[email].append(time.perf_counter() - started)

    unknown, wrong, inactive = took_s.values()
    assert mann_whitney_p(unknown, wrong) > 0.01
    assert mann_whitney_p(unknown, inactive) > 0.01
    assert mann_whitney_p(wrong, inactive) > 0.01


def mann_whitney_p(first: list[float], second: list[float]) -> float:
    """Return how likely ranks differ that much if both are drawn alike (two-sided, by the normal distribution)."""
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks = sum(rank for rank, (_, group) in enumerate(ranked, 1) if group == 0)
    n, m = len(first), len(second)
    u = ranks - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


def test_the_comparison_of_times_tells_different_ones_apart() -> None:
    same = [0.3 + number / 1000 for number in range(100)]

    assert mann_whitney_p(same, list(reversed(same))) > 0.9
    assert mann_whitney_p(same, [value + 0.02 for value in same]) < 0.01
