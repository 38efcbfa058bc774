"""Counts tokens: exactly for OpenAI's families, approximately, and saying so, for all others.

The one place that knows the tokenizer library. Markup such as `<|endoftext|>` in a user's text is
text like any other. A chat's overhead is OpenAI's published rule: 3 tokens a message and 1 for a
name, plus 3 that prime the reply; roles, contents and names count as text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache

import toktok

from cluster.domain import Message

PER_MESSAGE_TOKENS = 3
PER_NAME_TOKENS = 1
PRIMING_TOKENS = 3

THREAD_FROM_CHARS = 200_000
"""Some 1 ms of counting; what is longer must not hold the event loop."""

EXACT = (("gpt-4o", "o200k_base"), ("gpt-4", "cl100k_base"), ("gpt-3.5", "cl100k_base"))
"""Encodings by the model's prefix; the first that fits."""
APPROXIMATE = "o200k_base"

_WHOLE = 2**62


def warm() -> None:
    """Load all encodings, which takes about a second, before the first request needs them."""
    for encoding in sorted({APPROXIMATE, *(encoding for _, encoding in EXACT)}):
        toktok.truncate("", _WHOLE, encoding)


def is_exact(model: str) -> bool:
    """Return whether counts for this model are exact."""
    return any(model.startswith(prefix) for prefix, _ in EXACT)


def count_text(model: str, text: str) -> int:
    """Return the number of tokens in a text."""
    return _count(text, _encoding_of(model))


def count_chat(model: str, messages: Sequence[Message]) -> int:
    """Return the number of prompt tokens of a conversation."""
    encoding = _encoding_of(model)
    total = PRIMING_TOKENS
    for message in messages:
        total += PER_MESSAGE_TOKENS + _count_role(message.role, encoding) + _count(message.content, encoding)
        if message.name is not None:
            total += PER_NAME_TOKENS + _count(message.name, encoding)
    return total


def is_long(messages: Sequence[Message]) -> bool:
    """Return whether counting would hold the event loop for a noticeable time."""
    return sum([len(message.content) for message in messages]) > THREAD_FROM_CHARS


async def count_long_chat(model: str, messages: Sequence[Message]) -> int:
    """Return the number of prompt tokens of a conversation, counted in a thread."""
    return await asyncio.to_thread(count_chat, model, messages)


def _count(text: str, encoding: str) -> int:
    if len(text) > THREAD_FROM_CHARS:
        # Lets go of the GIL while it counts, and costs 50 µs a call: only for what runs in a thread.
        return int(toktok.batch_count([text], encoding, threads=1)[0])
    return _measure_of(encoding)(text, _WHOLE)[1]


@lru_cache(maxsize=8)
def _measure_of(encoding: str) -> Callable[[str, int], tuple[str, int]]:
    """Return what `toktok.truncate` comes to for an encoding, without its look-ups."""
    measure: Callable[[str, int], tuple[str, int]] = toktok._encoding(encoding).truncate
    return measure


@lru_cache(maxsize=64)
def _count_role(role: str, encoding: str) -> int:
    return _count(role, encoding)


@lru_cache(maxsize=256)
def _encoding_of(model: str) -> str:
    return next((encoding for prefix, encoding in EXACT if model.startswith(prefix)), APPROXIMATE)
