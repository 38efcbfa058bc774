"""Builds what `$gen` describes: bodies, and requests that are none.

A description is either one of those below or a Python expression over `chat`, `login` and strings, such
as `'['*100000` or `chat(stop=['a'] * 9)`; `$NAME`s are filled in afterwards.
"""

from __future__ import annotations

import ast
import asyncio
import gzip
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.bad_inputs.wire import Talk, compose, slowly

if TYPE_CHECKING:
    from tests.bad_inputs.rows import Row
    from tests.bad_inputs.stage import Stage

MAX_BODY_BYTES = 4 * 1024 * 1024
CONTEXT_TOKENS = 8192
DRIP_S = 0.1
"""Between two bytes of a slow client: a tenth of what the rows say, as all time-outs are."""


def chat(**more: Any) -> bytes:
    """Return a valid body, but for `more`."""
    messages = [{"role": "user", "content": more.pop("content", "hi")}]
    return json.dumps({"model": "$MODEL", "messages": messages, "max_tokens": 2} | more).encode()


def login(**more: Any) -> bytes:
    """Return a body for the login, wrong but for `more`."""
    return json.dumps({"email": "nobody@x.test", "password": "x"} | more).encode()


def build_body(recipe: str) -> bytes:
    """Return the body that a description asks for."""
    if recipe in _BODIES:
        return _BODIES[recipe]()
    if recipe.startswith("bytes: "):
        return ast.literal_eval("b'" + recipe.removeprefix("bytes: ").replace("'", "\\'") + "'")  # type: ignore[no-any-return]
    made = eval(recipe, {"__builtins__": {}, "chat": chat, "login": login, "gzip": gzip.compress})
    return made if isinstance(made, bytes) else str(made).encode()


_BODIES: dict[str, Callable[[], bytes]] = {
    "utf-16 encoded valid request": lambda: chat().decode().encode("utf-16"),
    "valid request of max_body+1 bytes with Content-Length": lambda: chat().ljust(MAX_BODY_BYTES + 1),
    "gzip(valid request)": lambda: gzip.compress(chat()),
    "multipart body with 10000 parts": lambda: (
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 10_000 + b"--x--\r\n"
    ),
    "messages: 100001 items": lambda: chat(messages=[{"role": "user", "content": "a"}] * 100_001),
    "content of context+1 tokens": lambda: chat(content=" a" * (CONTEXT_TOKENS + 1)),
    "content: one 2 MB word without spaces": lambda: chat(content="a" * 2_000_000),
    "password of 1 MB": lambda: login(password="x" * 1_000_000),
}


def build_request(stage: Stage, row: Row) -> bytes | Talk | None:
    """Return a request that is more, or less, than a head and a body; None if `row` is about no such thing."""
    make = _REQUESTS.get(row.recipe or "")
    return None if make is None else make(stage, row)


def _second_authorization(stage: Stage, row: Row) -> bytes:
    headers = [*stage.headers(row), ("Authorization", "Bearer bad")]
    return compose(row.method, row.path, headers, stage.fill(chat()))


def _chunked(stage: Stage, row: Row) -> Talk:
    head = compose(row.method, row.path, [*stage.headers(row), ("Transfer-Encoding", "chunked")], None)

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return talk


def _slow_body(stage: Stage, row: Row) -> Talk:
    head = compose(row.method, row.path, [*stage.headers(row), ("Content-Length", "1000")], None)
    return slowly(head, b"x" * 1000, every_s=DRIP_S)


def _slow_head(stage: Stage, row: Row) -> Talk:
    head = compose(row.method, row.path, stage.headers(row), None)
    return slowly(head[:-2] + b"X-Slow: ", b"a" * 600, every_s=DRIP_S)


def _with(stage: Stage, row: Row, headers: list[tuple[str, str]], body: bytes) -> bytes:
    return compose(row.method, row.path, [*stage.headers(row), *headers], body)


_REQUESTS: dict[str, Callable[[Any, Any], bytes | Talk]] = {
    "raw: valid request with a second header line Authorization: Bearer bad": _second_authorization,
    "chunked stream of max_body+1 bytes, no Content-Length": _chunked,
    "Content-Length 1000, 1 byte per second": _slow_body,
    "raw: header 1 byte/s for 60 s": _slow_head,
    "raw: CL 4 + TE chunked + smuggled GET": lambda stage, row: _with(
        stage,
        row,
        [("Content-Length", "4"), ("Transfer-Encoding", "chunked")],
        b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    "raw: two different Content-Length": lambda stage, row: _with(
        stage, row, [("Content-Length", "4"), ("Content-Length", "5")], b"abcde"
    ),
    "raw: Transfer-Encoding: xchunked": lambda stage, row: _with(
        stage, row, [("Transfer-Encoding", "xchunked")], b"0\r\n\r\n"
    ),
    "raw: Transfer-Encoding: chunked, identity": lambda stage, row: _with(
        stage, row, [("Transfer-Encoding", "chunked, identity")], b"0\r\n\r\n"
    ),
    "raw: chunk size is no number": lambda stage, row: _with(
        stage, row, [("Transfer-Encoding", "chunked")], b"zz\r\n{}\r\n0\r\n\r\n"
    ),
    "raw: Content-Length: -1": lambda stage, row: _with(stage, row, [("Content-Length", "-1")], b""),
    "raw: Content-Length: 5 GB": lambda stage, row: _with(stage, row, [("Content-Length", "5000000000")], b"{"),
    "raw: Content-Length of 30 digits": lambda stage, row: _with(stage, row, [("Content-Length", "9" * 30)], b"{"),
    "raw: 100 KB header line": lambda stage, row: _with(stage, row, [("X-Fat", "a" * 100_000)], b""),
    "raw: 3000 headers": lambda stage, row: _with(stage, row, [(f"X-{n}", "1") for n in range(3_000)], b""),
    "raw: 101 headers": lambda stage, row: _with(stage, row, [(f"X-{n}", "1") for n in range(101)], b""),
    "raw: 40 KB in 40 headers": lambda stage, row: _with(stage, row, [(f"X-{n}", "a" * 1000) for n in range(40)], b""),
    "raw: 60 KB URL": lambda stage, row: compose(
        row.method, row.path + "?q=" + "a" * 60_000, stage.headers(row), stage.fill(chat())
    ),
    "raw: space before the colon": lambda stage, row: _with(stage, row, [("X-Odd ", "1")], b""),
    "raw: NUL in a header": lambda stage, row: _with(stage, row, [("X-Odd", "a\0b")], b""),
    "raw: folded header": lambda stage, row: _with(stage, row, [("X-Odd", "a\r\n b")], b""),
    "raw: HTTP/3.7": lambda stage, row: compose(row.method, row.path, stage.headers(row), b"").replace(
        b" HTTP/1.1", b" HTTP/3.7", 1
    ),
    "raw: no HTTP at all": lambda stage, row: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n",
}
