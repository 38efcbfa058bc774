"""The panel socket: who is let in, what is pushed, and that nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser

from accounts.models import User
from cluster import panel_consumer
from cluster.engine.board import SnapshotBoard
from cluster.panel_consumer import PanelConsumer
from tests.integration.pages.snapshots import snapshot, waiting, worker

Connect = Callable[..., WebsocketCommunicator]

ALICE = User(pk=1, email="alice@example.com")


@pytest.fixture
def board() -> SnapshotBoard:
    return SnapshotBoard()


@pytest.fixture
async def tab(board: SnapshotBoard) -> AsyncIterator[Connect]:
    """Opens tabs, and closes them after the test; none may leave a task or a waiter behind."""
    application = PanelConsumer.as_asgi(board=board)
    tabs: list[WebsocketCommunicator] = []

    def open_tab(query: str = "panels=workers", user: Any = ALICE) -> WebsocketCommunicator:
        communicator = WebsocketCommunicator(application, f"/ws/panels/?{query}", headers=[(b"host", b"h")])
        communicator.scope["user"] = user
        tabs.append(communicator)
        return communicator

    yield open_tab
    for communicator in tabs:
        await communicator.disconnect()
    assert board._waiters == set()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "panel-push"] == []


@pytest.mark.parametrize("user", [None, AnonymousUser()])
async def test_strangers_are_refused_before_the_handshake(tab: Connect, user: Any) -> None:
    assert await tab(user=user).connect() == (False, 4401)


async def test_somebody_switched_off_is_refused(tab: Connect) -> None:
    assert await tab(user=User(pk=2, email="b@example.com", is_active=False)).connect() == (False, 4401)


@pytest.mark.parametrize("query", ["", "panels=", "panels=workers,secrets", "panels=../base", "other=1"])
async def test_an_unknown_panel_is_refused(tab: Connect, query: str) -> None:
    assert await tab(query).connect() == (False, 4400)


async def test_a_tab_gets_its_panels_at_once_and_then_what_changes(tab: Connect, board: SnapshotBoard) -> None:
    board.publish(snapshot(1, worker("w-1"), taken_at_s=100.0))
    socket = tab("panels=summary,workers")
    await socket.connect()
    first = await socket.receive_from()
    assert 'id="panel-summary"' in first and 'id="panel-workers"' in first

    board.publish(snapshot(2, worker("w-1", running=3), taken_at_s=100.0))
    second = await socket.receive_from()

    assert "<b>3</b> of 64" in second
    assert 'id="panel-workers"' not in second


async def test_a_snapshot_that_changes_nothing_is_not_sent(tab: Connect, board: SnapshotBoard) -> None:
    board.publish(snapshot(1, worker("w-1"), taken_at_s=100.0))
    socket = tab()
    await socket.connect()
    await socket.receive_from()

    board.publish(snapshot(2, worker("w-1"), taken_at_s=100.0))

    assert await socket.receive_nothing()


async def test_a_tab_never_sees_the_requests_of_others(tab: Connect, board: SnapshotBoard) -> None:
    board.publish(snapshot(1, head=(waiting(1, "u:1"), waiting(2, "u:2", "bob@example.com"))))
    socket = tab("panels=queue")
    await socket.connect()

    html = await socket.receive_from()

    assert "req-1-1" in html
    assert "req-2-2" not in html and "bob" not in html


async def test_what_a_tab_says_is_ignored(tab: Connect, board: SnapshotBoard) -> None:
    socket = tab()
    await socket.connect()
    await socket.receive_from()

    await socket.send_to(text_data="{" * 10_000)
    await socket.send_to(bytes_data=b"\xff\x00")
    board.publish(snapshot(1, worker("w-still-here")))

    assert "w-still-here" in await socket.receive_from()


async def test_a_slow_tab_skips_versions_and_ends_with_the_latest(board: SnapshotBoard) -> None:
    # Given a tab whose socket takes one message and then is full
    sent: list[str] = []
    full, room = asyncio.Event(), asyncio.Event()
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    inbox.put_nowait({"type": "websocket.connect"})

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            sent.append(message["text"])
            full.set()
            await room.wait()

    scope = {"type": "websocket", "query_string": b"panels=workers", "headers": [], "user": ALICE}
    running = asyncio.create_task(PanelConsumer.as_asgi(board=board)(scope, inbox.get, send))
    await full.wait()

    # When many snapshots come while it is full
    for version in range(1, 101):
        board.publish(snapshot(version, worker("w", running=version)))
        await asyncio.sleep(0)
    full.clear()
    room.set()
    await full.wait()

    # Then it is sent the last of them, and only that
    assert len(sent) == 2
    assert "<b>100</b> of 64" in sent[1]
    inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await running


async def test_a_socket_that_breaks_mid_send_ends_quietly(
    board: SnapshotBoard, caplog: pytest.LogCaptureFixture
) -> None:
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    inbox.put_nowait({"type": "websocket.connect"})

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            raise ConnectionResetError

    scope = {"type": "websocket", "query_string": b"panels=workers", "headers": [], "user": ALICE}
    await PanelConsumer.as_asgi(board=board)(scope, inbox.get, send)

    assert caplog.records == []
    assert board._waiters == set()


async def test_a_panel_that_cannot_be_drawn_closes_the_socket_for_a_retry(
    tab: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.panels.render_to_string", lambda *_: 1 / 0)
    socket = tab()
    await socket.connect()

    assert await socket.receive_output() == {"type": "websocket.close", "code": 1012}
    assert "Drawing panels failed" in caplog.text


async def test_a_socket_is_closed_after_its_life_so_that_the_tab_is_authenticated_anew(
    tab: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_consumer, "LIFE_S", 0.01)
    socket = tab()
    await socket.connect()
    await socket.receive_from()

    assert await socket.receive_output() == {"type": "websocket.close", "code": 1012}
