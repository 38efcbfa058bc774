"""The use-case of the house: turn a checked request into an accepted task, and settle it once.

`Completions.start` admits; the `Completion` it returns is one request from admission to its
terminal row. Endpoints translate HTTP to and from it and decide nothing. Nothing here knows
OpenAI's wire format beyond the request it was given.

Order matters in three places, and each is a promise: the open row is committed before the first
byte leaves, the terminal row before the finish chunk, and whoever settles first decides the outcome.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import assert_never, get_args

import msgspec

from accounts.keyring import Identity
from accounts.limiter import LimitStore, Refusal, Reservation
from cluster.domain import TIERS, Generation, Message, Outcome, Task, Tier
from cluster.engine.board import SnapshotBoard
from cluster.engine.gateway import Gateway
from cluster.engine.streams import Note, TokenStream
from cluster.scheduler.commands import AnnounceAttempt, AnnounceWait, FenceAttempt
from gpucloud.lib.crashpoint import crashpoint
from gpucloud.lib.globs import is_match
from gpucloud.lib.groupcommit import Told, resolve
from inference import tokens
from inference.catalog import DEFAULT_MAX_TOKENS, MODELS
from inference.ledger import Ledger, Row
from inference.openai.errors import ApiError, invalid, model_not_found, unavailable
from inference.openai.ratelimits import refused
from inference.openai.schemas import AssistantMessage, ChatMessage, ChatRequest, text_of
from inference.records import Assigned, Noted, Opened, Queued, Retried, Settlement

COMPLETED = Outcome.COMPLETED


class Completion(msgspec.Struct, eq=False):
    """One accepted request: its stream, its row, and how far its client has got."""

    task: Task
    stream: TokenStream
    row: Row
    _gateway: Gateway
    _ledger: Ledger
    _board: SnapshotBoard
    identity: Identity
    reservation: Reservation
    """What it holds of its key's limits."""
    _live: set[Completion]
    delivered_tokens: int = 0
    """Tokens handed to the socket; what is billed, but for a whole answer whose client left while it was made."""
    settlement: Settlement | None = None
    _told: Told | None = None

    @property
    def created(self) -> int:
        """When the request was admitted, in whole seconds since the epoch."""
        return int(self.row.opened.created_at_s)

    async def opened(self) -> None:
        """Wait until the request is on record; before that no byte of an answer may leave."""
        await self._ledger.opened(self.row)

    async def complete(self) -> None:
        """Put the completed request on record; after that its last byte may leave."""
        self._settle(COMPLETED, finish_reason=self.stream.finish_reason)
        crashpoint("before_commit")
        await self._ledger.committed(self.row)
        crashpoint("after_commit")

    def completed_whole(self) -> asyncio.Future[None]:
        """Return what resolves when `when_completed` would call."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when_completed(partial(resolve, waiter))
        return waiter

    def when_completed(self, told: Told) -> None:
        """Call `told` once all tokens are there and the completed request is on record; or cannot be.

        It is called early, with None, if the stream ends badly. `stream.wait` and `complete` in one: the
        outcome is decided in the stack of the worker's last frame, so that nobody is woken for it.
        """
        self._told = told
        if self.stream.ended:
            self._conclude()
        else:
            self.stream.on_end = self._conclude

    def _conclude(self) -> None:
        stream, told = self.stream, self._told
        assert told is not None
        self._told = None
        if stream.finish_reason is not None:
            self.delivered_tokens = stream.next_seq
            self._settle(COMPLETED, finish_reason=stream.finish_reason)
            crashpoint("before_commit")
            self._ledger.tell_committed(self.row, told)
        else:
            told(None)

    def fail(self, error: ApiError, outcome: Outcome = Outcome.FAILED) -> None:
        """Settle a request that ends in an error."""
        self._settle(outcome, error_code=error.code)

    def give_up(self, error: ApiError) -> None:
        """Settle a request that cannot be put on record, whatever its outcome would have been."""
        self._settle(Outcome.FAILED, error_code=error.code)
        self._ledger.give_up(self.row)

    def leave(self, code: str = "client_closed") -> None:
        """The client is gone: settle, stop the work, wake the endpoint. Safe at any time."""
        self._settle(Outcome.CANCELLED, error_code=code)
        self._gateway.abandon(self.stream)

    @property
    def place(self) -> tuple[int, int | None] | None:
        """Its position in line and the estimate in ms, by the latest snapshot; None if it does not wait.

        Who is not in a snapshot yet, or stands too far behind to be in one, has the place at which it joined.
        """
        if view := self._board.place_of(self.task.id):
            return view.position, view.eta_ms
        last = self.stream.notes[-1][1] if self.stream.notes else None
        return (last.position, None) if type(last) is AnnounceWait else None

    def close(self) -> None:
        """Free what the request holds, whatever became of it."""
        if self.settlement is None:
            self._settle(Outcome.FAILED, error_code="internal_error")
        self._gateway.close(self.stream)

    def _settle(self, outcome: Outcome, *, finish_reason: str | None = None, error_code: str | None = None) -> None:
        if self.settlement is not None:
            return
        stream = self.stream
        started_s = stream.submitted_at_s
        first_s = stream.first_token_at_s
        self.settlement = Settlement(
            outcome=outcome,
            finish_reason=finish_reason,
            error_code=error_code,
            generated_tokens=max(stream.generated_tokens, stream.next_seq),
            delivered_tokens=self.delivered_tokens,
            attempts=stream.attempt,
            worker_id=stream.worker_id,
            worker_name=stream.worker_name,
            queue_ms=stream.queued_s * 1000,
            ttft_ms=None if first_s is None else (first_s - started_s) * 1000,
            total_ms=(time.monotonic() - started_s) * 1000,
            timeline=_tell_all(stream.notes, started_s),
            whole=stream.buffered,
        )
        self._ledger.settle(self.row, self.settlement)
        served = self.settlement.served
        used_tokens = self.task.prompt_tokens + self.settlement.billed_tokens if served else 0
        self.reservation.settle(used_tokens, served=served)
        self._live.discard(self)


class Completions:
    """Admits requests on one node."""

    def __init__(self, gateway: Gateway, ledger: Ledger, board: SnapshotBoard, limits: LimitStore) -> None:
        self.draining = False
        self.live: set[Completion] = set()
        """Admitted requests without an outcome."""
        self._limits = limits
        self._gateway = gateway
        self._ledger = ledger
        self._board = board

    async def start(self, chat: ChatRequest, identity: Identity, *, request_id: str) -> Completion:
        """Admit a request and hand it to the cluster, or raise the `ApiError` that says why not."""
        card = MODELS.get(chat.model)
        if card is None or not may_use(identity, chat.model):
            raise model_not_found(chat.model)
        messages = _read_messages(chat)
        if tokens.is_long(messages):
            prompt_tokens = await tokens.count_long_chat(chat.model, messages)
        else:
            prompt_tokens = tokens.count_chat(chat.model, messages)
        max_tokens = _decide_max_tokens(chat, prompt_tokens, card.gpucloud.context_tokens, identity)
        reservation = await self._limits.reserve(identity.key_id, identity.limits, prompt_tokens + max_tokens)
        # After the last await: from here on a request is either refused or seen by the drain.
        return self._begin(chat, identity, messages, prompt_tokens, max_tokens, reservation, request_id)

    def start_at_once(self, chat: ChatRequest, identity: Identity, *, request_id: str) -> Completion | None:
        """Do what `start` does, or nothing and return None if that would have to wait."""
        card = MODELS.get(chat.model)
        if card is None or not may_use(identity, chat.model):
            raise model_not_found(chat.model)
        messages = _read_messages(chat)
        if tokens.is_long(messages):
            return None
        prompt_tokens = tokens.count_chat(chat.model, messages)
        max_tokens = _decide_max_tokens(chat, prompt_tokens, card.gpucloud.context_tokens, identity)
        reservation = self._limits.reserve_at_once(identity.key_id, identity.limits, prompt_tokens + max_tokens)
        if reservation is None:
            return None
        return self._begin(chat, identity, messages, prompt_tokens, max_tokens, reservation, request_id)

    def _begin(
        self,
        chat: ChatRequest,
        identity: Identity,
        messages: tuple[Message, ...],
        prompt_tokens: int,
        max_tokens: int,
        reservation: Reservation | Refusal,
        request_id: str,
    ) -> Completion:
        if isinstance(reservation, Refusal):
            raise refused(identity.limits, reservation)
        try:
            return self._admit(chat, identity, messages, prompt_tokens, max_tokens, reservation, request_id)
        except BaseException:
            reservation.settle(0, served=False)
            raise

    def _admit(
        self,
        chat: ChatRequest,
        identity: Identity,
        messages: tuple[Message, ...],
        prompt_tokens: int,
        max_tokens: int,
        reservation: Reservation,
        request_id: str,
    ) -> Completion:
        if self.draining:
            raise unavailable("This server is restarting. Try again in a moment.", "server_draining")
        if not self._ledger.healthy:
            raise unavailable("Requests cannot be recorded just now. Try again in a moment.", "service_unavailable")
        task = Task(
            id=request_id,
            model=chat.model,
            tenant=identity.tenant,
            tenant_label=identity.tenant_label,
            tier=_decide_tier(chat.service_tier, identity),
            node=self._gateway.node,
            prompt_tokens=prompt_tokens,
            simulated_only=identity.simulated_only,
            generation=Generation(
                messages=messages,
                max_tokens=max_tokens,
                seed=random.getrandbits(63) if chat.seed is None else chat.seed,
                temperature=1.0 if chat.temperature is None else chat.temperature,
                top_p=1.0 if chat.top_p is None else chat.top_p,
                stop=chat.stops,
            ),
        )
        row = self._ledger.open(
            Opened(
                id=request_id,
                key_id=identity.key_id,
                user_id=identity.user_id,
                model=chat.model,
                source="api",
                stream=bool(chat.stream),
                tier=task.tier.word,
                node=task.node,
                prompt_tokens=prompt_tokens,
                created_at_s=time.time(),
            )
        )
        crashpoint("accept")
        # The row is queued before the task is: whatever happens to the task has a row to happen to.
        stream = self._gateway.submit(task, buffered=not chat.stream)
        completion = Completion(
            task, stream, row, self._gateway, self._ledger, self._board, identity, reservation, self.live
        )
        self.live.add(completion)
        return completion


def _tell_all(notes: list[Note], started_s: float) -> tuple[Noted, ...]:
    """Return the timeline; an attempt that ended with its task is told by the outcome."""
    if notes and type(notes[-1][1]) is FenceAttempt:
        notes = notes[:-1]
    return tuple([_tell(note, started_s) for note in notes])


def _tell(note: Note, started_s: float) -> Noted:
    """Return what befell a task as an event of its timeline."""
    at_s, command, next_seq = note
    at_ms = round((at_s - started_s) * 1000, 1)
    match command:
        case AnnounceAttempt():
            return Assigned(
                at_ms,
                command.attempt,
                command.worker_id,
                command.worker_name,
                command.worker_gpu,
                next_seq,
                command.choice,
            )
        case AnnounceWait():
            return Queued(at_ms, command.why, command.position)
        case FenceAttempt():
            return Retried(at_ms, command.attempt, command.why, next_seq)
        case _:
            assert_never(command)


def may_use(identity: Identity, model: str) -> bool:
    """Tell whether a key may ask for a model; to its holder one that it may not does not exist."""
    return identity.models is None or is_match(model, identity.models)


def _decide_tier(asked: str | None, identity: Identity) -> Tier:
    """Return the tier to serve: what was asked for, or the key's own, capped by what the key may use."""
    tier = TIERS[identity.tier if asked is None or asked == "auto" else asked]
    highest = TIERS[identity.highest_tier]
    return tier if tier >= highest else highest


def _read_messages(chat: ChatRequest) -> tuple[Message, ...]:
    return tuple([_read_message(message, index) for index, message in enumerate(chat.messages)])


def _read_message(message: ChatMessage, index: int) -> Message:
    content = message.content
    text = content if type(content) is str else text_of(content, f"messages[{index}]")
    if isinstance(message, AssistantMessage) and message.tool_calls:
        # Calls made earlier are part of what the model reads, so they count and they vary the text.
        text += "".join(bytes(call.function).decode() for call in message.tool_calls)
    return Message(role=_ROLES[type(message)], content=text, name=message.name)


def _decide_max_tokens(chat: ChatRequest, prompt_tokens: int, context_tokens: int, identity: Identity) -> int:
    named = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    asked = chat.max_completion_tokens if chat.max_completion_tokens is not None else chat.max_tokens
    cap = identity.max_tokens
    if cap and asked is not None and asked > cap:
        raise invalid(
            f"Invalid '{named}': this key may ask for at most {cap} tokens.",
            code="integer_above_max_value",
            param=named,
        )
    room = context_tokens - prompt_tokens
    if asked is None and room >= 1:
        most = min(DEFAULT_MAX_TOKENS, room, cap or room)
        per_minute = identity.limits.tokens_per_minute
        # Who does not say gets what fits; a minute's tokens that the prompt alone exceeds are refused as such.
        return min(most, per_minute - prompt_tokens) if per_minute > prompt_tokens else most
    if room < 1 or (asked or 0) > room:
        wanted = f" and {asked} for the completion" if asked is not None else ""
        raise invalid(
            f"This model's maximum context length is {context_tokens} tokens. However, your messages resulted in "
            f"{prompt_tokens} tokens{wanted}. Please shorten the messages or the completion.",
            code="context_length_exceeded",
            param="messages",
        )
    assert asked is not None
    return asked


_ROLES = {kind: str(kind.__struct_config__.tag) for kind in get_args(ChatMessage)}
"""What the sender of a message is called, by its class."""
