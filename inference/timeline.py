"""One request's story: what befell it between admission and outcome, and how it reads.

The row's columns tell the plain story of a request (admitted, given to a worker, first token,
settled). Only what they cannot say is stored beside them, as compact JSON: `encode_timeline` runs in
the ledger's thread, for each row that has something to say. `tell_story` puts the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from cluster.domain import WaitReason
from inference.models import OPEN, Request
from inference.records import (
    Admitted,
    Assigned,
    FirstToken,
    Noted,
    Queued,
    Retried,
    Settled,
    TimelineEvent,
)

WAITS: dict[str, str] = {
    WaitReason.NO_SLOT: "every worker for its model was full",
    WaitReason.NO_KV_ROOM: "no worker had room for its tokens in the KV cache",
    WaitReason.NO_WORKER: "no worker took tasks of its model",
    WaitReason.BEHIND_OTHERS: "an older task of the same tenant was to go first",
    WaitReason.ISOLATION: "a worker had died with it, so it waited for a worker to itself",
    WaitReason.RESUME: "it waited for a worker that can continue the text",
}
"""How the reasons read in a sentence."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(tuple[Noted, ...])


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a story, for people."""

    at_ms: float
    took_ms: float
    """Since the line before."""
    what: str
    detail: str


def encode_timeline(noted: Sequence[Noted]) -> str:
    """Return what is stored of a timeline."""
    return _encoder.encode(noted).decode()


def tell_story(row: Request) -> list[TimelineEvent]:
    """Return everything that happened to a request, in order."""
    noted = _noted(row)
    story: list[TimelineEvent] = [*noted]
    if row.ttft_ms is not None:
        story.append(FirstToken(row.ttft_ms))
    # Stable: what was noted at the very moment of the first token comes before it.
    story.sort(key=lambda event: event.at_ms)
    if row.state != OPEN:
        story.append(Settled(row.total_ms, row.state, row.error_code or row.finish_reason or ""))
    return [Admitted(), *story]


def describe_story(story: Sequence[TimelineEvent]) -> list[Line]:
    """Return a story as lines of text."""
    lines = []
    before_ms = 0.0
    for event in story:
        what, detail = _describe(event)
        took_ms = max(0.0, event.at_ms - before_ms)
        lines.append(Line(at_ms=event.at_ms, took_ms=took_ms, what=what, detail=detail))
        before_ms = event.at_ms
    return lines


def _noted(row: Request) -> tuple[Noted, ...]:
    if row.timeline:
        try:
            return _decoder.decode(row.timeline)
        except msgspec.DecodeError:
            pass  # written by a newer version, or by hand; the columns still hold
    if row.attempts == 1 and row.worker_id:
        return (Assigned(row.queue_ms, 1, row.worker_id, row.worker_name),)
    return ()


def _describe(event: TimelineEvent) -> tuple[str, str]:
    match event:
        case Admitted():
            return "admitted", ""
        case Queued():
            place = f"; number {event.position} in line" if event.position else ""
            return "queued", WAITS.get(event.why, event.why) + place
        case Assigned():
            return "assigned", _describe_assignment(event)
        case FirstToken():
            return "first token", ""
        case Retried():
            what = "failover" if event.why == "worker_lost" else "retry"
            goes_on = f"goes on from token {event.from_token}" if event.from_token else "starts afresh"
            return what, f"attempt {event.attempt} ended: {event.why}; the next one {goes_on}"
        case Settled():
            return "settled", f"{event.outcome}: {event.code}" if event.code else event.outcome
        case _:
            assert_never(event)


def _describe_assignment(event: Assigned) -> str:
    gpu = f" ({event.worker_gpu})" if event.worker_gpu else ""
    text = f"attempt {event.attempt} to {event.worker_name}{gpu}"
    if event.from_token:
        text += f", from token {event.from_token}"
    if event.choice is None:
        return text
    choice = event.choice
    many = "the only candidate" if choice.candidates == 1 else f"best of {choice.candidates}"
    return f"{text}; {many}: load {choice.load:.2f}, wait {choice.wait:.2f} (1 is best)"
