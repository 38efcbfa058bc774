"""What a simulated model says: a pure function, so that any worker can continue another's answer.

The text of (model, messages, temperature, top_p, seed) is the same on every worker, in every
batch and at every speed; `max_tokens` and `stop` cut it but never change it; at temperature 0 the
seed does not matter. `TEXT_VERSION` names the function: change anything here that changes a
single token, and you must change it too, or a resumed answer would be stitched from two texts.

Every token is one word, comma or full stop that is exactly one token of both cl100k_base and
o200k_base, after any other token that can stand before it: counting tokens and counting list
entries are the same thing, and billing is exact. That is why there are no names, digits or
hyphens in the vocabulary.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from hashlib import blake2b
from random import Random
from statistics import NormalDist

import msgspec

from cluster.domain import FinishReason, Generation
from cluster.simulation.stops import StopMatcher

TEXT_VERSION = "sim-text:1"
MEDIAN_TOKENS = 120
SPREAD = 0.7
"""Sigma of the lognormal distribution of natural lengths."""
MAX_TOKENS = 1_200
_LONGEST_SENTENCE_TOKENS = 40

Tokens = tuple[str, ...]


class Script(msgspec.Struct, frozen=True):
    """All that a generation will emit, known from the start."""

    texts: Tokens
    """The tokens to emit; the last one may be cut short by a stop string."""
    length: int
    """Tokens generated until the end, also those that a stop string cuts off."""
    reason: FinishReason
    emitted: tuple[int, ...] | None = None
    """How many `texts` are out after n generated tokens, n = 0 … length; None if always n."""

    def emitted_after(self, generated: int) -> int:
        """Return how many texts are out once that many tokens are generated."""
        return generated if self.emitted is None else self.emitted[generated]


def write(model: str, generation: Generation) -> Script:
    """Return what the model generates for this request."""
    texts = natural_text(model, generation)
    reason = FinishReason.STOP
    if len(texts) > generation.max_tokens:
        texts, reason = texts[: generation.max_tokens], FinishReason.LENGTH
    if not generation.stop:
        return Script(texts, len(texts), reason)
    matcher = StopMatcher(generation.stop)
    visible: list[str] = []
    emitted = [0]
    for text in texts:
        visible += matcher.feed(text)
        emitted.append(len(visible))
        if matcher.matched:
            break
    visible += matcher.flush()
    emitted[-1] = len(visible)
    if matcher.matched:
        reason = FinishReason.STOP
    return Script(tuple(visible), len(emitted) - 1, reason, tuple(emitted))


def natural_text(model: str, generation: Generation) -> Tokens:
    """Return the whole answer, as if nothing cut it."""
    greedy = generation.temperature == 0
    parts = (
        TEXT_VERSION,
        model,
        generation.messages,
        float(generation.temperature),
        1.0 if greedy else float(generation.top_p),
        0 if greedy else generation.seed,
    )
    return _compose(blake2b(msgspec.msgpack.encode(parts), digest_size=16).digest())


@lru_cache(maxsize=1024)
def _compose(digest: bytes) -> Tokens:
    # Only `random()` is promised to draw the same numbers on every version of Python.
    draw = Random(int.from_bytes(digest, "big")).random
    target = _natural_length(draw())
    texts = list(_OPENING)
    left_in_paragraph = 1 + int(draw() * 3)
    while len(texts) < target:
        fresh = left_in_paragraph == 0
        if fresh:
            texts[-1] = _PARAGRAPH
            left_in_paragraph = 2 + int(draw() * 4)
        left_in_paragraph -= 1
        opener = _OPENERS[int(draw() * len(_OPENERS))]
        subject, verb = _SUBJECTS[int(draw() * len(_SUBJECTS))], _VERBS[int(draw() * len(_VERBS))]
        start = len(texts)
        texts += opener
        texts += subject
        texts += verb
        texts += _OBJECTS[int(draw() * len(_OBJECTS))]
        texts += _ENDINGS[int(draw() * len(_ENDINGS))]
        texts.append(".")
        first = texts[start].strip().capitalize()
        texts[start] = first if fresh else f" {first}"
    return tuple(texts)


def _natural_length(uniform: float) -> int:
    length = MEDIAN_TOKENS * math.exp(SPREAD * _NORMAL.inv_cdf(min(max(uniform, 1e-9), 1 - 1e-9)))
    return int(min(length, MAX_TOKENS - _LONGEST_SENTENCE_TOKENS))


def _phrase(text: str) -> Tokens:
    return tuple(re.findall(r" \w+|[.,:]", f" {text}"))


def _phrases(*texts: str) -> tuple[Tokens, ...]:
    return tuple(map(_phrase, texts))


_NORMAL = NormalDist()
_PARAGRAPH = ".\n\n"
_OPENING = ("This", *_phrase("This answer is simulated: a small grammar wrote it, not a language model.")[1:])
_OPENERS = _phrases(
    "",
    "",
    "",
    "",
    "in practice,",
    "as a result,",
    "for this reason,",
    "most of the time,",
    "under load,",
    "at first,",
    "in the end,",
    "by design,",
    "in other words,",
    "on a quiet day,",
    "after a short pause,",
)
_SUBJECTS = _phrases(
    "the scheduler",
    "the queue",
    "a worker",
    "each worker",
    "the model",
    "each request",
    "the cache",
    "a long prompt",
    "the next batch",
    "one busy node",
    "the engine",
    "a careful operator",
    "the network",
    "each step",
    "the first token",
    "a short answer",
    "the memory of the card",
    "the attention layer",
    "a patient client",
    "the gateway",
)
_VERBS = _phrases(
    "keeps",
    "holds",
    "shares",
    "moves",
    "reads",
    "needs",
    "follows",
    "shapes",
    "limits",
    "balances",
    "explains",
    "protects",
    "reveals",
    "supports",
    "changes",
    "serves",
    "measures",
)
_OBJECTS = _phrases(
    "the next token",
    "the order of the queue",
    "a fair share of the time",
    "the pace of the whole batch",
    "the weights in memory",
    "every other request",
    "a steady stream of words",
    "the space that remains",
    "the cost of a step",
    "the work of its neighbors",
    "a small part of the result",
    "the longest wait",
    "the speed of the link",
    "the state of the system",
    "a simple rule",
    "the balance between speed and cost",
    "what the others left behind",
    "only the work that matters",
    "the same data again",
)
_ENDINGS = _phrases(
    "",
    "",
    "",
    "without delay",
    "at every step",
    "while the others wait",
    "until the work is done",
    "when the load is high",
    "before the next one starts",
    "in a single pass",
    "with room to spare",
    "so that no one waits for long",
    "and the rest follows",
    "because memory is faster than it looks",
    "as long as the cache has space",
    "even when the queue is full",
    "one token at a time",
    "and nothing is lost",
    "which is why the batch stays full",
)
