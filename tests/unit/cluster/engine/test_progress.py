"""Who is told to have stalled: the clock is in the test's hands, the streams are real."""

from __future__ import annotations

import asyncio

import pytest

from cluster.domain import FinishReason
from cluster.engine import streams as module
from cluster.engine.progress import LONGEST_S, LOOKS, ProgressWatch
from cluster.engine.streams import TokenStream
from cluster.scheduler.events import AttemptStalled
from tests.factories import make_task
from tests.unit.cluster.engine.rig import Rig

FIRST_S, NEXT_S, PAUSED_S = 30.0, 10.0, 2.5


class Clock:
    """What streams and the watch take for the time."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


class Bench:
    """A watch that looks as often as it would by itself, and the streams it looks at."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.streams: dict[str, TokenStream] = {}
        self.told: list[AttemptStalled] = []
        self.watch = ProgressWatch(
            self.streams, self.told.append, first_token_s=FIRST_S, next_token_s=NEXT_S, paused_s=PAUSED_S
        )
        self.watch.look(clock.now_s)

    def add(self, id: str = "req_1", *, attempt: int = 1) -> TokenStream:
        """Return a stream whose attempt has just been announced."""
        stream = self.streams[id] = TokenStream(make_task(id), buffered=False)
        stream.announce(attempt, "w-1", "W-1", 0.0)
        return stream

    def advance(self, seconds: float) -> None:
        """Let time pass, and have a look as often as the watch would."""
        until = self.clock.now_s + seconds
        while self.clock.now_s < until:
            self.clock.now_s = min(until, self.clock.now_s + LONGEST_S)
            self.watch.look(self.clock.now_s)

    def oversleep(self, seconds: float) -> None:
        """Have one look, so long after the one before."""
        self.clock.now_s += seconds
        self.watch.look(self.clock.now_s)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return Bench(clock)


def test_an_attempt_without_a_first_token_stalls_after_the_long_time(bench: Bench):
    bench.add()

    bench.advance(FIRST_S - 0.5)
    assert bench.told == []
    bench.advance(0.5)

    assert bench.told == [AttemptStalled("req_1", 1, "first_token")]


def test_one_that_has_begun_stalls_after_the_short_time_from_its_last_token(bench: Bench):
    stream = bench.add()
    bench.advance(5.0)
    stream.push("w-1", 1, 0, ["a"])
    bench.advance(NEXT_S - 1.0)
    stream.push("w-1", 1, 1, ["b"])

    bench.advance(NEXT_S - 0.5)
    assert bench.told == []
    bench.advance(0.5)

    assert bench.told == [AttemptStalled("req_1", 1, "next_token")]


def test_what_has_stalled_is_told_once_while_it_is_being_fenced(bench: Bench):
    bench.add()

    bench.advance(FIRST_S + LONGEST_S)

    assert len(bench.told) == 1


def test_tokens_that_are_refused_are_no_progress(bench: Bench):
    stream = bench.add()
    stream.push("w-1", 1, 0, ["a"])
    bench.advance(NEXT_S / 2)
    stream.push("w-1", 1, 0, ["a"])

    bench.advance(NEXT_S / 2)

    assert bench.told == [AttemptStalled("req_1", 1, "next_token")]


def test_nobody_is_blamed_for_a_task_that_waits_or_is_being_fenced(bench: Bench):
    bench.streams["req_1"] = TokenStream(make_task("req_1"), buffered=False)
    bench.add("req_2").fence(1)

    bench.advance(2 * FIRST_S)

    assert bench.told == []


@pytest.mark.parametrize("end", ["finish", "abandon"])
def test_an_ended_stream_makes_no_progress_and_need_not(bench: Bench, end: str):
    stream = bench.add()
    stream.finish("w-1", 1, FinishReason.STOP, 0) if end == "finish" else stream.abandon()

    bench.advance(2 * FIRST_S)

    assert bench.told == []


def test_an_attempt_that_resumes_has_the_long_time_for_its_first_token(bench: Bench):
    stream = bench.add()
    stream.push("w-1", 1, 0, ["a", "b"])
    stream.take()
    stream.fence(1)
    stream.announce(2, "w-2", "W-2", 0.0)

    bench.advance(FIRST_S - 0.5)
    assert bench.told == []
    bench.advance(0.5)
    assert bench.told == [AttemptStalled("req_1", 2, "first_token")]

    stream.push("w-2", 2, 2, ["c"])
    bench.advance(NEXT_S)
    assert bench.told[1:] == [AttemptStalled("req_1", 2, "next_token")]


def test_a_pause_of_this_process_is_nobodys_stall_and_all_have_their_time_anew(bench: Bench):
    bench.add("req_1")
    begun = bench.add("req_2")
    begun.push("w-1", 1, 0, ["a"])

    bench.oversleep(2 * FIRST_S)
    assert bench.told == []
    bench.advance(NEXT_S - 0.5)
    assert bench.told == []
    bench.advance(0.5)

    assert bench.told == [AttemptStalled("req_2", 1, "next_token")]


def test_a_loop_that_is_only_a_little_late_forgives_nothing(bench: Bench):
    stream = bench.add()
    stream.push("w-1", 1, 0, ["a"])
    bench.advance(NEXT_S - LONGEST_S)

    bench.oversleep(LONGEST_S + PAUSED_S)

    assert bench.told == [AttemptStalled("req_1", 1, "next_token")]


async def test_it_looks_by_itself_and_trouble_with_one_look_is_not_the_last(rig: Rig, caplog: pytest.LogCaptureFixture):
    told: list[AttemptStalled] = []

    def report(stalled: AttemptStalled) -> None:
        told.append(stalled)
        if len(told) == 1:
            raise RuntimeError("a bug")
        watch.stop()
        done.set()

    rig.join()
    rig.submit()
    done = asyncio.Event()
    watch = ProgressWatch(
        rig.gateway.streams, report, first_token_s=0.01 * LOOKS, next_token_s=0.01 * LOOKS, paused_s=PAUSED_S
    )
    watch.start()

    await asyncio.wait_for(done.wait(), 5)

    assert told == [AttemptStalled("req_1", 1, "first_token")] * 2
    assert "a look for stalled attempts failed" in caplog.text
