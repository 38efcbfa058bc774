"""The socket that workers dial: `/ws/worker/`.

A Channels consumer with a receive loop of its own. The stock loop costs ten times as much per
frame (dispatch by name, a channel-layer listener, a task per socket), and nothing here wants a
channel layer. Reading happens in the consumer's own coroutine, writing in one task beside it, so
that a worker that does not read cannot stop us from hearing it.

No database is touched once a worker is let in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from channels.consumer import AsyncConsumer

from cluster.engine.gateway import Gateway
from cluster.engine.links import WorkerLink
from cluster.engine.registrar import UnableToAuthenticate
from cluster.protocol.messages import CloseCode
from cluster.protocol.session import GatewaySession, ProtocolViolation, UnableToSend
from cluster.services import WorkerCredential

log = logging.getLogger(__name__)

LISTEN_S = 0.05
"""How long a loop that has just woken up needs at most to read what its sockets hold."""

Authenticate = Callable[[str], Awaitable[WorkerCredential | None]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class WorkerConsumer(AsyncConsumer):  # type: ignore[misc]
    """One worker's socket, from handshake to farewell."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        authenticate: Authenticate,
        hello_timeout_s: float,
        max_sockets_per_token: int = 1_000,
    ) -> None:
        self._max_sockets_per_token = max_sockets_per_token
        self._gateway = gateway
        self._authenticate = authenticate
        self._hello_timeout_s = hello_timeout_s

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            credential = await self._admit(scope)
        except UnableToAuthenticate:
            # Closed after it was let in: a refused handshake would mean that it may not come again.
            await _answer(send, _ACCEPT, _close(CloseCode.TRY_AGAIN))
            return
        if credential is None:
            log.warning("worker refused: peer=%s shows no token that is good here", _peer(scope))
            await _answer(send, _close(CloseCode.NO_TOKEN))
            return
        if self._gateway.draining:
            await _answer(send, _ACCEPT, _close(CloseCode.GOING_AWAY))
            return
        open_sockets = self._gateway.open_sockets
        if open_sockets[credential.token_id] >= self._max_sockets_per_token:
            log.warning("worker refused: token=%s has too many sockets", credential.token_id or credential.name)
            await _answer(send, _ACCEPT, _close(CloseCode.TOO_MANY))
            return
        open_sockets[credential.token_id] += 1
        try:
            if await _answer(send, _ACCEPT):
                await self._serve(credential, receive, send)
        finally:
            open_sockets[credential.token_id] -= 1

    async def _serve(self, credential: WorkerCredential, receive: Receive, send: Send) -> None:
        """Read and write until the link ends."""
        session = GatewaySession(
            allowed_models=credential.models, now=time.monotonic(), hello_timeout_s=self._hello_timeout_s
        )
        link = WorkerLink("lnk_" + secrets.token_hex(8), session, token_id=credential.token_id)
        log.info("worker let in: link=%s token=%s (%s)", link.id, credential.token_id or "-", credential.name)
        writer = asyncio.create_task(self._write(link, send), name=f"write {link.id}")
        hello_timer = asyncio.get_running_loop().call_later(self._hello_timeout_s, self._miss_hello, link)
        reason = "link dropped"
        try:
            reason = await self._read(link, receive)
        finally:
            # Whatever ended the loop: the dispatcher hears of it, before anything is awaited.
            self._gateway.leave(link, reason)
            hello_timer.cancel()
            writer.cancel()
            name = link.worker.name if link.worker else "a worker that said no hello"
            log.info("worker left: %s link=%s reason=%r", name, link.id, reason)

    async def _admit(self, scope: dict[str, Any]) -> WorkerCredential | None:
        """Return who is calling, or None to refuse the handshake. Browsers are never let in."""
        headers = scope["headers"]
        tokens = [value for name, value in headers if name == b"authorization"]
        if any(name == b"origin" for name, _ in headers) or len(tokens) != 1:
            return None
        scheme, _, secret = tokens[0].decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await self._authenticate(secret.strip())

    async def _read(self, link: WorkerLink, receive: Receive) -> str:
        """Feed frames to the gateway until the link ends; return why it did."""
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return link.closing[1] if link.closing else f"closed with {message.get('code', 1006)}"
            if link.closing is not None:
                continue  # hung up already; only the end of the socket is of interest
            frame = message.get("bytes")
            try:
                if frame is None:
                    raise ProtocolViolation(CloseCode.BAD_FRAME, "frames are binary msgpack, not text")
                self._gateway.receive(link, link.session.receive(frame, time.monotonic()))
            except ProtocolViolation as violation:
                self._gateway.hang_up(link, violation.close_code, violation.reason)
            except Exception:
                log.exception("a frame of %s could not be handled", link.id)
                self._gateway.hang_up(link, CloseCode.INTERNAL_ERROR, "the frame could not be handled")

    async def _write(self, link: WorkerLink, send: Send) -> None:
        """Write what is queued, a batch per loop tick, then the close if there is one."""
        try:
            while link.closing is None:
                await link.wait_for_work()
                try:
                    frames = link.take_frames()
                except UnableToSend:
                    # Going on without it would leave a link that hears and does not speak.
                    log.exception("a message for %s could not be sent", link.id)
                    self._gateway.hang_up(link, CloseCode.INTERNAL_ERROR, "a message could not be sent")
                    break
                for frame in frames:
                    await send({"type": "websocket.send", "bytes": frame})
            assert link.closing is not None
            code, reason = link.closing
            await send({"type": "websocket.close", "code": int(code), "reason": reason[:120]})
        except OSError:
            return  # the socket is gone; the reader is told so and acts on it

    def _miss_hello(self, link: WorkerLink) -> None:
        # Not judged at once: if this process was paused, the hello lies unread in the socket.
        asyncio.get_running_loop().call_later(LISTEN_S, self._expect_hello, link)

    def _expect_hello(self, link: WorkerLink) -> None:
        if link.worker is None:
            self._gateway.hang_up(link, CloseCode.SILENT, f"no hello within {self._hello_timeout_s:g} s")


async def _answer(send: Send, *messages: dict[str, Any]) -> bool:
    """Answer a handshake; return False if its socket ended while the token was looked up."""
    try:
        for message in messages:
            await send(message)
    except (OSError, RuntimeError, AssertionError) as error:
        # uvicorn lets an assertion of websockets through where the socket has been shut meanwhile.
        log.info("a worker left before its handshake was answered: %s", type(error).__name__)
        return False
    return True


def _peer(scope: dict[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _close(code: CloseCode) -> dict[str, Any]:
    return {"type": "websocket.close", "code": int(code)}


_ACCEPT: dict[str, Any] = {"type": "websocket.accept"}
