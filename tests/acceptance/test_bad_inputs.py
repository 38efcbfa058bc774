"""Malformed and hostile requests over real sockets: each is answered as its row says, none breaks anything,
and good requests that come at the same time do not notice. See `tests/bad_inputs`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.bad_inputs.rows import POSTPONED, Row, load_rows
from tests.bad_inputs.scenes import OVERLOADED, SCENES, play_overload
from tests.bad_inputs.stage import ENVIRONMENT, Stage
from tests.bad_inputs.wire import Answer, NoAnswer
from tests.bad_inputs.workers import play as play_socket
from tests.live import live_server

ROWS = load_rows()
SLOW = {"ws-32": "the server's pings notice a worker that reads nothing after 40 s"}
"""Rows that take longer than others together: for the long version."""
SOME = 30
"""Rows that are played 20 times each at once."""
AT_ONCE = [row for row in ROWS if row.id not in (*SLOW, *OVERLOADED, *SCENES)]
"""What fills counters by design would be in the way of its neighbours' own, and is played alone."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with live_server(tmp_path_factory.mktemp("bad"), **ENVIRONMENT) as server:
        stage = Stage(server)
        server.start_worker("--speed", "0", "--model", "llama-3-8b", "mistral-7b", name="good")
        yield stage


@pytest.fixture(scope="module")
def played(stage: Stage) -> Played:
    """All rows, played at once beside good traffic."""
    return asyncio.run(play_at_once(stage, AT_ONCE))


class Played(msgspec.Struct):
    """What came of many rows, and of the good requests beside them."""

    outcomes: dict[str, BaseException | None]
    quiet_s: list[float]
    busy_s: list[float]


async def play_at_once(stage: Stage, rows: list[Row], *, times: int = 1) -> Played:
    quiet_s = [await take_time(stage) for _ in range(20)]
    many = [row for row in rows for _ in range(times)]
    bad = asyncio.gather(*[play(stage, row) for row in many], return_exceptions=True)
    busy_s: list[float] = []
    while not bad.done():
        busy_s += await asyncio.gather(*[take_time(stage) for _ in range(4)])
        await asyncio.sleep(0.01)
    outcomes: dict[str, BaseException | None] = {}
    for row, outcome in zip(many, await bad, strict=True):
        outcomes[row.id] = outcomes.get(row.id) or outcome
    return Played(outcomes, quiet_s, busy_s)


@pytest.mark.parametrize("id", [row.id for row in AT_ONCE])
def test_a_bad_input_is_answered_as_its_row_says(played: Played, id: str):
    if (outcome := played.outcomes[id]) is not None:
        raise outcome


def test_good_requests_did_not_notice_all_bad_inputs_at_once(played: Played):
    assert len(played.busy_s) >= 50
    assert median(played.busy_s) < 20 * median(played.quiet_s) + 0.1
    assert max(played.busy_s) < 5


@pytest.mark.parametrize("row", [row for row in ROWS if row.id in SCENES], ids=lambda row: row.id)
async def test_a_bad_input_of_many_requests_is_answered_as_its_row_says(stage: Stage, row: Row):
    await play(stage, row)


@pytest.mark.soak
@pytest.mark.parametrize("row", [row for row in ROWS if row.id not in OVERLOADED], ids=lambda row: row.id)
async def test_a_bad_input_alone_is_answered_as_its_row_says(stage: Stage, row: Row):
    await play(stage, row)


@pytest.mark.soak
async def test_good_requests_do_not_notice_all_bad_inputs_many_times_at_once(stage: Stage):
    # Workers' sockets of one token are bounded, and scenes have few models: once is enough for those. And a
    # hundred bodies of megabytes at once are an overload, which is shed as any other; logins are counted.
    requests = [
        row for row in AT_ONCE if row.plane != "ws" and not row.path.startswith("/api/auth/") and not is_fat(stage, row)
    ]

    for start in range(0, len(requests), SOME):
        played = await play_at_once(stage, requests[start : start + SOME], times=20)

        assert {id: outcome for id, outcome in played.outcomes.items() if outcome is not None} == {}
        assert median(played.busy_s) < 1
        assert max(played.busy_s) < 5


async def test_a_full_and_a_draining_server_say_so(stage: Stage, tmp_path: Path):
    full, draining = [row for row in ROWS if row.id in OVERLOADED]

    said_full, said_draining = await play_overload(stage, full, tmp_path)

    judge(full, said_full)
    judge(draining, said_draining)
    for answer in (said_full, said_draining):
        assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_in_the_end_nothing_is_left_and_nothing_was_an_error(stage: Stage):
    assert await take_time(stage) < 1
    running = stage.server.rows("SELECT id FROM inference_request WHERE state NOT IN " + FINAL)
    assert running == []
    log = stage.server.log()
    assert "Traceback" not in log
    assert " ERROR " not in log
    assert stage.server.get("/readyz")[0] == 200
    for secret in ("GOODKEY", "ACCESS", "REFRESH", "WORKER", "PASS"):
        assert stage.values[secret] not in log


def test_what_is_postponed_says_why():
    assert all(POSTPONED.values())


FINAL = "('completed', 'failed', 'cancelled', 'expired', 'lost')"


async def play(stage: Stage, row: Row) -> None:
    """Play a row and judge what came of it."""
    if row.plane == "ws":
        ended = await play_socket(stage, row)
        assert ended in (row.expect_status or [0]), ended
    elif row.id in SCENES:
        judge(row, await SCENES[row.id](stage, row))
    else:
        try:
            judge(row, await stage.play(row))
        except NoAnswer:
            assert not row.expect_status, "closed without a word"


def judge(row: Row, answer: Answer) -> None:
    """Fail unless an answer is what a row says."""
    assert not row.expect_status or answer.status in row.expect_status, (answer.status, answer.body[:500])
    assert b"HTTP/1.1" not in answer.rest, "one request, one answer"
    assert b"Traceback" not in answer.body
    assert "evil.example" not in str(answer.headers)
    if row.plane == "v1":
        assert answer.headers["x-request-id"]
        if answer.status >= 400:
            judge_error(row, answer)
    elif row.plane == "api" and answer.status >= 400:
        assert {"code", "detail"} <= set(json.loads(answer.body))


def judge_error(row: Row, answer: Answer) -> None:
    error = answer.error
    assert len(answer.body) < 2_000, "no echo of what was sent"
    # A row that leaves the status open leaves open what exactly is said, unless it says so.
    if row.expect_error_code or len(row.expect_status) == 1:
        assert error["code"] == row.expect_error_code, error
    if row.expect_error_param or len(row.expect_status) == 1:
        assert error["param"] == row.expect_error_param, error
    if row.expect_error_type and len(row.expect_status) == 1:
        assert error["type"] == row.expect_error_type


def is_fat(stage: Stage, row: Row) -> bool:
    request = stage.request(row)
    return not isinstance(request, bytes) or len(request) > 100_000


async def take_time(stage: Stage) -> float:
    """Return how long a good request took; it succeeds."""
    began_s = time.monotonic()
    answer = await stage.chat()
    assert answer.status == 200, answer.body
    return time.monotonic() - began_s


def median(numbers: list[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]
