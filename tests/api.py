"""A client of `/api` for tests: somebody's token, and JSON both ways, without a socket."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpResponse
from django.test import Client

from accounts.logins import start_login
from accounts.models import User


class ApiClient:
    """Asks as `user`, or as nobody."""

    def __init__(self, user: User | None = None) -> None:
        self._client = Client(raise_request_exception=False)
        self.token = "" if user is None else start_login(user=user).access

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HttpResponse:
        """Send a request; `path` is below `/api`."""
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        raw = b"" if body is None else json.dumps(body).encode()
        return self._client.generic(method, f"/api{path}", raw, "application/json", headers=headers)

    def get(self, path: str, **query: Any) -> HttpResponse:
        """Read something."""
        return self._client.get(f"/api{path}", query, headers={"Authorization": f"Bearer {self.token}"})

    def post(self, path: str, body: Any = None) -> HttpResponse:
        """Make something."""
        return self.ask("POST", path, body)

    def patch(self, path: str, body: Any) -> HttpResponse:
        """Change something."""
        return self.ask("PATCH", path, body)

    def delete(self, path: str) -> HttpResponse:
        """End something."""
        return self.ask("DELETE", path)


def refused(response: HttpResponse, status: int, code: str) -> dict[str, Any]:
    """Return the body of an error, which is of the one shape that errors have."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    body: dict[str, Any] = json.loads(response.content)
    assert set(body) <= {"code", "detail", "fields"}
    assert body["code"] == code, body
    assert body["detail"]
    return body
