"""The dispatcher with a clock in the test's hands and a scheduler that does as it is told."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.brokers.memory import MemoryBroker
from cluster.domain import ClusterSnapshot
from cluster.engine import dispatcher as module
from cluster.engine.dispatcher import (
    MAX_SLEEP_S,
    PAUSED_S,
    SNAPSHOT_DELAY_S,
    SNAPSHOT_IDLE_S,
    SNAPSHOT_INTERVAL_S,
    Dispatcher,
)
from cluster.scheduler.commands import CancelAttempt, Command
from cluster.scheduler.events import Event, LoopPaused, TaskCancelled, Tick


class ManualLoop:
    """An event loop's clock and timers, moved by `advance`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: list[tuple[float, int, SimpleNamespace]] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> SimpleNamespace:
        handle = SimpleNamespace(callback=callback, cancelled=False)
        handle.cancel = lambda: setattr(handle, "cancelled", True)
        heapq.heappush(self._timers, (when, len(self._timers) + id(handle), handle))
        return handle

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> SimpleNamespace:
        return self.call_at(self._now + delay_s, callback)

    def oversleep(self, seconds: float) -> None:
        """Let time pass in which nothing runs, then run what has become due."""
        self._now += seconds
        late = [entry for entry in sorted(self._timers) if entry[0] <= self._now]
        self._timers = [entry for entry in sorted(self._timers) if entry[0] > self._now]
        for _, _, handle in late:
            if not handle.cancelled:
                handle.callback()

    def advance(self, seconds: float) -> None:
        """Let time pass and run what is due, in order."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            self._now, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled:
                handle.callback()
        self._now = until

    @property
    def pending(self) -> int:
        return sum(not handle.cancelled for _, _, handle in self._timers)


class ObedientScheduler:
    """A scheduler that notes what it is told and answers with what the test prepared."""

    def __init__(self) -> None:
        self.handled: list[Event] = []
        self.ticks: list[float] = []
        self.deadline: float | None = None
        self.answer: Callable[[Event], Sequence[Command]] = lambda event: ()

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        if isinstance(event, Tick):
            self.ticks.append(now)
        else:
            self.handled.append(event)
        return self.answer(event)

    def next_deadline(self) -> float | None:
        return self.deadline

    def snapshot(self, now: float, *, version: int, wall_s: float) -> ClusterSnapshot:
        return ClusterSnapshot(version=version, taken_at_s=now, running=len(self.handled))


class Bench:
    """A dispatcher on a manual loop, and all that goes in and out of it."""

    def __init__(self, loop: ManualLoop) -> None:
        self.loop = loop
        self.scheduler = ObedientScheduler()
        self.broker = MemoryBroker()
        self.dispatcher = Dispatcher(cast("Any", self.scheduler), self.broker)
        self.sent: list[Command] = []
        self.snapshots: list[ClusterSnapshot] = []
        self.broker.attach_gateway("node-1", self.sent.append)
        self.broker.attach_dispatcher(self.dispatcher.receive)
        self.broker.attach_board(self.snapshots.append)
        self.began_at_s = loop.time()

    def published_at(self) -> list[float]:
        """Return when snapshots were published, in seconds since the start."""
        return [round(snapshot.taken_at_s - self.began_at_s, 3) for snapshot in self.snapshots]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    loop = ManualLoop()
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=loop.time, time=lambda: 0.0))
    bench = Bench(loop)
    bench.dispatcher.start()
    yield bench
    bench.dispatcher.stop()
    assert loop.pending == 0


def happened(number: int) -> TaskCancelled:
    return TaskCancelled(f"req_{number}")


def cancel(number: int) -> CancelAttempt:
    return CancelAttempt("node-1", "wrk_1", "lnk_1", f"req_{number}", 1)


def test_events_that_arise_inside_commands_wait_in_line(bench: Bench):
    order: list[str] = []

    def answer(event: Event) -> list[Command]:
        assert isinstance(event, TaskCancelled)
        order.append(f"handle {event.task_id}")
        return [cancel(10), cancel(11)] if event == happened(1) else []

    def execute(command: Command) -> None:
        assert isinstance(command, CancelAttempt)
        order.append(f"send {command.task_id}")
        if command == cancel(10):
            bench.broker.publish_event(happened(2))

    bench.scheduler.answer = answer
    bench.broker.attach_gateway("node-1", execute)

    bench.broker.publish_event(happened(1))

    assert order == ["handle req_1", "send req_10", "send req_11", "handle req_2"]


def test_an_event_that_cannot_be_handled_is_its_senders_trouble_and_nobody_elses(bench: Bench):
    def answer(event: Event) -> list[Command]:
        if event == happened(1):
            raise RuntimeError("a bug")
        return [cancel(2)]

    bench.scheduler.answer = answer

    with pytest.raises(RuntimeError, match="a bug"):
        bench.broker.publish_event(happened(1))
    bench.broker.publish_event(happened(2))

    assert bench.sent == [cancel(2)]


def test_the_timer_sleeps_until_something_is_due_and_never_long(bench: Bench):
    bench.loop.advance(1.0)
    assert len(bench.scheduler.ticks) == 1 + 1.0 / MAX_SLEEP_S

    bench.scheduler.ticks.clear()
    due = bench.loop.time() + MAX_SLEEP_S + 0.1
    bench.scheduler.deadline = due
    bench.loop.advance(MAX_SLEEP_S)
    assert bench.scheduler.ticks[-1] == pytest.approx(due - 0.1)
    bench.loop.advance(0.1)
    assert bench.scheduler.ticks[-1] == pytest.approx(due)


def test_a_deadline_that_never_moves_does_not_stop_the_loop(bench: Bench):
    bench.scheduler.deadline = 0.0
    bench.loop.advance(MAX_SLEEP_S)
    bench.scheduler.ticks.clear()

    bench.loop.advance(0.1)

    assert 10 < len(bench.scheduler.ticks) <= 101


def test_a_tick_that_raises_does_not_stop_time(bench: Bench, caplog: pytest.LogCaptureFixture):
    def answer(event: Event) -> list[Command]:
        raise RuntimeError("a bug in one decision")

    bench.scheduler.answer = answer
    ticks = len(bench.scheduler.ticks)

    bench.loop.advance(1.0)

    assert len(bench.scheduler.ticks) == ticks + 4
    assert bench.dispatcher.last_tick_at_s == bench.loop.time()
    assert "the scheduler failed on a tick" in caplog.text


def test_a_snapshot_follows_a_change_soon(bench: Bench):
    bench.loop.advance(0.1)

    bench.broker.publish_event(happened(1))
    bench.loop.advance(SNAPSHOT_DELAY_S)

    assert bench.published_at() == pytest.approx([0.1 + SNAPSHOT_DELAY_S])
    assert bench.snapshots[0].running == 1


def test_what_happens_together_is_one_snapshot(bench: Bench):
    for number in range(100):
        bench.broker.publish_event(happened(number))
        bench.loop.advance(SNAPSHOT_DELAY_S / 200)
    bench.loop.advance(SNAPSHOT_DELAY_S)

    assert [snapshot.running for snapshot in bench.snapshots] == [100]


def test_snapshots_are_at_most_two_a_second_and_the_last_one_has_it_all(bench: Bench):
    for number in range(1000):
        bench.broker.publish_event(happened(number))
        bench.loop.advance(0.01)
    bench.loop.advance(SNAPSHOT_INTERVAL_S)

    times = bench.published_at()
    assert min(round(later - earlier, 6) for earlier, later in pairwise(times)) >= SNAPSHOT_INTERVAL_S
    assert len(times) == 21
    assert bench.snapshots[-1].running == 1000
    assert [snapshot.version for snapshot in bench.snapshots] == list(range(1, 22))


def test_what_a_tick_decides_is_shown_as_soon_as_what_an_event_changes(bench: Bench):
    bench.loop.advance(0.1)
    bench.scheduler.answer = lambda event: [cancel(1)]
    bench.loop.advance(MAX_SLEEP_S - 0.1)
    bench.scheduler.answer = lambda event: []

    bench.loop.advance(SNAPSHOT_DELAY_S)

    assert bench.published_at() == pytest.approx([MAX_SLEEP_S + SNAPSHOT_DELAY_S])


def test_silence_is_shown_too(bench: Bench):
    bench.loop.advance(3 * SNAPSHOT_IDLE_S)

    assert 2 <= len(bench.snapshots) <= 3


def test_after_the_stop_events_are_handled_but_nothing_is_scheduled(bench: Bench):
    bench.scheduler.answer = lambda event: [cancel(1)]
    bench.dispatcher.stop()

    bench.broker.publish_event(happened(1))

    assert bench.sent == [cancel(1)]
    assert bench.loop.pending == 0


def test_a_tick_that_comes_far_too_late_says_that_the_process_was_paused_and_is_no_tick(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    bench.loop.advance(1.0)
    bench.scheduler.ticks.clear()

    bench.loop.oversleep(MAX_SLEEP_S + PAUSED_S + 1.0)

    (paused,) = bench.scheduler.handled
    assert isinstance(paused, LoopPaused)
    assert paused.paused_s == pytest.approx(PAUSED_S + 1.0)
    assert bench.scheduler.ticks == []
    assert "this process was paused for 3.5 s" in caplog.text

    bench.loop.advance(MAX_SLEEP_S)
    assert len(bench.scheduler.ticks) == 1, "from then on time is judged as ever"


def test_a_tick_that_is_only_late_is_a_tick(bench: Bench):
    bench.scheduler.ticks.clear()

    bench.loop.oversleep(MAX_SLEEP_S + PAUSED_S)

    assert bench.scheduler.handled == []
    assert len(bench.scheduler.ticks) == 1


def test_how_much_is_a_pause_can_be_set(bench: Bench):
    dispatcher = Dispatcher(cast("Any", bench.scheduler), bench.broker, paused_s=0.5)
    bench.dispatcher.stop()
    dispatcher.start()

    bench.loop.oversleep(MAX_SLEEP_S + 0.6)
    dispatcher.stop()

    assert [type(event) for event in bench.scheduler.handled] == [LoopPaused]


def test_the_lag_is_how_late_the_last_tick_was(bench: Bench):
    bench.loop.advance(1.0)
    assert bench.dispatcher.lag_s == pytest.approx(0.0)

    bench.loop.oversleep(MAX_SLEEP_S + 0.7)
    assert bench.dispatcher.lag_s == pytest.approx(0.7)

    bench.loop.advance(MAX_SLEEP_S)
    assert bench.dispatcher.lag_s == pytest.approx(0.0)


def test_an_early_deadline_makes_a_late_tick_late_from_then(bench: Bench):
    bench.scheduler.deadline = bench.loop.time() + MAX_SLEEP_S + 0.1
    bench.loop.advance(MAX_SLEEP_S)

    bench.loop.oversleep(0.5)

    assert bench.dispatcher.lag_s == pytest.approx(0.4)
