"""What a stream accepts, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.domain import FinishReason, Outcome
from cluster.engine.streams import TOKEN_BYTES, StreamFailure, TokenStream, Verdict
from tests.factories import make_task

LOST = StreamFailure(Outcome.FAILED, "worker_lost", "The worker was lost.")


def make_stream(*, buffered: bool = False, worker: str = "w-1") -> TokenStream:
    """Return a stream whose first attempt runs on `worker`."""
    stream = TokenStream(make_task(), buffered=buffered)
    stream.announce(1, worker, worker.upper(), 0.5)
    return stream


def is_waiting(stream: TokenStream) -> bool:
    """Tell whether a reader would have to wait, by beginning to wait."""
    waits = stream.wait()
    try:
        waits.send(None)
    except StopIteration:
        return False
    waits.close()
    return True


async def test_a_worker_gives_no_more_tokens_than_were_asked_for():
    stream = make_stream()
    most = stream.task.generation.max_tokens

    assert stream.push("w-1", 1, 0, ["a"] * most) is Verdict.ACCEPTED
    assert stream.push("w-1", 1, most, ["b"]) is Verdict.SURPLUS
    assert stream.push("w-1", 1, most, []) is Verdict.ACCEPTED
    assert stream.take() == ["a"] * most


@pytest.mark.parametrize(("claimed", "believed"), [(0, 2), (5, 5), (2**53, 8)])
async def test_a_workers_own_count_is_believed_within_reason(claimed: int, believed: int):
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a", "b"])

    stream.finish("w-1", 1, FinishReason.STOP, claimed)

    assert stream.task.generation.max_tokens == 8
    assert stream.generated_tokens == believed


async def test_tokens_are_taken_in_order_once():
    stream = make_stream()

    assert stream.push("w-1", 1, 0, ["a", "b"]) is Verdict.ACCEPTED
    assert stream.push("w-1", 1, 2, ["c"]) is Verdict.ACCEPTED

    assert stream.take() == ["a", "b", "c"]
    assert stream.take() == []
    assert (stream.next_seq, stream.taken) == (3, 3)


def test_a_stream_that_was_not_announced_accepts_nothing():
    stream = TokenStream(make_task(), buffered=False)

    assert stream.push("w-1", 1, 0, ["a"]) is Verdict.STRAY


def test_an_announcement_says_who_works_on_it():
    stream = make_stream()

    assert (stream.worker_id, stream.worker_name, stream.queued_s) == ("w-1", "W-1", 0.5)


def test_what_a_worker_says_of_an_attempt_that_was_fenced_meanwhile_is_late_and_no_fault_of_its():
    """The cancel is on its way, and the next attempt has not begun: nobody is the rightful sender."""
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a"])
    stream.take()
    stream.fence(1)

    assert stream.push("w-1", 1, 1, ["b"]) is Verdict.STRAY
    assert stream.finish("w-1", 1, FinishReason.STOP, 2) is Verdict.STRAY
    assert stream.take() == []


def test_an_older_announcement_changes_nothing():
    stream = make_stream()
    stream.announce(2, "w-2", "W-2", 1.0)

    stream.announce(1, "w-1", "W-1", 0.5)

    assert (stream.attempt, stream.worker_id) == (2, "w-2")


def test_tokens_of_an_older_attempt_are_stray():
    stream = make_stream()
    stream.announce(2, "w-2", "W-2", 0.5)

    assert stream.push("w-1", 1, 0, ["late"]) is Verdict.STRAY
    assert stream.take() == []


def test_repeated_tokens_are_stray():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a", "b"])

    assert stream.push("w-1", 1, 0, ["a", "b"]) is Verdict.STRAY
    assert stream.push("w-1", 1, 1, ["b", "c"]) is Verdict.STRAY
    assert stream.take() == ["a", "b"]


def test_tokens_ahead_of_their_turn_are_a_gap():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a"])

    assert stream.push("w-1", 1, 2, ["c"]) is Verdict.GAP
    assert stream.take() == ["a"]


def test_tokens_of_another_worker_are_foreign():
    stream = make_stream(worker="w-1")

    assert stream.push("w-2", 1, 0, ["evil"]) is Verdict.FOREIGN
    assert stream.finish("w-2", 1, FinishReason.STOP, 0) is Verdict.FOREIGN
    assert stream.take() == []
    assert not stream.ended


def test_nothing_is_accepted_after_the_fence():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a"])
    stream.take()

    assert stream.fence(1) == 1

    assert stream.push("w-1", 1, 1, ["b"]) is not Verdict.ACCEPTED
    assert stream.finish("w-1", 1, FinishReason.STOP, 2) is not Verdict.ACCEPTED
    assert not stream.ended


def test_after_the_fence_the_next_attempt_goes_on_where_the_client_is():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a"])
    stream.take()
    next_seq = stream.fence(1)

    stream.announce(2, "w-2", "W-2", 0.5)

    assert stream.push("w-2", 2, next_seq, ["b"]) is Verdict.ACCEPTED
    assert stream.take() == ["b"]


@pytest.mark.parametrize("buffered", [True, False])
def test_tokens_that_no_client_has_seen_are_forgotten_at_the_fence(buffered: bool):
    stream = make_stream(buffered=buffered)
    stream.push("w-1", 1, 0, ["a", "b"])

    assert stream.fence(1) == 0

    stream.announce(2, "w-2", "W-2", 0.5)
    stream.push("w-2", 2, 0, ["x"])
    assert stream.take() == ["x"]


def test_a_fence_for_an_older_attempt_leaves_the_current_one_open():
    stream = make_stream()
    stream.announce(2, "w-2", "W-2", 0.5)

    stream.fence(1)

    assert stream.push("w-2", 2, 0, ["a"]) is Verdict.ACCEPTED


def test_a_late_fence_takes_no_tokens_from_the_current_attempt():
    stream = make_stream()
    stream.announce(2, "w-2", "W-2", 0.5)
    stream.push("w-2", 2, 0, ["a"])

    stream.fence(1)

    assert stream.push("w-2", 2, 1, ["b"]) is Verdict.ACCEPTED
    assert stream.take() == ["a", "b"]


def test_a_finish_ends_the_stream_and_counts_what_was_generated():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a"])

    assert stream.finish("w-1", 1, FinishReason.STOP, 3) is Verdict.ACCEPTED

    assert stream.ended
    assert (stream.finish_reason, stream.generated_tokens) == (FinishReason.STOP, 3)
    assert stream.take() == ["a"]
    assert stream.push("w-1", 1, 1, ["b"]) is Verdict.STRAY


def test_a_worker_cannot_count_less_than_it_sent():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a", "b"])

    stream.finish("w-1", 1, FinishReason.LENGTH, 0)

    assert stream.generated_tokens == 2


@pytest.mark.parametrize("first", ["finish", "fail", "abandon"])
@pytest.mark.parametrize("second", ["finish", "fail", "abandon"])
def test_a_stream_ends_once_and_the_first_end_stands(first: str, second: str):
    stream = make_stream()
    ends: dict[str, Any] = {
        "finish": lambda: stream.finish("w-1", 1, FinishReason.STOP, 1),
        "fail": lambda: stream.fail(LOST),
        "abandon": stream.abandon,
    }

    ends[first]()
    how = (stream.finish_reason, stream.failure, stream.abandoned, stream.generated_tokens)
    ends[second]()

    assert (stream.finish_reason, stream.failure, stream.abandoned, stream.generated_tokens) == how


async def test_a_reader_is_woken_by_the_first_token():
    stream = make_stream()
    reader = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)
    assert not reader.done()

    stream.push("w-1", 1, 0, ["a"])

    await asyncio.wait_for(reader, 1)


async def test_a_reader_of_a_buffered_stream_sleeps_until_the_end():
    stream = make_stream(buffered=True)
    reader = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)

    stream.push("w-1", 1, 0, ["a"])
    await asyncio.sleep(0)
    assert not reader.done()
    stream.finish("w-1", 1, FinishReason.STOP, 1)

    await asyncio.wait_for(reader, 1)
    assert stream.take() == ["a"]


@pytest.mark.parametrize("end", ["finish", "fail", "abandon"])
async def test_every_end_wakes_the_reader(end: str):
    stream = make_stream()
    reader = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)

    match end:
        case "finish":
            stream.finish("w-1", 1, FinishReason.STOP, 0)
        case "fail":
            stream.fail(LOST)
        case _:
            stream.abandon()

    await asyncio.wait_for(reader, 1)


async def test_who_comes_late_does_not_wait():
    waiting_text, ended = make_stream(), make_stream(buffered=True)
    waiting_text.push("w-1", 1, 0, ["a"])
    ended.fail(LOST)

    assert not is_waiting(waiting_text)
    assert not is_waiting(ended)
    assert is_waiting(make_stream())


async def test_a_reader_that_is_cancelled_leaves_the_stream_usable():
    stream = make_stream()
    reader = asyncio.create_task(stream.wait())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)

    assert stream.push("w-1", 1, 0, ["a"]) is Verdict.ACCEPTED
    assert not is_waiting(stream)


@pytest.mark.parametrize("end", ["finish", "fail", "abandon"])
def test_whoever_wants_to_know_of_the_end_is_told_once_and_when_it_is_true(end: str):
    stream = make_stream(buffered=True)
    told: list[bool] = []
    stream.on_end = lambda: told.append(stream.ended)
    stream.push("w-1", 1, 0, ["a"])
    stream.fence(1)
    stream.announce(2, "w-2", "W-2", 0.5)
    assert told == []

    ends: dict[str, Any] = {
        "finish": lambda: stream.finish("w-2", 2, FinishReason.STOP, 1),
        "fail": lambda: stream.fail(LOST),
        "abandon": stream.abandon,
    }
    for how in (end, *ends):
        ends[how]()

    assert told == [True]


async def test_who_waits_for_a_while_only_is_told_that_nothing_came():
    stream = make_stream()

    assert await stream.wait(0.001) is False

    stream.push("w-1", 1, 0, ["a"])
    assert await stream.wait(0.001) is True


async def test_who_waits_for_a_while_is_told_at_once_of_what_comes_meanwhile():
    stream = make_stream()
    reader = asyncio.create_task(stream.wait(60.0))
    await asyncio.sleep(0)

    stream.push("w-1", 1, 0, ["a"])

    assert await asyncio.wait_for(reader, 1) is True


async def test_a_time_that_is_up_later_disturbs_no_later_wait():
    stream = make_stream()
    early = asyncio.create_task(stream.wait(0.01))
    await asyncio.sleep(0)
    stream.push("w-1", 1, 0, ["a"])
    assert await early
    stream.take()

    later = asyncio.create_task(stream.wait())
    assert (await asyncio.wait({later}, timeout=0.05))[0] == set()

    stream.abandon()
    assert await asyncio.wait_for(later, 1) is True


def test_what_nobody_has_taken_is_counted_until_it_is_taken_or_forgotten():
    stream = make_stream()
    stream.push("w-1", 1, 0, ["a", "b"])
    stream.push("w-1", 1, 2, ["c"])
    assert stream.waiting_bytes == 3 * (TOKEN_BYTES + 1)

    stream.fence(1)
    assert stream.waiting_bytes == 0

    stream.announce(2, "w-2", "W-2", 0.5)
    stream.push("w-2", 2, 0, ["x"])
    stream.take()
    assert stream.waiting_bytes == 0


def test_an_attempt_knows_where_it_began():
    stream = make_stream()
    assert stream.began_at_seq == 0
    stream.push("w-1", 1, 0, ["a", "b"])
    stream.take()
    stream.push("w-1", 1, 2, ["c"])
    stream.fence(1)

    stream.announce(2, "w-2", "W-2", 0.5)

    assert (stream.began_at_seq, stream.next_seq) == (3, 3)
    stream.push("w-2", 2, 3, ["d"])
    assert stream.began_at_seq == 3


WORKERS = {1: "w-1", 2: "w-2", 3: "w-1"}
push = st.tuples(
    st.just("push"),
    st.sampled_from(sorted(WORKERS)),
    st.sampled_from(["w-1", "w-2"]),
    st.integers(0, 6),
    st.integers(1, 3),
)
step = st.one_of(push, st.tuples(st.sampled_from(["take", "next attempt", "late fence"])))


@given(st.lists(step, max_size=60))
def test_whatever_is_pushed_the_client_gets_an_unbroken_sequence(steps: list[tuple[Any, ...]]):
    """Every attempt tells the same tokens 0, 1, 2 …; what is taken must be a prefix of them."""
    stream = make_stream()
    attempt = 1
    got: list[str] = []
    for name, *arguments in steps:
        match name:
            case "push":
                of_attempt, worker, seq, count = arguments
                texts = [f"token {index}" for index in range(seq, seq + count)]
                before = stream.next_seq
                verdict = stream.push(worker, of_attempt, seq, texts)
                fits = of_attempt == attempt and worker == WORKERS[attempt] and seq == before
                assert (verdict is Verdict.ACCEPTED) == fits
            case "take":
                got += stream.take()
            case "late fence":
                stream.fence(attempt - 1)
            case _ if attempt < len(WORKERS):
                stream.fence(attempt)
                attempt += 1
                stream.announce(attempt, WORKERS[attempt], "", 0.0)
    got += stream.take()

    assert got == [f"token {index}" for index in range(len(got))]
    assert stream.taken == len(got)
