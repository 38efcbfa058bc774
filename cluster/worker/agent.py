"""A worker's life: bring the backend up, dial the gateway, serve, come back when the link drops.

Here is what outlives a link: the backend, the identity (`instance`), the backoff, and the wish to
leave. One connection is in `link.py`; signals and arguments are in `cli.py`. Log lines are
`key=value`; they never hold the token, nor anything of a prompt or a completion.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from cluster.protocol.codec import MAX_GATEWAY_FRAME_BYTES
from cluster.protocol.messages import VERSION, CloseCode, Failed, Finished, Hello, Step
from cluster.protocol.session import ProtocolViolation, UnableToSend
from cluster.worker.backends.base import Backend, Capabilities
from cluster.worker.link import Link

log = logging.getLogger(__name__)

# The library logs handshake headers at DEBUG, and among them the token.
_library_log = logging.getLogger("cluster.worker.websockets")
_library_log.setLevel(logging.WARNING)

SOFTWARE = "gpucloud-worker/0.1"
LINK_PATH = "/ws/worker/"
SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
STABLE_S = 10.0
"""A link that held this long was a good one: the backoff starts over."""
LEAVE_GRACE_S = 2.0
"""What a farewell may take beyond the drain's own deadline."""

REFUSALS = {
    CloseCode.NO_TOKEN: "the gateway does not accept the worker token",
    CloseCode.NOT_YOURS: "the gateway refused what this worker offers or did",
    CloseCode.VERSION: "the gateway speaks another version of the worker protocol",
    CloseCode.BAD_FRAME: "the gateway could not accept a frame of this worker",
}
"""Close codes that dialling again cannot mend."""


class UnableToServe(Exception):
    """The gateway refuses this worker for good; the text says why."""


class Backoff:
    """Full jitter: a uniform wait between 0 and a bound that doubles up to a cap.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    BASE_S = 0.2
    CAP_S = 10.0

    def __init__(self, base_s: float = BASE_S, cap_s: float = CAP_S, rng: random.Random | None = None) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng or random.Random()
        self._bound_s = base_s

    def next_s(self) -> float:
        """Return how long to wait before the next try."""
        bound_s, self._bound_s = self._bound_s, min(self._bound_s * 2, self._cap_s)
        return self._rng.uniform(0, bound_s)

    def reset(self) -> None:
        """Start over: the last try went well."""
        self._bound_s = self._base_s


class Agent:
    """Keeps one backend at the service of one gateway."""

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        gateway: str,
        token: str,
        drain_s: float = 25.0,
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self.instance = secrets.token_hex(8)
        self._backend = backend
        self._url = link_url(gateway)
        self._token = token
        self._drain_s = drain_s
        self._backoff = backoff or Backoff()
        self._link: Link | None = None
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to leave; raise `UnableToLoad` or `UnableToServe` if there is no point."""
        serving = asyncio.create_task(self._serve(), name=f"{self.name}-serve")
        leaving = asyncio.create_task(self._leaving.wait(), name=f"{self.name}-leave")
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if self._link is not None and self._link.welcome is not None:
                self._link.drain(self._drain_s)
                await asyncio.wait({serving}, timeout=self._drain_s + LEAVE_GRACE_S)
        finally:
            serving.cancel()
            leaving.cancel()
            await asyncio.wait({serving, leaving})
        if not serving.cancelled():
            serving.result()
        log.info("worker=%s event=left", self.name)

    def leave(self) -> None:
        """Finish what runs, say bye and let `run` return."""
        self._leaving.set()

    async def _serve(self) -> None:
        capabilities = await self._backend.load()
        self._backend.start(self._emit)
        try:
            while not self._leaving.is_set():
                reason = await self._serve_link(self._hello(capabilities))
                if not self._leaving.is_set():
                    delay_s = self._backoff.next_s()
                    log.warning("worker=%s event=unlinked reason=%r redial_s=%.2f", self.name, reason, delay_s)
                    await asyncio.sleep(delay_s)
        finally:
            await self._backend.stop()

    async def _serve_link(self, hello: Hello) -> str:
        """Dial once, serve for as long as that link holds, and return why it ended."""
        loop = asyncio.get_running_loop()
        linked_at = float("inf")
        reason = "bye"
        try:
            async with connect(
                self._url,
                additional_headers={"Authorization": f"Bearer {self._token}"},
                user_agent_header=SOFTWARE,
                max_size=MAX_GATEWAY_FRAME_BYTES,
                compression=None,
                ping_interval=10,
                ping_timeout=10,
                close_timeout=2,
                logger=_library_log,
            ) as socket:
                self._link = Link(socket, self._backend, hello)
                welcome = await self._link.open()
                linked_at = loop.time()
                log.info("worker=%s event=linked id=%s link=%s", self.name, welcome.worker, welcome.link)
                await self._link.serve()
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise UnableToServe(f"{REFUSALS[CloseCode.NO_TOKEN]} (HTTP {status})") from None
            reason = f"HTTP {status} instead of a WebSocket"
        except ConnectionClosed as error:
            reason = self._judge(error)
        except (OSError, TimeoutError, WebSocketException, ProtocolViolation, UnableToSend) as error:
            reason = str(error) or type(error).__name__
        finally:
            self._link = None
            # The gateway has given these attempts to others by now, or is about to.
            self._backend.abort_all()
        if loop.time() - linked_at >= STABLE_S:
            self._backoff.reset()
        return reason

    def _judge(self, error: ConnectionClosed) -> str:
        """Return why the link ended, or raise `UnableToServe` if the next would end the same way."""
        if error.rcvd is None:
            return "the connection dropped"
        reason = f"{error.rcvd.code} {error.rcvd.reason}".strip()
        for code, sentence in REFUSALS.items():
            if error.rcvd.code == code:
                raise UnableToServe(f"{sentence} ({reason})") from None
        return reason

    def _emit(self, messages: Sequence[Step | Finished | Failed]) -> None:
        if self._link is not None:
            self._link.emit(messages)

    def _hello(self, capabilities: Capabilities) -> Hello:
        return Hello(
            v=VERSION,
            name=self.name,
            instance=self.instance,
            gpu=capabilities.gpu,
            models=capabilities.models,
            capacity=capabilities.capacity,
            kv_bytes=capabilities.kv_bytes,
            resumes=capabilities.resumes or None,
            simulated=capabilities.simulated,
            software=SOFTWARE,
        )


def link_url(gateway: str) -> str:
    """Return where to dial for this gateway, or raise `ValueError` with what would be right."""
    parts = urlsplit(gateway)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError(f"{gateway!r} is not a gateway's URL: expected one like http://127.0.0.1:8000")
    path = parts.path.rstrip("/")
    return urlunsplit((SCHEMES[parts.scheme], parts.netloc, path + LINK_PATH, "", ""))
