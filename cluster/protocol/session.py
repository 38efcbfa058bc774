"""What may be said when: the two ends of a worker's link as sans-IO state machines.

Rule 1: what is legal is in the tables below and nowhere else. (state, message type) → next state;
what is not in the table does not exist: received it is a violation, sent it is `UnableToSend`.
Rule 2: both ends read the same tables, one as what it says and the other as what it hears, so
they cannot disagree.
Rule 3: a closed link neither hears nor says. What was under way when it closed is dropped without
complaint, for the end that sent it could not know.
Rule 4: no clock and no socket here. The shell passes frames and `now`, and does what it is told.

Read the tables, then `_Session`, then the end you care about. Bytes are in `codec.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

from cluster.protocol.codec import (
    BATCH_BYTES,
    FrameTooLarge,
    ProtocolViolation,
    decode_from_gateway,
    decode_from_worker,
    encode_frames,
    peek_version,
)
from cluster.protocol.messages import (
    VERSION,
    Assign,
    Bye,
    Cancel,
    CloseCode,
    Drain,
    Failed,
    Finished,
    FromGateway,
    FromWorker,
    Heartbeat,
    Hello,
    Step,
    Welcome,
)

__all__ = [
    "FROM_GATEWAY",
    "FROM_WORKER",
    "GatewaySession",
    "ProtocolViolation",
    "State",
    "UnableToSend",
    "WorkerSession",
]


class State(StrEnum):
    """Where a link stands, as one of its ends sees it."""

    AWAITING_HELLO = "awaiting_hello"
    AWAITING_WELCOME = "awaiting_welcome"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"


Table = Mapping[tuple[State, type], State]

FROM_WORKER: Table = {
    (State.AWAITING_HELLO, Hello): State.AWAITING_WELCOME,
    (State.READY, Heartbeat): State.READY,
    (State.READY, Step): State.READY,
    (State.READY, Finished): State.READY,
    (State.READY, Failed): State.READY,
    (State.READY, Drain): State.DRAINING,
    (State.READY, Bye): State.CLOSED,
    (State.DRAINING, Heartbeat): State.DRAINING,
    (State.DRAINING, Step): State.DRAINING,
    (State.DRAINING, Finished): State.DRAINING,
    (State.DRAINING, Failed): State.DRAINING,
    (State.DRAINING, Drain): State.DRAINING,
    (State.DRAINING, Bye): State.CLOSED,
}

FROM_GATEWAY: Table = {
    (State.AWAITING_WELCOME, Welcome): State.READY,
    (State.READY, Assign): State.READY,
    (State.READY, Cancel): State.READY,
    (State.READY, Drain): State.DRAINING,
    (State.READY, Bye): State.CLOSED,
    # Queued or on the wire when the worker said drain: it answers `failed`, retryable.
    (State.DRAINING, Assign): State.DRAINING,
    (State.DRAINING, Cancel): State.DRAINING,
    (State.DRAINING, Drain): State.DRAINING,
    (State.DRAINING, Bye): State.CLOSED,
}

MAX_FRAMES_PER_S = 2_000.0
FRAME_BURST_S = 5.0
MAX_HEARTBEATS_PER_S = 100.0
PACE_FRAMES_PER_S = 1_000.0
"""What a worker of ours holds itself to; half of what a gateway bears."""


class UnableToSend(Exception):
    """This message cannot be sent: not in this state, or not in one frame."""


class Allowance:
    """A rate with room for a burst of `burst_s` seconds' worth: a token bucket without a clock."""

    def __init__(self, rate_per_s: float, burst_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst_s = burst_s
        self._spent_until = float("-inf")

    def spend(self, now: float) -> bool:
        """Take one and return whether it was there to take."""
        if self.wait_s(now) > 0:
            return False
        self._spent_until = max(self._spent_until, now - self._burst_s) + 1 / self._rate_per_s
        return True

    def wait_s(self, now: float) -> float:
        """Return how long until there is one to take; 0 when there is."""
        return max(0.0, self._spent_until - now)


class _Session:
    """One end of a link: its state, and the two tables that it reads."""

    _hears: Table
    _says: Table

    def __init__(self, state: State) -> None:
        self.state = state
        self._batch_bytes = BATCH_BYTES

    def _hear(self, message: FromWorker | FromGateway) -> None:
        state = self._hears.get((self.state, type(message)))
        if state is None:
            kind = type(message).__name__.lower()
            raise ProtocolViolation(CloseCode.BAD_FRAME, f"a {kind} is not expected in state {self.state}")
        self.state = state

    def _say(self, messages: Sequence[FromWorker | FromGateway]) -> list[bytes]:
        state = self.state
        if state is State.CLOSED:
            return []
        for message in messages:
            if (after := self._says.get((state, type(message)))) is None:
                kind = type(message).__name__.lower()
                raise UnableToSend(f"a {kind} cannot be sent in state {state}")
            state = after
        try:
            frames = encode_frames(messages, self._batch_bytes)
        except FrameTooLarge as error:
            raise UnableToSend(str(error)) from None
        except UnicodeEncodeError:
            raise UnableToSend("a text with lone surrogates, which UTF-8 cannot hold") from None
        # Only now: a refused batch leaves the session as it was.
        self.state = state
        return frames


class GatewaySession(_Session):
    """The gateway's end of one worker's link.

    `allowed_models` are the globs of the worker's token; none means every model.
    """

    _hears = FROM_WORKER
    _says = FROM_GATEWAY

    def __init__(self, *, now: float, hello_timeout_s: float = 5.0, allowed_models: tuple[str, ...] = ()) -> None:
        super().__init__(State.AWAITING_HELLO)
        self.hello: Hello | None = None
        self._hello_deadline = now + hello_timeout_s
        self._allowed_models = allowed_models
        self._frames = Allowance(MAX_FRAMES_PER_S, FRAME_BURST_S)
        self._heartbeats = Allowance(MAX_HEARTBEATS_PER_S, burst_s=1.0)

    @property
    def deadline(self) -> float | None:
        """When to call `check`; None once the worker has introduced itself."""
        return self._hello_deadline if self.state is State.AWAITING_HELLO else None

    def check(self, now: float) -> None:
        """Raise `ProtocolViolation` (SILENT) if the hello is overdue."""
        if self.deadline is not None and now >= self.deadline:
            self.state = State.CLOSED
            raise ProtocolViolation(CloseCode.SILENT, "no hello in time")

    def receive(self, frame: bytes, now: float) -> list[FromWorker]:
        """Return the frame's messages, each valid and legal here; after a violation, closed."""
        if self.state is State.CLOSED:
            return []
        try:
            return self._receive(frame, now)
        except ProtocolViolation:
            self.state = State.CLOSED
            raise

    def send(self, messages: Sequence[FromGateway]) -> list[bytes]:
        """Return the frames that say this, none if closed; or raise `UnableToSend` and change nothing."""
        return self._say(messages)

    def _receive(self, frame: bytes, now: float) -> list[FromWorker]:
        if not self._frames.spend(now):
            raise ProtocolViolation(CloseCode.TOO_MANY, f"more than {MAX_FRAMES_PER_S:,.0f} frames a second")
        if self.state is State.AWAITING_HELLO and (version := peek_version(frame)) not in (None, VERSION):
            raise ProtocolViolation(CloseCode.VERSION, f"version {version}: this gateway speaks {VERSION}")
        heard: list[FromWorker] = []
        for message in decode_from_worker(frame):
            if self.state is State.CLOSED:
                break
            self._hear(message)
            if isinstance(message, Hello):
                self._admit(message)
            elif isinstance(message, Heartbeat) and not self._heartbeats.spend(now):
                raise ProtocolViolation(CloseCode.TOO_MANY, f"more than {MAX_HEARTBEATS_PER_S:.0f} heartbeats a second")
            heard.append(message)
        return heard

    def _admit(self, hello: Hello) -> None:
        for offer in hello.models:
            if self._allowed_models and not any(fnmatchcase(offer.id, glob) for glob in self._allowed_models):
                raise ProtocolViolation(CloseCode.NOT_YOURS, f"this token does not permit the model {offer.id}")
        self.hello = hello


class WorkerSession(_Session):
    """The worker's end of its link."""

    _hears = FROM_GATEWAY
    _says = FROM_WORKER

    def __init__(self) -> None:
        super().__init__(State.AWAITING_HELLO)
        self.welcome: Welcome | None = None
        self.next_heartbeat_at: float | None = None
        """When the next heartbeat is due; None before the welcome."""
        self._frames = Allowance(PACE_FRAMES_PER_S, burst_s=1.0)

    def receive(self, frame: bytes, now: float) -> list[FromGateway]:
        """Return the frame's messages, each valid and legal here; after a violation, closed."""
        if self.state is State.CLOSED:
            return []
        try:
            return self._receive(frame, now)
        except ProtocolViolation:
            self.state = State.CLOSED
            raise

    def send(self, messages: Sequence[FromWorker], now: float) -> list[bytes]:
        """Return the frames that say this, none if closed; or raise `UnableToSend` and change nothing."""
        frames = self._say(messages)
        for _ in frames:
            self._frames.spend(now)
        if self.welcome is not None and any(type(message) is Heartbeat for message in messages):
            self.next_heartbeat_at = now + self.welcome.heartbeat_s
        return frames

    def pause_s(self, now: float) -> float:
        """Return how long to gather before the next frame; 0 below `PACE_FRAMES_PER_S`."""
        return self._frames.wait_s(now)

    def _receive(self, frame: bytes, now: float) -> list[FromGateway]:
        heard: list[FromGateway] = []
        for message in decode_from_gateway(frame):
            if self.state is State.CLOSED:
                break
            self._hear(message)
            if isinstance(message, Welcome):
                if message.v != VERSION:
                    raise ProtocolViolation(CloseCode.VERSION, f"version {message.v}: this worker speaks {VERSION}")
                self.welcome = message
                self._batch_bytes = min(BATCH_BYTES, message.max_frame_bytes)
                self.next_heartbeat_at = now
            heard.append(message)
        return heard
