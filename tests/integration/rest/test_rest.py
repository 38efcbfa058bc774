"""What every endpoint of `/api` promises about bodies, queries, pages and errors."""

from __future__ import annotations

import json

import pytest
from django.test import Client

pytestmark = pytest.mark.urls("tests.integration.rest.urls")


@pytest.fixture
def client():
    return Client(raise_request_exception=False)


def post(client, body, **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/api/notes", raw, content_type="application/json", headers=headers)


def assert_error(response, status, code):
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    body = response.json()
    assert set(body) <= {"code", "detail", "fields"}
    assert body["code"] == code
    assert body["detail"]
    return body


def test_a_good_body_comes_back_with_its_types(client):
    note = {"name": "a", "count": 1, "share": 0.5, "done": True, "tags": ["x"], "at": None}

    response = post(client, note)

    assert response.status_code == 201
    assert response.json() == note
    assert response["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("more", "path", "sentence"),
    [
        ({"count": "5"}, "count", "Expected a whole number, got a string."),
        ({"count": True}, "count", "Expected a whole number, got true."),
        ({"count": 5.0}, "count", "Expected a whole number, got a number."),
        ({"share": "0.5"}, "share", "Expected a number, got a string."),
        ({"share": False}, "share", "Expected a number, got false."),
        ({"done": 1}, "done", "Expected true or false, got a number."),
        ({"done": "true"}, "done", "Expected true or false, got a string."),
        ({"name": 7}, "name", "Expected a string, got a number."),
        ({"name": ["a"]}, "name", "Expected a string, got a list."),
        ({"tags": "a"}, "tags", "Expected a list, got a string."),
        ({"tags": ["a", 1]}, "tags[1]", "Expected a string, got a number."),
        ({"at": 7}, "at", "Expected a string, got a number."),
        ({"count": -1}, "count", "Ensure this value is greater than or equal to 0."),
        ({"name": None}, "name", "This field may not be null."),
        ({"is_staff": True}, "is_staff", "Unknown field; known are name, count, share, done, tags, at."),
    ],
)
def test_asvs_15_3_5_a_value_of_another_type_is_named(client, more, path, sentence):
    body = assert_error(post(client, {"name": "a"} | more), 400, "invalid")

    assert body["fields"] == {path: [sentence]}
    assert path in body["detail"]


@pytest.mark.parametrize("value", [[], "a", 1, True, None])
def test_a_body_that_is_no_object_is_refused(client, value):
    body = assert_error(post(client, value), 400, "invalid")

    assert body["detail"].startswith("Expected an object, got ")


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b" ",
        b'{"name":NaN}',
        b'{"share":1e999,"name":"a"}',
        b'{"share":-Infinity,"name":"a"}',
        b'{"count":' + b"9" * 5000 + b"}",
        b'{"name":"\\ud800"}',
        b'{"name":"\\udc00\\ud800"}',
        b'{"name":"a\\u0000b"}',
        b'{"name":"\xff"}',
        b'{"name":"\xed\xa0\x80"}',
        '{"name":"a"}'.encode("utf-16"),
        b"[" * 33 + b"]" * 33,
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"[" + b"1," * 11_000 + b"1]",
    ],
)
def test_what_is_not_json_or_not_safe_is_a_parse_error(client, raw):
    assert_error(post(client, raw), 400, "parse_error")


def test_a_surrogate_pair_is_a_character(client):
    response = post(client, b'{"name":"\\ud83d\\ude00"}')

    assert response.json()["name"] == "\N{GRINNING FACE}"


def test_a_body_over_64_kib_is_too_large(client):
    just = b'{"name":"a"' + b" " * (64 * 1024 - 12) + b"}"

    assert post(client, just).status_code == 201
    assert_error(post(client, just + b" "), 413, "request_too_large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_only_json_is_taken(client, kind):
    assert_error(client.post("/api/notes", b'{"name":"a"}', content_type=kind), 415, "unsupported_media_type")


def test_a_compressed_body_is_refused(client):
    assert_error(post(client, {"name": "a"}, content_encoding="gzip"), 415, "unsupported_media_type")


def test_a_list_comes_in_pages(client):
    first = client.get("/api/notes?page_size=3").json()
    second = client.get(first["next"]).json()
    third = client.get(second["next"]).json()

    assert first["count"] == 7
    assert [row["n"] for page in (first, second, third) for row in page["results"]] == list(range(7))
    assert (first["previous"], third["next"]) == (None, None)
    assert client.get(third["previous"]).json() == second
    assert client.get(second["previous"]).json() == first


def test_a_list_is_ordered_either_way(client):
    assert client.get("/api/notes?ordering=-number&most=3").json()["results"] == [{"n": 2}, {"n": 1}, {"n": 0}]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("page=0", "page"),
        ("page=last", "page"),
        ("page=1e9999", "page"),
        ("page_size=201", "page_size"),
        ("page_size=1000000000", "page_size"),
        ("page_size=", "page_size"),
        ("most=%00", "most"),
        ("ordering=digest", "ordering"),
        ("user_id=2", "user_id"),
        ("page=1&page=2", "page"),
    ],
)
def test_a_bad_parameter_is_named(client, query, name):
    body = assert_error(client.get(f"/api/notes?{query}"), 400, "invalid")

    assert list(body["fields"]) == [name]


def test_a_parameter_of_a_post_is_refused(client):
    response = client.post("/api/notes?page=1", b'{"name":"a"}', content_type="application/json")

    assert_error(response, 400, "invalid")


def test_a_page_past_the_end_is_not_found(client):
    assert_error(client.get("/api/notes?page=2"), 404, "not_found")


@pytest.mark.parametrize("path", ["/api/notes/", "/api/nope", "/api/private/1", "/api/a/b/c?x=1"])
@pytest.mark.parametrize("method", ["get", "post", "delete", "options"])
def test_an_unknown_url_is_json(client, path, method):
    assert_error(getattr(client, method)(path), 404, "not_found")


@pytest.mark.parametrize("method", ["put", "delete", "options", "trace"])
def test_a_wrong_method_is_json_and_names_the_right_ones(client, method):
    response = getattr(client, method)("/api/notes")

    assert_error(response, 405, "method_not_allowed")
    assert response["Allow"] == "GET, POST, HEAD"


def test_a_view_that_says_nothing_needs_a_token(client):
    response = client.get("/api/private")

    assert_error(response, 401, "not_authenticated")
    assert response["WWW-Authenticate"].startswith("Bearer")


def test_a_refusal_of_a_service_is_a_400_with_its_fields(client):
    assert assert_error(client.get("/api/invalid"), 400, "invalid")["fields"] == {"name": ["Too dull."]}


def test_a_refusal_of_a_service_keeps_its_code(client):
    assert assert_error(client.get("/api/full"), 400, "limit_reached")["detail"] == "Enough."


def test_what_nobody_expected_is_a_500_that_tells_nothing(client):
    response = client.get("/api/broken")

    assert_error(response, 500, "server_error")
    assert b"secret" not in response.content


def test_a_client_that_wants_html_is_told_in_json(client):
    assert_error(client.get("/api/notes", headers={"accept": "text/html"}), 406, "not_acceptable")
