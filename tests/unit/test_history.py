"""The history checker: silent about an honest history, and never about a planted lie."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.history import Said, Saw, check, expected_texts, read_lines

COLUMNS = ("id", "state", "stream", "attempts", "generated_tokens", "delivered_tokens", "completion_tokens")
TEXTS = list(expected_texts(Saw(model="llama-3-8b", prompt="Hello", max_tokens=6, seed=7, stream=True)))


def saw(**changes: Any) -> Saw:
    """Return what the client of a completed stream saw, with changes."""
    fields: dict[str, Any] = {
        "request": "req_1",
        "model": "llama-3-8b",
        "prompt": "Hello",
        "max_tokens": 6,
        "seed": 7,
        "stream": True,
        "status": 200,
        "texts": TEXTS,
        "done": True,
        "usage_tokens": 6,
    }
    return Saw(**fields | changes)


def row(**changes: Any) -> dict[str, Any]:
    """Return the row of a completed stream, with changes."""
    tokens = changes.pop("tokens", 6)
    fields = dict(zip(COLUMNS, ("req_1", "completed", 1, 1, tokens, tokens, tokens), strict=True))
    return fields | changes


@pytest.fixture
def ledger(tmp_path: Path):
    """Return a function that writes a ledger with these rows, and sums that fit unless told otherwise."""

    def write(*rows: dict[str, Any], **sums: int) -> Path:
        path = tmp_path / "db.sqlite3"
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"CREATE TABLE inference_request ({', '.join(COLUMNS)})")
            connection.execute("CREATE TABLE inference_usagerollup (requests, completed, completion_tokens)")
            for fields in rows:
                marks = ", ".join("?" * len(COLUMNS))
                connection.execute(f"INSERT INTO inference_request VALUES ({marks})", tuple(fields.values()))
            ended = [fields for fields in rows if fields["state"] != "open"]
            counted = {
                "requests": len(ended),
                "completed": sum(fields["state"] == "completed" for fields in ended),
                "billed": sum(fields["completion_tokens"] for fields in ended),
            } | sums
            connection.execute("INSERT INTO inference_usagerollup VALUES (?, ?, ?)", tuple(counted.values()))
        return path

    return write


LOST = {"state": "lost", "delivered_tokens": 0, "completion_tokens": 0, "generated_tokens": 0}
CANCELLED = {"state": "cancelled", "tokens": 3}


@pytest.mark.parametrize(
    ("seen", "recorded"),
    [
        pytest.param({}, {}, id="completed"),
        pytest.param({"stream": False, "texts": ["".join(TEXTS)]}, {"stream": 0}, id="completed whole"),
        pytest.param({"texts": TEXTS[:2], "done": False, "usage_tokens": None, "end": "cut"}, LOST, id="server killed"),
        pytest.param(
            {"texts": TEXTS[:2], "done": False, "usage_tokens": None, "end": "cut"}, {}, id="after the commit"
        ),
        pytest.param({"texts": TEXTS[:2], "done": False, "usage_tokens": None, "end": "left"}, CANCELLED, id="left"),
        pytest.param(
            {"texts": TEXTS[:2], "done": False, "usage_tokens": None, "error": "worker_lost"},
            {"state": "failed", "tokens": 2},
            id="typed error",
        ),
    ],
)
def test_an_honest_history_is_not_complained_about(ledger, seen: dict[str, Any], recorded: dict[str, Any]):
    assert check([saw(**seen)], ledger(row(**recorded))) == []


def test_a_request_that_was_refused_needs_no_row(ledger):
    refused = saw(request="req_9", status=503, texts=[], done=False, error="server_draining", usage_tokens=None)

    assert check([refused], ledger()) == []


@pytest.mark.parametrize(
    ("seen", "recorded", "complaint"),
    [
        ({"end": "cut"}, {"state": "open"}, "it has no outcome"),
        ({}, {"state": "failed"}, "told that it is complete and is on record as failed"),
        (
            {"done": False, "error": "worker_lost", "texts": TEXTS},
            {},
            "on record as completed and was told worker_lost",
        ),
        ({}, {"completion_tokens": 5}, "is billed 5 tokens and was delivered 6"),
        ({}, {"delivered_tokens": 5, "completion_tokens": 5}, "got 6 tokens, on record are 5"),
        ({}, {"generated_tokens": 5}, "was delivered 6 tokens of 5"),
        ({"usage_tokens": 7}, {}, "was told 7 tokens and is billed 6"),
        ({"end": "cut", "done": False}, LOST | {"completion_tokens": 2}, "is lost and is billed 2 tokens"),
        ({"texts": [*TEXTS[:3], TEXTS[2], *TEXTS[3:]]}, {"tokens": 7}, "is due"),
        ({"texts": [*TEXTS[:2], *TEXTS[3:]]}, {"tokens": 5}, "is due"),
        ({"texts": [TEXTS[0], TEXTS[2], TEXTS[1], *TEXTS[3:]]}, {}, "is due"),
        ({"texts": [*TEXTS[:4], "evil", TEXTS[5]]}, {}, "is due"),
        ({"texts": TEXTS[:5]}, {"tokens": 5}, "was told that 5 of 6 tokens are all"),
        ({"stream": False, "texts": ["".join(TEXTS[1:])]}, {"stream": 0}, "is due"),
        ({"done": False, "usage_tokens": None}, {"state": "failed"}, "without a farewell and without an error"),
        (
            {"done": False, "status": 500, "texts": [], "error": "worker_lost", "usage_tokens": None},
            {"state": "failed", "tokens": 0},
            "given up after 1 attempts, and its client had seen nothing",
        ),
        ({}, {"attempts": 4}, "had 4 attempts"),
    ],
)
def test_a_lie_is_found(ledger, seen: dict[str, Any], recorded: dict[str, Any], complaint: str):
    complaints = check([saw(**seen)], ledger(row(**recorded)))

    assert any(complaint in said for said in complaints), complaints


def test_an_answer_without_a_row_is_found(ledger):
    assert check([saw()], ledger()) == ["req_1 was answered and is not on record"]


def test_one_row_for_two_answers_is_found(ledger):
    assert "req_1 was answered to two clients" in check([saw(), saw()], ledger(row()))


@pytest.mark.parametrize("sums", [{"requests": 2}, {"completed": 0}, {"billed": 12}])
def test_a_request_that_was_settled_twice_is_found_in_the_sums(ledger, sums: dict[str, int]):
    (complaint,) = check([saw()], ledger(row(), **sums))

    assert "something was settled twice or not at all" in complaint


def test_a_token_that_no_worker_has_said_is_found(ledger):
    said = [Said(worker="w1", task="req_1", attempt=1, seq=0, texts=TEXTS[:4])]
    rest = Said(worker="w2", task="req_1", attempt=2, seq=4, texts=TEXTS[4:])
    others = Said(worker="w2", task="req_2", attempt=1, seq=4, texts=TEXTS[4:])

    assert check([saw()], ledger(row()), said=[*said, rest]) == []
    assert "which no worker has said" in check([saw()], ledger(row()), said=[*said, others])[0]


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path: Path):
    path = tmp_path / "saw.jsonl"
    path.write_bytes(msgspec.json.encode(saw()) + b"\n" + msgspec.json.encode(saw())[:40])

    assert read_lines(path, Saw) == [saw()]
    assert read_lines(tmp_path / "none.jsonl", Saw) == []
