"""What is refused on /v1, and in which words: always OpenAI's envelope, never a 5xx for bad input."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest

from tests.live import LiveServer

HELLO = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


def send(
    live: LiveServer, method: str, path: str, body: Any = None, *, key: str | None = "", **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Send one request; `key=None` sends no key, `""` the good one."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["Authorization"] = f"Bearer {key or live.key}"
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, raw, sent)
    response = connection.getresponse()
    answer = response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    connection.close()
    return answer


def assert_envelope(answer: tuple[int, dict[str, str], dict[str, Any]]) -> dict[str, Any]:
    _, headers, body = answer
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"model": 1}, "invalid_type", "model"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"role": "root", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid_type", "messages[0].content"),
        ({"temperature": 3}, "decimal_above_max_value", "temperature"),
        ({"top_p": -1}, "decimal_below_min_value", "top_p"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"tools": [{}]}, "unsupported_parameter", "tools"),
        ({"stop": list("abcde")}, "array_above_max_length", "stop"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"surprise": 1}, "unknown_parameter", "surprise"),
        ({"seed": 2**63}, "integer_above_max_value", "seed"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_tokens": 10**9}, "context_length_exceeded", "messages"),
        ({"max_completion_tokens": 5}, "invalid_value", "max_completion_tokens"),
    ],
)
def test_a_bad_parameter_is_named(live, more, code, param):
    answer = send(live, "POST", CHAT, HELLO | more)

    error = assert_envelope(answer)
    assert answer[0] == 400
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":',
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model":"\xff"}',
        json.dumps(HELLO).encode("utf-16"),
        b'{"model":"llama-3-8b","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"llama-3-8b","messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
        b"",
    ],
)
def test_what_is_not_json_is_a_400(live, body):
    answer = send(live, "POST", CHAT, body)

    assert_envelope(answer)
    assert answer[0] == 400


def test_an_unknown_model_is_not_found(live):
    answer = send(live, "POST", CHAT, HELLO | {"model": "no-such-model"})

    error = assert_envelope(answer)
    assert answer[0] == 404
    assert error["code"] == "model_not_found"
    assert "no-such-model" in error["message"]
    assert assert_envelope(send(live, "GET", "/v1/models/no-such-model"))["code"] == "model_not_found"


def test_a_model_that_no_worker_serves_is_refused_with_the_reason(live):
    """At once or, while the server is young, after its grace: either way a 503 with advice."""
    answer = send(live, "POST", CHAT, HELLO | {"model": "llama-2-70b"})

    error = assert_envelope(answer)
    assert answer[0] == 503
    assert error["code"] == "no_worker_available"
    assert "llama-2-70b" in error["message"]
    assert 1 <= int(answer[1]["retry-after"]) <= 60


@pytest.mark.parametrize("path", ["/v1/", "/v1", "/v1/nope", "/v1/chat/completions/", "/v1/models/"])
def test_an_unknown_url_is_a_404_in_json(live, path):
    answer = send(live, "POST", path, HELLO)

    assert answer[0] == 404
    assert "Invalid URL (POST" in assert_envelope(answer)["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_a_wrong_method_is_a_405_that_names_the_right_one(live, method):
    answer = send(live, method, CHAT)

    assert answer[0] == 405
    assert answer[1]["allow"] == "POST"
    assert assert_envelope(answer)["code"] == "method_not_supported"


def test_no_key_is_told_apart_from_a_wrong_key(live):
    none = send(live, "POST", CHAT, HELLO, key=None)
    wrong = send(live, "POST", CHAT, HELLO, key="sk-0123456789wrong")

    assert none[0] == wrong[0] == 401
    assert none[1]["www-authenticate"] == "Bearer"
    assert assert_envelope(none)["code"] is None
    assert assert_envelope(wrong)["code"] == "invalid_api_key"
    assert "sk-0123456789wrong" not in json.dumps(wrong[2])


def test_a_key_in_the_query_string_does_not_count(live):
    answer = send(live, "POST", f"{CHAT}?api_key={live.key}", HELLO, key=None)

    assert answer[0] == 401


def test_a_large_body_is_refused_before_it_is_read(live):
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {live.key}\r\nContent-Length: 99999999\r\n\r\n".encode()
        )
        answer = raw.makefile("rb").read()  # to the end: the server closes what it does not read

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


def test_a_large_chunked_body_is_refused_too(live):
    def parts():
        for _ in range(80):
            yield b"x" * 65_536

    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {live.key}"}
    connection.request("POST", CHAT, parts(), headers, encode_chunked=True)
    response = connection.getresponse()

    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    "headers",
    [{"Content_Encoding": "gzip"}, {"Content_Type": "text/plain"}, {"Content_Type": "multipart/form-data; boundary=x"}],
)
def test_other_media_are_refused(live, headers):
    answer = send(live, "POST", CHAT, HELLO, **headers)

    assert answer[0] == 415
    assert_envelope(answer)


def test_too_many_headers_are_refused(live):
    answer = send(live, "GET", "/v1/models", None, **{f"x_filler_{number}": "1" for number in range(200)})

    assert answer[0] == 431
    assert_envelope(answer)


def test_an_image_part_is_refused_by_name(live):
    image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    answer = send(live, "POST", CHAT, HELLO | {"messages": [{"role": "user", "content": [image]}]})

    assert answer[0] == 400
    assert assert_envelope(answer)["param"] == "messages[0].content[0].type"


def test_a_request_id_from_outside_is_not_taken_over(live):
    _, headers, _ = send(live, "POST", CHAT, HELLO, X_Request_Id="mine-not-yours")

    assert headers["x-request-id"].startswith("req_")
