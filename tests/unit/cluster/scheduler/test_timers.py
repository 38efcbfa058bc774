"""The heap of deadlines."""

from __future__ import annotations

from cluster.scheduler.timers import SLACK, Timers


def test_keys_come_due_in_order_and_once() -> None:
    timers: Timers[str] = Timers()
    for key, at_s in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        timers.arm(key, at_s)

    assert timers.next_deadline() == 1.0
    assert [timers.pop_due(2.0) for _ in range(3)] == ["a", "b", None]
    assert timers.next_deadline() == 3.0


def test_a_key_is_looked_at_at_the_earliest_time_that_was_asked_for() -> None:
    timers: Timers[str] = Timers()
    timers.arm("a", 5.0)
    timers.arm("a", 9.0)
    assert timers.next_deadline() == 5.0

    timers.arm("a", 2.0)
    assert (timers.pop_due(2.0), timers.pop_due(9.0), timers.next_deadline()) == ("a", None, None)


def test_a_dropped_key_never_comes_due() -> None:
    timers: Timers[str] = Timers()
    timers.arm("a", 1.0)
    timers.drop("a")
    timers.drop("never armed")

    assert timers.pop_due(9.0) is None and len(timers) == 0


def test_a_key_armed_again_after_a_drop_counts_by_its_new_time() -> None:
    timers: Timers[str] = Timers()
    timers.arm("a", 1.0)
    timers.drop("a")
    timers.arm("a", 5.0)

    assert timers.pop_due(4.0) is None
    assert timers.pop_due(5.0) == "a"


def test_the_heap_keeps_no_more_than_a_share_of_what_was_dropped() -> None:
    timers: Timers[int] = Timers()
    for key in range(10_000):
        timers.arm(key, 600.0)
        timers.drop(key - 10)

    assert timers.entries <= 2 * len(timers) + 65


def test_the_heap_keeps_no_more_than_a_share_after_many_came_due_together() -> None:
    timers: Timers[int] = Timers()
    for key in range(1_000):
        timers.arm(key, 30.0)
        timers.arm(-key - 1, 600.0)
    for key in range(1_000):
        timers.drop(-key - 1)

    while timers.pop_due(30.0) is not None:
        pass

    assert timers.entries <= 2 * len(timers) + 65


def test_what_comes_due_leaves_the_heap_as_tidy_as_what_is_dropped() -> None:
    timers: Timers[str] = Timers()
    timers.arm("due", 1.0)
    for number in range(SLACK + 1):
        timers.arm(f"dropped {number}", 600.0)
        timers.drop(f"dropped {number}")

    assert timers.pop_due(1.0) == "due"
    assert timers.entries <= 2 * len(timers) + SLACK
