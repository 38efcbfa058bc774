"""The endpoints of `/v1`: translate in, one call of the use-case, translate out.

No async generators here, and no task per request: a loop that waits for tokens and sends them. The
client's departure arrives through a watcher that ends the stream, so the loop only has to look at
how its stream ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from accounts.keyring import Identity
from accounts.limits import UNLIMITED
from gpucloud.lib.crashpoint import crashpoint
from gpucloud.lib.globs import is_match
from gpucloud.lib.groupcommit import UnableToCommit
from gpucloud.lib.watch import Watch
from inference.catalog import MODELS, list_models
from inference.completions import Completion, Completions, may_use
from inference.openai.chunks import (
    DONE,
    AnswerMessage,
    ChatCompletion,
    Choice,
    ChunkEncoder,
    ModelList,
    comment,
    encode,
    error_event,
    make_usage,
)
from inference.openai.errors import ApiError, from_failure, internal_error, model_not_found, unavailable
from inference.openai.http import DirectRequest, Exchange
from inference.openai.ratelimits import describe_standing
from inference.openai.schemas import ChatRequest, parse_chat
from inference.openai.writers import Writers

log = logging.getLogger(__name__)

COMMENT_EVERY_S = 2.0
"""How often a client that waits for its first token is told that it still does."""


Over = Callable[[Exchange, Completion], None]
"""What is called when a request that was taken is over."""


class Endpoints:
    """What can be called on `/v1`, for callers who are known."""

    def __init__(
        self,
        completions: Completions,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        early_headers_s: float = 2.0,
        stuck_s: float = 30.0,
    ) -> None:
        self._completions = completions
        self._early_headers_s = early_headers_s
        self._writers = Writers(stuck_s=stuck_s)
        self._watch = Watch()
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._models = ModelList([msgspec.Raw(encode(model)) for model in list_models()])

    async def list_models(self, exchange: Exchange, identity: Identity) -> Completion | None:
        """`GET /v1/models`."""
        if identity.models is None:
            await exchange.send_json(self._models)
        else:
            mine = [msgspec.Raw(encode(model)) for model in list_models() if is_match(model.id, identity.models)]
            await exchange.send_json(ModelList(mine))
        return None

    async def get_model(self, exchange: Exchange, identity: Identity) -> Completion | None:
        """`GET /v1/models/{id}`."""
        model = exchange.path.removeprefix("/v1/models/")
        if model not in MODELS or not may_use(identity, model):
            raise model_not_found(model)
        await exchange.send_json(MODELS[model])
        return None

    async def create_chat_completion(self, exchange: Exchange, identity: Identity) -> Completion | None:
        """`POST /v1/chat/completions`, whole or streamed."""
        _check_media(exchange)
        body = await exchange.read_body(max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
        chat = parse_chat(body)
        completion = await self._completions.start(chat, identity, request_id=exchange.request_id)
        _tell_standing(exchange, completion)
        watched = self._watch.start(exchange.receive, completion.leave)
        try:
            if chat.stream:
                self._writers.add(exchange, completion)
                await self._stream(exchange, completion, chat)
            else:
                await _answer(exchange, completion)
        except UnableToCommit:
            await _refuse(exchange, completion, _NOT_RECORDED)
        finally:
            watched.stop()
            self._writers.remove(exchange)
            completion.close()
        return completion

    def take(self, exchange: Exchange, request: DirectRequest, identity: Identity, over: Over) -> bool:
        """Do what `create_chat_completion` does, in callbacks; False, with nothing done, where it cannot."""
        if len(request.body) > self._max_body_bytes:
            return False
        _check_media(exchange)
        chat = parse_chat(request.body)
        if chat.stream:
            return False
        completion = self._completions.start_at_once(chat, identity, request_id=exchange.request_id)
        if completion is None:
            return False
        try:
            _tell_standing(exchange, completion)
            request.on_gone = completion.leave
            completion.when_completed(WholeAnswer(exchange, completion, over).send)
        except BaseException:
            completion.close()
            raise
        return True

    async def _stream(self, exchange: Exchange, completion: Completion, chat: ChatRequest) -> None:
        """Send tokens as they come, then the commit, then the farewell in one piece."""
        stream, task = completion.stream, completion.task
        encoder = ChunkEncoder(
            id=_public_id(completion),
            created=completion.created,
            model=task.model,
            service_tier=task.tier.word,
            include_usage=chat.include_usage,
        )
        if not await stream.wait(self._early_headers_s):
            await self._keep_company(exchange, completion)
        if stream.failure is None and not stream.abandoned:
            if not exchange.started:
                # From the first token on; before it, a failure is still a status that clients can retry.
                await completion.opened()
                await exchange.start_stream()
            await _pump(exchange, completion, encoder)
        if stream.abandoned:
            return
        if stream.failure is not None:
            error = from_failure(stream.failure)
            completion.fail(error, stream.failure.outcome)
            await _send_failure(exchange, error)
            return
        if completion.settlement is not None:
            return  # all tokens had come, and yet its client was given up: that is its outcome, and no farewell
        await completion.complete()
        ending = encoder.finish(str(stream.finish_reason))
        if chat.include_usage:
            ending += encoder.usage(make_usage(task.prompt_tokens, completion.delivered_tokens))
        await exchange.end_stream(ending + DONE)
        crashpoint("after_send")

    async def _keep_company(self, exchange: Exchange, completion: Completion) -> None:
        """Send headers early, and comments until there is a token: people see that their request lives.

        From here on a failure is an event inside a 200, which clients do not retry by themselves.
        """
        await completion.opened()
        await exchange.start_stream()
        while True:
            await exchange.send_part(comment(_describe_wait(completion)))
            if await completion.stream.wait(COMMENT_EVERY_S):
                return


async def _answer(exchange: Exchange, completion: Completion) -> None:
    """Send the whole answer once it is there and on record."""
    await completion.completed_whole()
    answer = conclude(completion)
    if isinstance(answer, ApiError):
        await exchange.send_error(answer)
    elif answer is not None:
        await exchange.send_json(answer)
        crashpoint("after_send")


def conclude(completion: Completion) -> ChatCompletion | ApiError | None:
    """Return what to say at the end of a stream that was wanted whole; None when nobody listens."""
    stream, task = completion.stream, completion.task
    if stream.finish_reason is not None:
        crashpoint("after_commit")
        texts = stream.take()
        return ChatCompletion(
            id=_public_id(completion),
            object="chat.completion",
            created=completion.created,
            model=task.model,
            choices=(Choice(0, AnswerMessage("assistant", "".join(texts)), stream.finish_reason),),
            usage=make_usage(task.prompt_tokens, len(texts)),
            service_tier=task.tier.word,
        )
    if stream.failure is None:
        return None
    error = from_failure(stream.failure)
    completion.fail(error, stream.failure.outcome)
    return error


class WholeAnswer(msgspec.Struct, eq=False):
    """A whole answer on its way without a task."""

    _exchange: Exchange
    _completion: Completion
    _over: Over

    def send(self, refusal: UnableToCommit | None) -> None:
        """Send it, now that it is on record or cannot be, or say why there is none."""
        exchange, completion = self._exchange, self._completion
        try:
            if refusal is not None:
                completion.give_up(_NOT_RECORDED)
                exchange.answer_error(_NOT_RECORDED)
            else:
                answer = conclude(completion)
                if isinstance(answer, ApiError):
                    exchange.answer_error(answer)
                elif answer is not None:
                    exchange.answer(encode(answer))
                    crashpoint("after_send")
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            exchange.answer_error(internal_error())
        finally:
            completion.close()
            self._over(exchange, completion)


async def _pump(exchange: Exchange, completion: Completion, encoder: ChunkEncoder) -> None:
    """Send tokens until the stream ends. What has arrived together leaves together."""
    stream = completion.stream
    prelude = encoder.role()
    while not stream.abandoned:
        texts = stream.take()
        if texts or prelude:
            await exchange.send_part(prelude + encoder.tokens(texts))
            completion.delivered_tokens += len(texts)
            prelude = b""
        elif stream.ended:
            return
        elif not await stream.wait():
            await exchange.send_part(comment("waiting for another worker"))


def _describe_wait(completion: Completion) -> str:
    """Return what a client that waits may know: its place in line and about how long that takes."""
    if completion.stream.worker_id:
        return "waiting for the first token"
    place = completion.place
    if place is None:
        return "looking for a worker"
    position, eta_ms = place
    return f"queue position={position}" + ("" if eta_ms is None else f" eta_ms={eta_ms}")


async def _refuse(exchange: Exchange, completion: Completion, error: ApiError) -> None:
    completion.give_up(error)
    await _send_failure(exchange, error)


async def _send_failure(exchange: Exchange, error: ApiError) -> None:
    """Tell the client what went wrong, in the form that is still possible."""
    if exchange.started:
        await exchange.end_stream(error_event(error.envelope))
    else:
        await exchange.send_error(error)


def _tell_standing(exchange: Exchange, completion: Completion) -> None:
    """Have the answer say where its key stands, if it has limits."""
    limits = completion.identity.limits
    if limits is not UNLIMITED:
        exchange.told = describe_standing(limits, completion.reservation.standing)


def _check_media(exchange: Exchange) -> None:
    if exchange.content_type == b"application/json" and not exchange.content_encoding:
        return
    if exchange.content_encoding not in (b"", b"identity"):
        raise ApiError(415, "Send the body as it is: Content-Encoding is not supported.")
    media, _, _ = exchange.content_type.partition(b";")
    if media.strip().lower() != b"application/json":
        raise ApiError(415, "Send the body as JSON with 'Content-Type: application/json'.")


def _public_id(completion: Completion) -> str:
    return "chatcmpl-" + completion.task.id.removeprefix("req_")


_NOT_RECORDED = unavailable(
    "The request could not be recorded, so it was not completed. Try again in a moment.", "service_unavailable"
)
