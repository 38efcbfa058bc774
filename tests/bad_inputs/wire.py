"""HTTP on a bare socket: also requests that no client library would send, as slowly as one likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

PATIENCE_S = 20.0

Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Answer(msgspec.Struct):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""
    """What came after the answer, until the server closed or a moment had passed."""

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's envelope."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        return error


class NoAnswer(Exception):
    """The server closed without a word."""


async def ask(port: int, raw: bytes | Talk, *, half_close: bool = False, read_rest: bool = False) -> Answer:
    """Send a request on a connection of its own and return the answer to it."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        talking = asyncio.create_task(_talk(writer, raw, half_close))
        try:
            answer = await _read(reader)
            if read_rest:
                try:
                    answer.rest = await asyncio.wait_for(reader.read(), 0.5)
                except (TimeoutError, ConnectionError):
                    pass
            return answer
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise NoAnswer(repr(error)) from None
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
            writer.close()


async def _talk(writer: asyncio.StreamWriter, raw: bytes | Talk, half_close: bool) -> None:
    if isinstance(raw, bytes):
        writer.write(raw)
        await writer.drain()
    else:
        await raw(writer)
    if half_close:
        writer.write_eof()


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split()[1])
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    if status == 100:
        return await _read(reader)
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif status in (204, 304):
        body = b""
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(status, headers, body)


def compose(method: str, path: str, headers: list[tuple[str, str]], body: bytes | None) -> bytes:
    """Return a request as bytes; names and values go out as they are."""
    lines = [f"{method} {path} HTTP/1.1", *[f"{name}: {value}" for name, value in headers]]
    if body is not None and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + (body or b"")


def slowly(head: bytes, drip: bytes, *, every_s: float) -> Talk:
    """Return what says `head` at once and `drip` byte by byte."""

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for byte in drip:
            await asyncio.sleep(every_s)
            writer.write(bytes([byte]))
            await writer.drain()

    return talk
