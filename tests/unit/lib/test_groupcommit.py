from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from gpucloud.lib.groupcommit import GroupCommit, Ticket, TicketState, UnableToCommit, Unavailable


class Word(Ticket):
    text: str


class FakeWriter:
    """Keeps what it commits in memory, and waits at its gate when that is closed."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.away = False
        self.tidied = threading.Event()
        self.closed = False

    def write(self, batch: Sequence[Word]) -> None:
        self.entered.put(None)
        self.gate.wait(10)
        if self.away:
            raise Unavailable("gone fishing")
        texts = [word.text for word in batch]
        if "bad" in texts:
            raise ValueError("bad is not a word")
        self.batches.append(texts)

    def tidy(self) -> float:
        self.tidied.set()
        return 3600.0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writer() -> FakeWriter:
    return FakeWriter()


@pytest_asyncio.fixture
async def commit(writer: FakeWriter) -> AsyncIterator[GroupCommit[Word]]:
    commit = GroupCommit[Word](writer, name="test", timeout_s=0.05, retry_s=0.001)
    await commit.start()
    yield commit
    writer.gate.set()
    await commit.stop()


def put(commit: GroupCommit[Word], *texts: str) -> list[Word]:
    words = [Word(text) for text in texts]
    for word in words:
        commit.put(word)
    return words


async def test_what_is_queued_in_one_turn_shares_a_transaction(commit: GroupCommit[Word], writer: FakeWriter) -> None:
    words = put(commit, "a", "b", "c")

    await commit.wait(words[0])

    assert writer.batches == [["a", "b", "c"]]
    assert [word.state for word in words] == [TicketState.COMMITTED] * 3


async def test_what_comes_during_a_commit_is_the_next_batch(commit: GroupCommit[Word], writer: FakeWriter) -> None:
    writer.gate.clear()
    [first] = put(commit, "a")
    await asyncio.to_thread(writer.entered.get)
    later = put(commit, "b", "c")
    assert [word.state for word in (first, *later)] == [TicketState.TAKEN, TicketState.QUEUED, TicketState.QUEUED]

    writer.gate.set()
    await commit.wait(later[1])

    assert writer.batches == [["a"], ["b", "c"]]


async def test_a_bad_row_fails_alone_and_leaves_the_writer_healthy(
    commit: GroupCommit[Word], writer: FakeWriter
) -> None:
    a, bad, c = put(commit, "a", "bad", "c")

    await commit.wait(a)
    await commit.wait(c)
    with pytest.raises(UnableToCommit, match="ValueError: bad is not a word"):
        await commit.wait(bad)

    assert writer.batches == [["a"], ["c"]]
    assert commit.healthy


async def test_waiting_for_a_committed_row_returns_at_once(commit: GroupCommit[Word]) -> None:
    [word] = put(commit, "a")
    await commit.wait(word)

    await commit.wait(word)


async def test_several_may_wait_and_one_may_leave(commit: GroupCommit[Word], writer: FakeWriter) -> None:
    writer.gate.clear()
    [word] = put(commit, "a")
    stays = asyncio.create_task(commit.wait(word))
    leaves = asyncio.create_task(commit.wait(word))
    await asyncio.to_thread(writer.entered.get)

    leaves.cancel()
    writer.gate.set()
    await stays

    assert leaves.cancelled()
    assert writer.batches == [["a"]]


async def test_a_commit_that_takes_too_long_frees_its_waiters_and_is_made_all_the_same(
    commit: GroupCommit[Word], writer: FakeWriter
) -> None:
    writer.gate.clear()
    [slow] = put(commit, "slow")
    with pytest.raises(UnableToCommit, match=r"longer than 0.05 s"):
        await commit.wait(slow)
    [behind] = put(commit, "behind")
    with pytest.raises(UnableToCommit, match="does not answer"):
        await commit.wait(behind)
    assert not commit.healthy

    writer.gate.set()
    await commit.stop()

    assert writer.batches == [["slow"], ["behind"]]
    assert commit.healthy


async def test_rows_wait_while_the_database_is_away(writer: FakeWriter) -> None:
    commit = GroupCommit[Word](writer, name="test", timeout_s=10, retry_s=0.001)
    await commit.start()
    writer.away = True
    [word] = put(commit, "a")
    for _ in range(3):
        await asyncio.to_thread(writer.entered.get)
    assert not commit.healthy

    writer.away = False
    await commit.wait(word)

    assert commit.healthy
    assert writer.batches == [["a"]]
    await commit.stop()


async def test_stopping_while_the_database_is_away_refuses_what_is_queued(
    commit: GroupCommit[Word], writer: FakeWriter
) -> None:
    writer.away = True
    [word] = put(commit, "a")

    await commit.stop()

    with pytest.raises(UnableToCommit, match="gone fishing"):
        await commit.wait(word)
    assert writer.closed


async def test_stopping_writes_what_is_queued_and_later_rows_are_refused(
    commit: GroupCommit[Word], writer: FakeWriter
) -> None:
    put(commit, "a", "b")

    await commit.stop()
    [late] = put(commit, "late")

    assert writer.batches == [["a", "b"]]
    with pytest.raises(UnableToCommit, match="not running"):
        await commit.wait(late)


async def test_an_idle_writer_tidies_once_and_then_sleeps(commit: GroupCommit[Word], writer: FakeWriter) -> None:
    assert await asyncio.to_thread(writer.tidied.wait, 10)


async def test_housekeeping_that_fails_stops_nothing(writer: FakeWriter, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> float:
        writer.tidied.set()
        raise OSError("no space")

    writer.tidy = fail  # type: ignore[method-assign]
    commit = GroupCommit[Word](writer, name="test", timeout_s=10)
    await commit.start()
    await asyncio.to_thread(writer.tidied.wait, 10)

    [word] = put(commit, "a")
    await commit.wait(word)
    await commit.stop()

    assert "Housekeeping failed" in caplog.text
