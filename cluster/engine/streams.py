"""The client's end of a task: where tokens arrive, and where stale ones stop.

Rule 1: fencing lives here and nowhere else. A stream accepts tokens of its current attempt only,
and only if they begin exactly at `next_seq`. Everything else is refused, whoever sent it.
Rule 2: a stream ends once: finished, failed or abandoned. What comes later changes nothing.
Rule 3: nothing here blocks or awaits but `wait`; the tokens' sender is never held up by a client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum

import msgspec

from cluster.domain import FinishReason, Outcome, Task
from cluster.scheduler.commands import AnnounceAttempt, AnnounceWait, FenceAttempt

TOKEN_BYTES = 58
"""What a short text takes beside its characters: CPython's header, and its place in a list."""

Note = tuple[float, AnnounceAttempt | AnnounceWait | FenceAttempt, int]
"""When something befell a task, what, and the index of the next token then."""


class Verdict(Enum):
    """What a stream thinks of tokens that were pushed to it."""

    ACCEPTED = "accepted"
    STRAY = "stray"
    """Of an older attempt, a repetition, or after the end: dropped."""
    GAP = "gap"
    """Tokens of the current attempt are missing: the sender broke the protocol."""
    SURPLUS = "surplus"
    """More than were asked for: nobody may be billed for that, so the sender broke the protocol."""
    FOREIGN = "foreign"
    """The current attempt runs on another worker: the sender broke the protocol."""


class StreamFailure(msgspec.Struct, frozen=True):
    """Why a stream ended without a finish, in the words of the error contract."""

    outcome: Outcome
    code: str
    message: str
    retry_after_s: float | None = None


class TokenStream(msgspec.Struct, eq=False):
    """The tokens of one task on their way to one client.

    A *buffered* stream belongs to a client that wants the whole answer at once: it wakes its
    reader at the end only, and may start again from nothing after a worker was lost.
    """

    task: Task
    buffered: bool
    attempt: int = 0
    next_seq: int = 0
    taken: int = 0
    worker_id: str = ""
    worker_name: str = ""
    queued_s: float = 0.0
    submitted_at_s: float = msgspec.field(default_factory=time.monotonic)
    first_token_at_s: float | None = None
    generated_tokens: int = 0
    finish_reason: FinishReason | None = None
    failure: StreamFailure | None = None
    abandoned: bool = False
    ended: bool = False
    """Whether no more tokens will come, for any of these reasons."""
    began_at_seq: int = 0
    """Where the current attempt began."""
    progress_at_s: float = 0.0
    """When the current attempt was announced or last gave a token."""
    notes: list[Note] = []
    """What befell the task, and when (monotonic seconds): what its timeline is told from."""
    on_end: Callable[[], None] | None = None
    """Called once, in the stack of whoever ends the stream; whoever sets it has no need to wait."""
    _texts: list[str] = []
    _waiter: asyncio.Future[bool] | None = None

    def announce(self, attempt: int, worker_id: str, worker_name: str, queued_s: float) -> None:
        """Open the stream to the tokens of `attempt` and of no other."""
        if attempt > self.attempt:
            self.attempt = attempt
            self.worker_id = worker_id
            self.worker_name = worker_name
            self.queued_s = queued_s
            self.began_at_seq = self.next_seq
            self.progress_at_s = time.monotonic()

    def push(self, worker_id: str, attempt: int, seq: int, texts: list[str]) -> Verdict:
        """Accept new tokens, or say why not."""
        if attempt != self.attempt or self.ended:
            return Verdict.STRAY
        if worker_id != self.worker_id:
            return self._judge_stranger()
        if seq != self.next_seq:
            return Verdict.STRAY if seq < self.next_seq else Verdict.GAP
        if seq + len(texts) > self.task.generation.max_tokens:
            return Verdict.SURPLUS
        self.progress_at_s = now = time.monotonic()
        if self.first_token_at_s is None:
            self.first_token_at_s = now
        self.next_seq = seq + len(texts)
        self._texts += texts
        if not self.buffered and self._waiter is not None:
            self._wake()
        return Verdict.ACCEPTED

    def fence(self, attempt: int) -> int:
        """Close `attempt` for good and return the index of the first token still to come.

        One synchronous step: after it no token of that attempt can be accepted. Tokens that no
        client has seen yet are forgotten, so that their task may start afresh.
        """
        if attempt >= self.attempt:
            self.attempt = attempt
            self.worker_id = ""
            if self.taken == 0:
                self._texts.clear()
                self.next_seq = 0
        return self.next_seq

    def finish(self, worker_id: str, attempt: int, reason: FinishReason, generated_tokens: int) -> Verdict:
        """End the stream well."""
        if attempt != self.attempt or self.ended:
            return Verdict.STRAY
        if worker_id != self.worker_id:
            return self._judge_stranger()
        # A worker's own figure may only add what it held back: never take away what arrived, nor go
        # beyond what it was asked for.
        self.generated_tokens = max(self.next_seq, min(generated_tokens, self.task.generation.max_tokens))
        self.finish_reason = reason
        self._end()
        return Verdict.ACCEPTED

    def fail(self, failure: StreamFailure) -> None:
        """End the stream badly."""
        if not self.ended:
            self.failure = failure
            self.generated_tokens = self.next_seq
            self._end()

    def abandon(self) -> None:
        """End the stream because nobody reads it any more."""
        if not self.ended:
            self.abandoned = True
            self.generated_tokens = self.next_seq
            self._end()

    def take(self) -> list[str]:
        """Return the tokens that arrived since the last call."""
        texts, self._texts = self._texts, []
        self.taken += len(texts)
        return texts

    @property
    def waiting_bytes(self) -> int:
        """About what is kept of tokens that nobody has taken yet; a pass over them."""
        return sum(map(len, self._texts)) + TOKEN_BYTES * len(self._texts)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Return True when there is something to take, or the stream has ended; False after `timeout_s`.

        One reader at a time.
        """
        if self.ended or (self._texts and not self.buffered):
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = None if timeout_s is None else loop.call_later(timeout_s, _give_up, waiter)
        try:
            await waiter
            return waiter.result()
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _judge_stranger(self) -> Verdict:
        # A fenced attempt is nobody's: who had it is being told to stop, and that takes time to arrive.
        return Verdict.FOREIGN if self.worker_id else Verdict.STRAY

    def nudge(self) -> None:
        """Have a reader that waits come back with nothing, as after a time-out."""
        if self._waiter is not None:
            _give_up(self._waiter)

    def _end(self) -> None:
        self.ended = True
        self._wake()
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
