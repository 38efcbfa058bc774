"""The API describes itself: a schema, and a page to browse it."""

from __future__ import annotations

import json

from django.test import Client


def test_the_schema_is_public_json_and_says_that_errors_look_alike(client):
    response = client.get("/api/schema")

    schema = json.loads(response.content)
    assert response["Content-Type"].startswith("application/json")
    assert schema["openapi"].startswith("3.")
    assert "/api/auth/me" in schema["paths"]
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


def test_the_page_to_browse_it_has_nothing_inline_and_nothing_from_elsewhere(client):
    page = client.get("/api/docs").content.decode()
    script = client.get("/api/docs?script=")

    assert "<style" not in page
    assert "<script>" not in page
    assert "//" not in page.replace("<!doctype html>", "")
    assert script["Content-Type"].startswith("application/javascript")
    assert b"SwaggerUIBundle" in script.content


def test_unknown_urls_of_the_site_are_json_under_api_and_pages_elsewhere(db):
    client = Client(raise_request_exception=False)

    for path in ("/api", "/api/", "/api/nope", "/api/auth/me/"):
        response = client.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), path
    assert client.get("/nope/")["Content-Type"].startswith("text/html")
    assert client.get("/api/nope", headers={"host": "evil.example"}).json()["code"] == "bad_request"
