"""Compares what clients saw, what workers said and what the ledger holds: the promises 1 to 4.

A history is JSON lines, one per request that a client made (`Saw`) and one per piece that a worker
sent (`Said`), and the ledger's database once nothing is under way any more. `check` returns every
contradiction as a sentence. It knows nothing of how the product works, only what was promised:

1. every accepted request has exactly one terminal outcome, and is counted once in the sums;
2. a completed answer has one row, billed for exactly what was handed to its socket, and is on
   record before its client is told; a lost request bills nothing;
3. no token is delivered twice, skipped, reordered or mixed with another request's;
4. a worker's loss before the client has seen anything is not the client's to see, within the bounds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import msgspec

from cluster.domain import Generation, Message
from cluster.simulation.text import write

MAX_ATTEMPTS = 3
TERMINAL = ("completed", "failed", "cancelled", "expired", "lost")
RETRIED = ("worker_lost", "worker_failed")

Row = Mapping[str, Any]


class Saw(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one client saw of one request."""

    request: str | None = None
    """The request's id; None if no headers came."""
    model: str
    prompt: str
    max_tokens: int
    seed: int
    stream: bool
    status: int | None = None
    texts: list[str] = []
    """The tokens, or the whole answer's text as one."""
    done: bool = False
    """Whether it was told that the answer is complete."""
    error: str | None = None
    """The code of the error it was told."""
    end: Literal["whole", "left", "cut"] = "whole"
    """The response ended well-formed, or the client went away before that, or the connection broke."""
    usage_tokens: int | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a worker sent."""

    worker: str
    task: str
    attempt: int
    seq: int
    texts: list[str]


def read_lines(path: Path, kind: type[msgspec.Struct]) -> list[Any]:
    """Return the records of a JSON lines file; a last line that was cut by a crash does not count."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [msgspec.json.decode(line, type=kind) for line in lines[:-1]]


def check(saw: Iterable[Saw], database: Path, *, said: Sequence[Said] = ()) -> list[str]:
    """Return all contradictions, a sentence each."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)) as connection:
        connection.row_factory = sqlite3.Row
        rows = {row["id"]: dict(row) for row in connection.execute("SELECT * FROM inference_request")}
        sums = dict(
            connection.execute(
                "SELECT coalesce(sum(requests), 0) AS requests, coalesce(sum(completed), 0) AS completed, "
                "coalesce(sum(completion_tokens), 0) AS billed FROM inference_usagerollup"
            ).fetchone()
        )
    tokens_said = _tokens_said(said)
    wrong = list(_check_rows(rows.values(), sums))
    met: set[str] = set()
    for client in saw:
        if client.request is not None and client.request in met:
            wrong.append(f"{client.request} was answered to two clients")
        met.add(client.request or "")
        wrong += _check_client(client, rows.get(client.request or ""), tokens_said)
    return wrong


def expected_texts(client: Saw) -> tuple[str, ...]:
    """Return the tokens of the one right answer of a simulated worker."""
    generation = Generation(messages=(Message("user", client.prompt),), max_tokens=client.max_tokens, seed=client.seed)
    return write(client.model, generation).texts


def _check_rows(rows: Iterable[Row], sums: Row) -> Iterator[str]:
    rows = list(rows)
    for row in rows:
        name = row["id"]
        if row["state"] not in TERMINAL:
            yield f"{name} is {row['state']}: it has no outcome"
        billed, delivered = row["completion_tokens"], row["delivered_tokens"]
        if row["state"] == "lost" and billed:
            yield f"{name} is lost and is billed {billed} tokens"
        if row["state"] != "lost" and billed != delivered:
            yield f"{name} is billed {billed} tokens and was delivered {delivered}"
        if delivered > row["generated_tokens"]:
            yield f"{name} was delivered {delivered} tokens of {row['generated_tokens']}"
        if row["attempts"] > MAX_ATTEMPTS:
            yield f"{name} had {row['attempts']} attempts"
    ended = [row for row in rows if row["state"] in TERMINAL]
    for what, counted, found in (
        ("requests", sums["requests"], len(ended)),
        ("completed", sums["completed"], sum(row["state"] == "completed" for row in ended)),
        ("billed", sums["billed"], sum(row["completion_tokens"] for row in ended)),
    ):
        if counted != found:
            yield f"the sums say {counted} {what}, the rows {found}: something was settled twice or not at all"


def _check_client(client: Saw, row: Row | None, tokens_said: dict[str, dict[int, set[str]]]) -> Iterator[str]:
    name = client.request or "a request without an answer"
    yield from _check_text(client, name, tokens_said)
    if row is None:
        if client.status == 200:
            yield f"{name} was answered and is not on record"
        return
    state = row["state"]
    if client.done:
        yield from _check_done(client, name, row)
    elif client.end == "whole" and state == "completed":
        yield f"{name} is on record as completed and was told {client.error}"
    if client.end == "whole" and not client.done and client.error is None:
        yield f"{name} ended without a farewell and without an error"
    if client.end == "whole" and client.stream and state != "lost" and row["delivered_tokens"] != len(client.texts):
        yield f"{name} got {len(client.texts)} tokens, on record are {row['delivered_tokens']}"
    unseen = not client.texts
    if client.error in RETRIED and unseen and row["attempts"] < MAX_ATTEMPTS:
        yield f"{name} was given up after {row['attempts']} attempts, and its client had seen nothing"


def _check_done(client: Saw, name: str, row: Row) -> Iterator[str]:
    if row["state"] != "completed":
        yield f"{name} was told that it is complete and is on record as {row['state']}"
    if client.usage_tokens is not None and client.usage_tokens != row["completion_tokens"]:
        yield f"{name} was told {client.usage_tokens} tokens and is billed {row['completion_tokens']}"
    if not client.stream and row["delivered_tokens"] != len(expected_texts(client)):
        yield f"{name} got {len(expected_texts(client))} tokens, on record are {row['delivered_tokens']}"


def _check_text(client: Saw, name: str, tokens_said: dict[str, dict[int, set[str]]]) -> Iterator[str]:
    expected = expected_texts(client)
    if client.stream:
        right = expected[: len(client.texts)] == tuple(client.texts)
    else:
        right = "".join(expected).startswith("".join(client.texts))
    if not right:
        place = next((i for i, text in enumerate(client.texts) if i >= len(expected) or text != expected[i]), 0)
        due = list(expected[place : place + 3])
        yield f"{name} got {client.texts[place : place + 3]} at {place}, where {due} is due"
    elif client.done and "".join(client.texts) != "".join(expected):
        yield f"{name} was told that {len(client.texts)} of {len(expected)} tokens are all"
    if tokens_said and client.stream and client.request is not None:
        known = tokens_said.get(client.request, {})
        for seq, text in enumerate(client.texts):
            if text not in known.get(seq, ()):
                yield f"{name} got {text!r} at {seq}, which no worker has said"
                break


def _tokens_said(said: Iterable[Said]) -> dict[str, dict[int, set[str]]]:
    """Return what workers said by task and position; two attempts may both have said it."""
    tokens: dict[str, dict[int, set[str]]] = {}
    for piece in said:
        for offset, text in enumerate(piece.texts):
            tokens.setdefault(piece.task, {}).setdefault(piece.seq + offset, set()).add(text)
    return tokens
