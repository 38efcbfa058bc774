"""The server that rows are run against: real, with real workers, and the cast in its database."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gpucloud.lib.secret import make_secret
from tests.bad_inputs.bodies import build_body, build_request
from tests.bad_inputs.rows import Row
from tests.bad_inputs.wire import Answer, Talk, ask, compose
from tests.live import ROOT, LiveServer

MODEL = "llama-3-8b"
ACTORS = ("gpt-4", "gpt-4o", "claude-3", "claude-3-opus", "claude-3-sonnet", "llama-2-7b", "llama-3-70b")
ENVIRONMENT = {
    "GPUCLOUD_JWT_KEY": "j" * 64,
    # Every row comes from an address of its own: what is counted by address must not mix them up.
    "GPUCLOUD_TRUSTED_PROXIES": "127.0.0.1/32",
    "GPUCLOUD_HEADER_TIMEOUT_S": "4",
    "GPUCLOUD_BODY_TIMEOUT_S": "4",
    "GPUCLOUD_HELLO_TIMEOUT_S": "3",
    "GPUCLOUD_NO_WORKER_GRACE_S": "0.5",
    "GPUCLOUD_FIRST_TOKEN_S": "1",
    "GPUCLOUD_MAX_SOCKETS_PER_TOKEN": "300",
    "GPUCLOUD_LOGIN_FAILURES_PER_ACCOUNT": "10/m,100/h",
    "GPUCLOUD_LOGIN_FAILURES_PER_IP": "30/m",
    "GPUCLOUD_LOGINS_PER_IP": "120/m",
    "GPUCLOUD_REGISTRATIONS_PER_IP": "20/m,100/h",
}
_NAME = re.compile(r"\$(JWT\([^)]*\)|[A-Z_]+)")
_addresses = iter(range(1, 1 << 16))


class Models:
    """Models that scenes may have to themselves, one each."""

    def __init__(self, *names: str) -> None:
        self._free = list(names)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[str]:
        """Wait for a model that nobody has and give it back in the end."""
        while not self._free:  # noqa: ASYNC110 — rows are played in loops of their own, and an event is of one
            await asyncio.sleep(0.02)
        name = self._free.pop()
        try:
            yield name
        finally:
            self._free.append(name)


class Stage:
    """A live server and the values of the rows' `$NAME`s."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.models = Models(*ACTORS)
        self.port = server.port
        made = subprocess.run(
            [sys.executable, "-m", "tests.bad_inputs.cast"],
            env=server.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not made.returncode, made.stderr
        self.values: dict[str, str] = {"MODEL": MODEL, "MODEL_NOT_ALLOWED": "gpt-4"} | json.loads(made.stdout)

    def fill(self, text: Any) -> Any:
        """Return text or bytes with the `$NAME`s of this stage filled in."""
        if isinstance(text, bytes):
            return text.replace(b"$MODEL", MODEL.encode())
        return _NAME.sub(lambda found: self.values.get(found[1], found[0]), text)

    def headers(self, row: Row) -> list[tuple[str, str]]:
        """Return the headers of a row's request, with the authorization that it asks for."""
        headers = [(name, self.fill(value)) for name, value in row.headers.items()]
        token = self.token(row)
        if token and "Authorization" not in row.headers:
            headers.append(("Authorization", f"Bearer {token}"))
        if "Host" not in row.headers:
            headers.insert(0, ("Host", f"127.0.0.1:{self.port}"))
        return [*headers, ("X-Forwarded-For", self.address())]

    def token(self, row: Row) -> str:
        """Return the token that belongs to `auth`, on the row's plane."""
        values = self.values
        match row.auth:
            case "good":
                return values["BOUND_WORKER"] if row.plane == "ws" else values["GOODKEY"]
            case "bad":
                return make_secret("wk-" if row.plane == "ws" else "sk-")
            case "revoked":
                return values["REVOKED_WORKER"] if row.plane == "ws" else values["REVOKED"]
            case "expired":
                expired = {"ws": "EXPIRED_WORKER", "api": "JWT(expired)"}
                return values[expired.get(row.plane, "EXPIRED")]
            case "jwt":
                return values["ACCESS"]
            case _:
                return ""

    @staticmethod
    def address() -> str:
        """Return an address in whose network nobody has been yet."""
        number = next(_addresses)
        return f"10.{number // 256}.{number % 256}.1"

    def request(self, row: Row) -> bytes | Talk:
        """Return a row's request."""
        if (odd := build_request(self, row)) is not None:
            return odd
        return compose(row.method, self.fill(row.path), self.headers(row), self.body(row))

    def body(self, row: Row) -> bytes | None:
        """Return a row's body."""
        match row.body:
            case None:
                return None
            case {"$gen": recipe}:
                return self.fill(build_body(recipe))  # type: ignore[no-any-return]
            case str():
                return self.fill(row.body).encode()  # type: ignore[no-any-return]
            case _:
                return self.fill(json.dumps(row.body)).encode()  # type: ignore[no-any-return]

    async def play(self, row: Row) -> Answer:
        """Send a row's request and return the answer."""
        return await ask(self.port, self.request(row), read_rest=(row.recipe or "").startswith("raw"))

    async def chat(self, *, key: str = "", model: str = MODEL, stream: bool = False, **more: Any) -> Answer:
        """Ask a good question, and return the answer."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": stream}
        headers = [
            ("Host", "127.0.0.1"),
            ("Content-Type", "application/json"),
            ("Authorization", f"Bearer {key or self.values['GOODKEY']}"),
        ]
        return await ask(self.port, compose("POST", "/v1/chat/completions", headers, json.dumps(body | more).encode()))
