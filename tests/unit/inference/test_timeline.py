from __future__ import annotations

from typing import Any

import pytest

from accounts.models import User
from cluster.domain import Choice, WaitReason
from inference.models import Request
from inference.records import Admitted, Assigned, FirstToken, Queued, Retried, Settled
from inference.selectors import get_timeline
from inference.timeline import WAITS, describe_story, encode_timeline, tell_story
from tests.unit.inference.test_selectors import make_request

FAILOVER = (
    Queued(0.2, WaitReason.NO_SLOT, 3),
    Assigned(250.0, 1, "wrk_1", "h100-1", "H100", 0, Choice(2, 0.875, 1.0)),
    Retried(900.5, 1, "worker_lost", 42),
    Queued(900.6, WaitReason.RESUME),
    Assigned(950.0, 2, "wrk_2", "h100-2", "H100", 42, Choice(1, 0.5, 0.93)),
)


def make_row(**fields: Any) -> Request:
    described: dict[str, Any] = {
        "id": "req_1",
        "state": "completed",
        "finish_reason": "stop",
        "attempts": 1,
        "worker_id": "wrk_1",
        "worker_name": "h100-1",
        "queue_ms": 1.5,
        "ttft_ms": 20.0,
        "total_ms": 300.0,
    }
    return Request(**described | fields)


def words(row: Request) -> list[str]:
    return [line.what for line in describe_story(tell_story(row))]


def test_a_plain_request_has_its_story_in_its_columns() -> None:
    assert tell_story(make_row()) == [
        Admitted(),
        Assigned(1.5, 1, "wrk_1", "h100-1"),
        FirstToken(20.0),
        Settled(300.0, "completed", "stop"),
    ]


def test_what_was_noted_on_the_way_stands_among_them_in_order() -> None:
    row = make_row(timeline=encode_timeline(FAILOVER), attempts=2, ttft_ms=300.0, total_ms=2_000.0)

    assert tell_story(row) == [
        Admitted(),
        *FAILOVER[:2],
        FirstToken(300.0),
        *FAILOVER[2:],
        Settled(2_000.0, "completed", "stop"),
    ]


def test_the_first_token_of_an_instant_worker_comes_after_its_assignment() -> None:
    row = make_row(timeline=encode_timeline([Assigned(0.1, 1, "wrk_1", "h100-1")]), ttft_ms=0.1)

    assert words(row) == ["admitted", "assigned", "first token", "settled"]


@pytest.mark.parametrize(
    ("fields", "story"),
    [
        ({"state": "open", "attempts": 0, "worker_id": "", "ttft_ms": None}, ["admitted"]),
        ({"state": "lost", "attempts": 0, "worker_id": "", "ttft_ms": None}, ["admitted", "settled"]),
        ({"attempts": 3, "ttft_ms": None}, ["admitted", "settled"]),
        ({"timeline": '[["from_the_future",1]]'}, ["admitted", "assigned", "first token", "settled"]),
        ({"timeline": "scribble"}, ["admitted", "assigned", "first token", "settled"]),
    ],
    ids=["open", "lost", "several attempts, nothing noted", "a newer version", "by hand"],
)
def test_what_is_not_known_is_not_told(fields: dict[str, Any], story: list[str]) -> None:
    assert words(make_row(**fields)) == story


def test_a_story_reads_as_sentences_with_the_time_that_each_step_took() -> None:
    row = make_row(timeline=encode_timeline(FAILOVER), attempts=2, ttft_ms=300.0, total_ms=2_000.0)

    lines = [(line.what, line.took_ms, line.detail) for line in describe_story(tell_story(row))]

    assert lines[1:6] == [
        ("queued", 0.2, "every worker for its model was full; number 3 in line"),
        (
            "assigned",
            pytest.approx(249.8),
            "attempt 1 to h100-1 (H100); best of 2: load 0.88, wait 1.00 (1 is best)",
        ),
        ("first token", 50.0, ""),
        ("failover", 600.5, "attempt 1 ended: worker_lost; the next one goes on from token 42"),
        ("queued", pytest.approx(0.1), "it waited for a worker that can continue the text"),
    ]
    assert lines[6][2] == (
        "attempt 2 to h100-2 (H100), from token 42; the only candidate: load 0.50, wait 0.93 (1 is best)"
    )
    assert lines[7] == ("settled", 1_050.0, "completed: stop")


def test_a_failure_that_is_no_death_is_a_retry_and_an_error_is_named() -> None:
    noted = [Assigned(1.0, 1, "wrk_1", "h100-1"), Retried(5.0, 1, "worker_failed")]
    row = make_row(timeline=encode_timeline(noted), state="failed", error_code="worker_failed", finish_reason=None)

    *_, retry, _, settled = describe_story(tell_story(row))

    assert (retry.what, retry.detail) == ("retry", "attempt 1 ended: worker_failed; the next one starts afresh")
    assert settled.detail == "failed: worker_failed"


def test_every_reason_to_wait_has_its_sentence() -> None:
    assert set(WAITS) == set(WaitReason)


def test_what_is_stored_is_small() -> None:
    assert encode_timeline(FAILOVER[:2]) == (
        '[["queued",0.2,"no_slot",3],'
        '["assigned",250.0,1,"wrk_1","h100-1","H100",0,{"candidates":2,"load":0.875,"wait":1.0}]]'
    )


def test_a_timeline_is_for_its_owner(alice: User, bob: User) -> None:
    make_request(alice, "req_1", timeline=encode_timeline(FAILOVER), attempts=2, total_ms=2_000.0)

    assert len(get_timeline(request_id="req_1", user_id=alice.pk)) == 7
    assert get_timeline(request_id="req_1") == get_timeline(request_id="req_1", user_id=alice.pk)
    assert get_timeline(request_id="req_1", user_id=bob.pk) == get_timeline(request_id="req_none") == []
