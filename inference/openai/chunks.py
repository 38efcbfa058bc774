"""What is answered: OpenAI's objects, byte for byte what its clients expect.

The hot path is a streamed token. Its chunk differs from its neighbours in one string only, so the
bytes around that string are made once per request and each token is one concatenation.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import Literal

import msgspec

from inference.openai.errors import ErrorEnvelope

FINGERPRINT = "fp_gpucloud_1"
DONE = b"data: [DONE]\n\n"


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """What is billed for one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


class AnswerMessage(msgspec.Struct, frozen=True, gc=False):
    role: Literal["assistant"]
    content: str
    refusal: None = None
    annotations: tuple[()] = ()


class Choice(msgspec.Struct, frozen=True, gc=False):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True, gc=False):
    """The whole answer at once."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    service_tier: str
    system_fingerprint: str = FINGERPRINT


class ModelList(msgspec.Struct, frozen=True):
    data: list[msgspec.Raw]
    object: Literal["list"] = "list"


def make_usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Return the usage of a request."""
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


class ChunkEncoder:
    """Makes the SSE events of one streamed completion."""

    __slots__ = ("_head", "_tail", "_usage_null")

    def __init__(self, *, id: str, created: int, model: str, service_tier: str, include_usage: bool) -> None:
        self._head = (
            f'data: {{"id":"{id}","object":"chat.completion.chunk","created":{created},'
            f'"model":{encode_basestring_ascii(model)},"service_tier":"{service_tier}",'
            f'"system_fingerprint":"{FINGERPRINT}","choices":['
        )
        # With include_usage every chunk but the last has `"usage": null`; without it, none has.
        self._usage_null = ',"usage":null' if include_usage else ""
        self._tail = f'}},"logprobs":null,"finish_reason":null}}]{self._usage_null}}}\n\n'

    def role(self) -> bytes:
        """Return the first event: who speaks."""
        delta = '{"index":0,"delta":{"role":"assistant","content":"","refusal":null'
        return (self._head + delta + self._tail).encode()

    def tokens(self, texts: list[str]) -> bytes:
        """Return one event per token, in one piece."""
        # ASCII only: some clients split lines at U+2028 or U+0085, which JSON may contain.
        before = self._head + '{"index":0,"delta":{"content":'
        tail = self._tail
        escape = encode_basestring_ascii
        return "".join([before + escape(text) + tail for text in texts]).encode("ascii")

    def finish(self, reason: str) -> bytes:
        """Return the event that says why the answer ends."""
        ending = f'{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"{reason}"}}]{self._usage_null}}}\n\n'
        return (self._head + ending).encode()

    def usage(self, usage: Usage) -> bytes:
        """Return the event with the bill and no choices."""
        return self._head.encode() + b'],"usage":' + encode(usage) + b"}\n\n"


def comment(text: str) -> bytes:
    """Return what keeps a connection open and is no event: clients ignore it."""
    return f": {text}\n\n".encode()


def error_event(envelope: ErrorEnvelope) -> bytes:
    """Return the event that ends a broken stream; no `[DONE]` follows it."""
    return b"data: " + encode(envelope) + b"\n\n"


encode = msgspec.json.Encoder().encode
