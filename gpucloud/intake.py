"""Takes requests in for Django: only whole ones, of a bearable size, that came in bearable time.

Django would keep a thread's place and a file on disk for a body that trickles in, and look at its size
when it is over. Here a body is read in the loop, up to a bound, within a deadline, before Django hears
of the request at all. What no page and no endpoint means is refused here, too: compressed bodies, NUL in
the URL (which Postgres cannot be asked for), heads larger than ours ever are, forms of other sites' pages.

Refusals under `/api` look like any other of the API's; elsewhere they are a line of text.
"""

from __future__ import annotations

import asyncio
import json

import msgspec

from gpucloud.doors import is_own_page
from gpucloud.lib.asgi import Application, Message, Receive, Scope, Send

MAX_API_BYTES = 64 * 1024
MAX_FORM_BYTES = 1024 * 1024
"""What a form of the admin may need at most."""
MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_METHOD = frozenset({"TRACE", "TRACK", "CONNECT"})


class Refusal(msgspec.Struct, frozen=True):
    """Why a request does not get to Django."""

    status: int
    code: str
    detail: str


class ClientGone(Exception):
    """The client left before its request was whole."""


def take_in(application: Application, *, timeout_s: float) -> Application:
    """Return `application` behind a door that lets only whole and bearable requests pass."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = judge_head(scope)
        body = b""
        if refusal is None:
            limit = _limit_of(scope["path"])
            try:
                async with asyncio.timeout(timeout_s):
                    body = await _read(scope, receive, limit)
            except TimeoutError:
                refusal = Refusal(408, "request_timeout", f"The body did not arrive within {timeout_s:g} s.")
            except ClientGone:
                return
            if len(body) > limit:
                refusal = _too_large(scope["path"], limit)
        if refusal is not None:
            await _refuse(scope["path"], send, refusal)
            return
        await application(scope, _replay(body, receive), send)

    return door


def judge_head(scope: Scope) -> Refusal | None:
    """Return what is wrong with a request, as far as its head tells."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    target = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    size = len(target) + len(query) + sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
        return Refusal(
            431, "headers_too_large", f"At most {MAX_HEADERS} headers, and {MAX_HEAD_BYTES} bytes with the URL."
        )
    if b"%00" in target or b"%00" in query or "\0" in scope["path"]:
        return Refusal(400, "bad_request", "A URL must not contain NUL characters (%00).")
    if scope["method"] in _NO_METHOD:
        return Refusal(405, "method_not_allowed", f"{scope['method']} is not supported here.")
    if scope["method"] not in _SAFE and not _is_api(scope["path"]) and _is_foreign(headers):
        return Refusal(403, "permission_denied", "This form came from a page of another site.")
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return Refusal(415, "unsupported_media_type", "Send the body as it is: Content-Encoding is not supported.")
    return None


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the whole body, or so much of it, or of what is announced, as is too large."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and (len(length) > 15 or int(length) > limit):
        return bytes(limit + 1)
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body, which has been read, and then what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _limit_of(path: str) -> int:
    return MAX_API_BYTES if _is_api(path) else MAX_FORM_BYTES


def _too_large(path: str, limit: int) -> Refusal:
    if path.startswith("/api/auth/"):
        # What is sent there is an address and a secret, so one of them is wrong: a value, not a size.
        return Refusal(400, "max_length", f"No address, password or token takes a body of more than {limit} bytes.")
    return Refusal(413, "request_too_large", f"The body is larger than {limit} bytes.")


def _is_foreign(headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a page of another site makes a browser send its cookies here; tokens are asked for later."""
    names = {name for name, _ in headers}
    return b"cookie" in names and b"origin" in names and not is_own_page(headers)


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


async def _refuse(path: str, send: Send, refusal: Refusal) -> None:
    if _is_api(path):
        kind, body = b"application/json", json.dumps({"code": refusal.code, "detail": refusal.detail}).encode()
    else:
        kind, body = b"text/plain; charset=utf-8", refusal.detail.encode()
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if refusal.status == 405:
        headers.append((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
