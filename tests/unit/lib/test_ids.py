from __future__ import annotations

import os
import re
import time

import pytest

from gpucloud.lib import ids
from gpucloud.lib.ids import POOLED, make_id


def test_an_id_is_its_prefix_the_time_and_chance() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = make_id("req_")
    after_ms = time.time_ns() // 1_000_000

    assert re.fullmatch(r"req_[0-9a-f]{32}", made)
    assert before_ms <= int(made[4:16], 16) <= after_ms


def test_ids_made_later_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = time.time_ns()
    monkeypatch.setattr(ids.time, "time_ns", lambda: now_ns)
    first = make_id("req_")
    now_ns += 1_000_000

    assert first < make_id("req_")


def test_no_id_is_made_twice_and_chance_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.time, "time_ns", lambda: 0)

    made = [make_id("req_") for _ in range(5 * POOLED)]

    assert len(set(made)) == len(made)
    halves = [part for id in made for part in (id[-20:-10], id[-10:])]
    assert len(set(halves)) == len(halves), "ids overlap in what they drew"


def test_a_forked_child_does_not_make_its_parents_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.time, "time_ns", lambda: 0)
    make_id("req_")
    reads, writes = os.pipe()
    child = _fork_quietly()
    if child == 0:
        os.write(writes, " ".join(make_id("req_") for _ in range(50)).encode())
        os._exit(0)
    os.waitpid(child, 0)

    theirs = set(os.read(reads, 65_536).decode().split())
    ours = {make_id("req_") for _ in range(50)}
    os.close(reads)
    os.close(writes)

    assert len(theirs) == len(ours) == 50
    assert not theirs & ours


def _fork_quietly() -> int:
    """Fork although other threads may run: the child only makes ids."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
