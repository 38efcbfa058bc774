"""What panels show to whom, and that nothing is drawn or sent twice."""

from __future__ import annotations

from typing import Any

import pytest
from django.template.loader import render_to_string

from cluster import panels
from cluster.domain import ClusterSnapshot, Tier, WorkerStatus
from cluster.panels import Audience, Painter, view_queue, view_summary, view_workers
from tests.integration.pages.snapshots import snapshot, waiting, worker

ALICE = Audience(tenant="u:1", staff=False, origin="http://h")
BOB = Audience(tenant="u:2", staff=False, origin="http://h")
OPERATOR = Audience(tenant="u:3", staff=True, origin="http://h")

QUEUE = (waiting(1, "u:1", "alice@example.com"), waiting(2, "u:2", "bob@example.com"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The templates rendered so far."""
    templates: list[str] = []

    def render_and_note(template: str, context: dict[str, Any]) -> str:
        templates.append(template)
        return render_to_string(template, context)

    monkeypatch.setattr(panels, "render_to_string", render_and_note)
    return templates


def test_people_see_their_own_waiting_requests_and_no_label_of_others() -> None:
    html = Painter().paint("queue", snapshot(1, head=QUEUE), ALICE).html

    assert "req-1-1" in html
    assert "req-2-2" not in html
    assert "example.com" not in html


def test_staff_see_every_waiting_request_with_its_tenant() -> None:
    html = Painter().paint("queue", snapshot(1, head=QUEUE), OPERATOR).html

    assert "req-1-1" in html and "req-2-2" in html
    assert "alice@example.com" in html and "bob@example.com" in html


def test_the_depth_of_the_queue_is_everybodys_to_know() -> None:
    lanes = {lane.tier: lane.depth for lane in view_queue(snapshot(1, head=QUEUE), BOB).lanes}

    assert lanes == {"priority": 0, "default": 2, "flex": 0, "batch": 0}


def test_a_long_queue_is_cut_and_says_so() -> None:
    head = tuple(waiting(position) for position in range(1, 51))

    view = view_queue(snapshot(1, head=head), OPERATOR)

    assert len(view.rows) == panels.ROWS_SHOWN
    assert view.more == 50 - panels.ROWS_SHOWN
    assert view.rows[0].position == 1


def test_tiers_are_listed_in_the_order_they_are_served() -> None:
    assert [lane.tier for lane in view_queue(snapshot(1), BOB).lanes] == [tier.word for tier in Tier]


@pytest.mark.parametrize(
    ("workers", "wait_s", "health"),
    [
        ((), 0.0, "no worker online"),
        ((worker("a", status=WorkerStatus.OFFLINE),), 0.0, "no worker online"),
        ((worker("a"), worker("b", status=WorkerStatus.BUSY)), 0.0, "healthy"),
        ((worker("a"), worker("b", status=WorkerStatus.SUSPECT)), 0.0, "degraded"),
        ((worker("a"),), 6.0, "backlogged"),
    ],
)
def test_the_cluster_has_one_word_for_its_health(workers: Any, wait_s: float, health: str) -> None:
    head = (waiting(1),) if wait_s else ()
    now = snapshot(1, *workers, head=head)
    tiers = tuple(
        type(lane)(tier=lane.tier, depth=lane.depth, oldest_wait_s=wait_s if lane.depth else 0.0) for lane in now.tiers
    )

    assert view_summary(ClusterSnapshot(workers=now.workers, tiers=tiers), BOB).health == health


def test_a_worker_without_vram_or_capacity_is_no_division_by_zero() -> None:
    bare = worker("w", capacity=0, gpu=worker("x").gpu.__class__(name="?"), reading=type(worker("x").reading)())

    card = view_workers(snapshot(1, bare), BOB).cards[0]

    assert (card.weights_pct, card.kv_pct, card.busy_pct) == (0.0, 0.0, 0)


def test_a_new_snapshot_that_looks_the_same_sends_nothing() -> None:
    painter = Painter()
    first = snapshot(1, worker("w", heartbeat_age_s=1.0), taken_at_s=100.0)
    later = snapshot(2, worker("w", heartbeat_age_s=2.5), taken_at_s=101.5)

    for name in panels.PANELS:
        shown = painter.paint(name, first, BOB)
        assert painter.paint(name, later, BOB).changes_since(shown) == ""


def test_a_heartbeat_sends_only_its_own_card() -> None:
    painter = Painter()
    shown = painter.paint("workers", snapshot(1, worker("a"), worker("b"), taken_at_s=100.0), BOB)

    changed = snapshot(2, worker("a"), worker("b", tokens_per_s=7777.0), taken_at_s=100.0)
    html = painter.paint("workers", changed, BOB).changes_since(shown)

    assert html.startswith('<article class="card worker" id="worker-b"')
    assert "7,777" in html
    assert "worker-a" not in html


def test_a_worker_that_comes_or_goes_sends_the_whole_fleet() -> None:
    painter = Painter()
    shown = painter.paint("workers", snapshot(1, worker("a")), BOB)

    html = painter.paint("workers", snapshot(2, worker("a"), worker("b")), BOB).changes_since(shown)

    assert html.startswith('<section id="panel-workers"')


def test_tabs_of_one_audience_share_a_drawing_and_fleet_cards_are_shared_by_all(drawn: list[str]) -> None:
    painter = Painter()
    now = snapshot(1, worker("a"), worker("b"), head=QUEUE)

    for audience in (ALICE, ALICE, BOB, OPERATOR, OPERATOR):
        painter.paint("workers", now, audience)
        painter.paint("queue", now, audience)

    assert drawn.count("cluster/panels/worker.html") == 2
    assert drawn.count("cluster/panels/queue.html") == 3


def test_only_what_changed_is_drawn_again(drawn: list[str]) -> None:
    painter = Painter()
    fleet = [worker(f"w-{number}") for number in range(50)]
    painter.paint("workers", snapshot(1, *fleet, taken_at_s=100.0), BOB)
    drawn.clear()

    fleet[7] = worker("w-7", tokens_per_s=5.0)
    painter.paint("workers", snapshot(2, *fleet, taken_at_s=100.0), BOB)

    assert drawn.count("cluster/panels/worker.html") == 1


def test_the_painter_forgets_what_is_two_snapshots_old() -> None:
    painter = Painter()
    for version in range(100):
        painter.paint("workers", snapshot(version, worker(f"w-{version}")), BOB)

    assert len(painter._drawn) + len(painter._drawn_before) == 2
    assert len(painter._paintings) == 1
