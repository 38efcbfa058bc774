"""What a live panel is and how it becomes HTML; no sockets and no database here.

A panel is a name, a template and a function from a snapshot to a *view*: a frozen value with just
what the template shows. Equal views give equal HTML, so a view is rendered once however many tabs
look at it, and a tab is sent a panel only when its view changed. The first paint of a page goes
through the same functions (see `templatetags.live`), so pages are right without JavaScript.

To add a panel: a template in `templates/cluster/panels/`, a view here, one line in `PANELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from django.conf import settings
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from cluster.domain import ClusterSnapshot, WorkerStatus, WorkerView

ROWS_SHOWN = 20
BACKLOG_S = 5.0
"""A first request that has waited longer than this makes the cluster "backlogged"."""


class Audience(msgspec.Struct, frozen=True):
    """Who looks at a panel: all that may make two people see different HTML."""

    tenant: str
    staff: bool
    origin: str
    """Where the site was reached, for commands to copy: `http://127.0.0.1:8000`."""


class WorkerCard(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as its card shows it, rounded so that invisible noise repaints nothing."""

    id: str
    name: str
    status: str
    gpu: str
    gpus: int
    models: tuple[str, ...]
    running: int
    capacity: int
    busy_pct: int
    simulated: bool
    tokens_per_s: int
    utilization_pct: int
    power_w: int
    temperature_c: int
    vram_used_bytes: int
    vram_total_bytes: int
    weights_pct: float
    kv_pct: float
    heartbeat_at: float


class WorkersView(msgspec.Struct, frozen=True):
    """The fleet, and what an empty one should teach."""

    cards: tuple[WorkerCard, ...]
    staff: bool
    origin: str


class Lane(msgspec.Struct, frozen=True):
    """One tier of the queue."""

    tier: str
    depth: int
    oldest_at: float | None


class WaitingRow(msgspec.Struct, frozen=True):
    """One waiting task; the tenant's label is empty for everybody but staff."""

    task: str
    model: str
    tier: str
    position: int
    since: float
    tenant_label: str


class QueueView(msgspec.Struct, frozen=True):
    """The queue by tier, and the first waiting tasks that this audience may see."""

    lanes: tuple[Lane, ...]
    rows: tuple[WaitingRow, ...]
    more: int
    staff: bool


class SummaryView(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster in a handful of figures."""

    workers: int
    online: int
    running: int
    capacity: int
    waiting: int
    oldest_at: float | None
    tokens_per_s: int
    health: str
    word: str
    """The health as a status class of the stylesheet: online, suspect, busy or offline."""


View = WorkersView | QueueView | SummaryView


class Panel(msgspec.Struct, frozen=True):
    """One live region of a page, with the DOM id `panel-<name>`."""

    name: str
    view: Callable[[ClusterSnapshot, Audience], View]

    @property
    def template(self) -> str:
        """The template that draws the view; it gets `view` and, for the fleet, drawn `cards`."""
        return f"cluster/panels/{self.name}.html"


class Painting(msgspec.Struct, frozen=True):
    """A panel drawn for one audience from one snapshot."""

    html: str
    layout: object
    """What the panel shows apart from its parts; when it changes, the whole is sent."""
    parts: Mapping[str, str]
    """The pieces that can be swapped alone, by DOM id."""

    def changes_since(self, shown: Painting | None) -> str:
        """Return the fragments that turn what a tab shows into this; empty when it is the same."""
        if shown is None or shown.layout != self.layout:
            return self.html
        return "".join(html for part, html in self.parts.items() if shown.parts[part] != html)


class Painter:
    """Draws panels, each at most once per (panel, audience, snapshot), and reuses equal pieces.

    One per board, used from that board's event loop. It keeps only what the newest snapshot and
    the one before it needed, so it cannot grow with time.
    """

    def __init__(self) -> None:
        self._snapshot: ClusterSnapshot | None = None
        self._paintings: dict[tuple[str, Audience], Painting] = {}
        self._drawn: dict[tuple[str, object], SafeString] = {}
        self._drawn_before: dict[tuple[str, object], SafeString] = {}

    def paint(self, name: str, snapshot: ClusterSnapshot, audience: Audience) -> Painting:
        """Draw one panel."""
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._paintings = {}
            self._drawn_before, self._drawn = self._drawn, {}
        key = (name, audience)
        if key not in self._paintings:
            self._paintings[key] = self._paint(PANELS[name], snapshot, audience)
        return self._paintings[key]

    def _paint(self, panel: Panel, snapshot: ClusterSnapshot, audience: Audience) -> Painting:
        view = panel.view(snapshot, audience)
        if not isinstance(view, WorkersView):
            return Painting(self._draw(panel.template, view), layout=view, parts={})
        parts = {f"worker-{card.id}": self._draw("cluster/panels/worker.html", card) for card in view.cards}
        html = render_to_string(panel.template, {"view": view, "cards": mark_safe("".join(parts.values()))})
        return Painting(html, layout=(*parts, view.staff, view.origin), parts=parts)

    def _draw(self, template: str, view: object) -> SafeString:
        key = (template, view)
        html = self._drawn.get(key) or self._drawn_before.get(key) or render_to_string(template, {"view": view})
        self._drawn[key] = html
        return html


def get_snapshot(request: HttpRequest) -> ClusterSnapshot:
    """Return the newest snapshot, or an empty one where no cluster runs (WSGI, test client)."""
    board = getattr(request, "scope", {}).get("gpucloud.board")
    return board.latest if board is not None else ClusterSnapshot()


def audience_for(user: Any, *, host: str, secure: bool) -> Audience:
    """Return the audience that a logged-in user is, reached under this host."""
    # The tenant is spelled as in `accounts.selectors`, which this app may not import.
    return Audience(tenant=f"u:{user.pk}", staff=bool(user.is_staff), origin=origin_of(host, secure=secure))


def origin_of(host: str, *, secure: bool) -> str:
    """Return where the site is reached: its public URL if it has one, else the request's host."""
    return settings.PUBLIC_URL or f"{'https' if secure else 'http'}://{host}"


def view_workers(snapshot: ClusterSnapshot, audience: Audience) -> WorkersView:
    """Show every worker to everybody: a worker's card holds nothing of any tenant."""
    ranked = sorted(snapshot.workers, key=lambda worker: (worker.name, worker.id))
    cards = tuple(_card(worker, snapshot.taken_at_s) for worker in ranked)
    return WorkersView(cards, staff=audience.staff, origin=audience.origin)


def view_queue(snapshot: ClusterSnapshot, audience: Audience) -> QueueView:
    """Show depths to everybody, and tasks to staff and to the tenant they belong to."""
    lanes = tuple(
        Lane(lane.tier.word, lane.depth, _since(snapshot, lane.oldest_wait_s) if lane.depth else None)
        for lane in sorted(snapshot.tiers, key=lambda lane: lane.tier)
    )
    visible = [task for task in snapshot.head if audience.staff or task.tenant == audience.tenant]
    visible.sort(key=lambda task: (task.tier, -task.waited_s))
    rows = tuple(
        WaitingRow(
            task=task.task,
            model=task.model,
            tier=task.tier.word,
            position=task.position,
            since=_since(snapshot, task.waited_s),
            tenant_label=task.tenant_label if audience.staff else "",
        )
        for task in visible[:ROWS_SHOWN]
    )
    return QueueView(lanes, rows, more=len(visible) - len(rows), staff=audience.staff)


def view_summary(snapshot: ClusterSnapshot, audience: Audience) -> SummaryView:
    """Show the cluster's figures, the same for everybody."""
    waits = [lane.oldest_wait_s for lane in snapshot.tiers if lane.depth]
    online = sum(worker.status in (WorkerStatus.ONLINE, WorkerStatus.BUSY) for worker in snapshot.workers)
    health, word = _health(online, len(snapshot.workers), max(waits, default=0.0))
    return SummaryView(
        workers=len(snapshot.workers),
        online=online,
        running=snapshot.running,
        capacity=snapshot.capacity,
        waiting=snapshot.waiting,
        oldest_at=_since(snapshot, max(waits)) if waits else None,
        tokens_per_s=round(sum(worker.tokens_per_s for worker in snapshot.workers)),
        health=health,
        word=word,
    )


PANELS: Mapping[str, Panel] = {
    panel.name: panel
    for panel in (
        Panel("pill", view_summary),
        Panel("summary", view_summary),
        Panel("workers", view_workers),
        Panel("queue", view_queue),
    )
}


def parse_names(text: str) -> tuple[str, ...] | None:
    """Return the panels named in a comma-separated list, or None if one of them is unknown."""
    names = tuple(dict.fromkeys(text.split(",")))
    return names if all(name in PANELS for name in names) else None


def _card(worker: WorkerView, taken_at_s: float) -> WorkerCard:
    reading = worker.reading
    total = reading.vram_total_bytes or worker.gpu.vram_total_bytes
    return WorkerCard(
        id=worker.id,
        name=worker.name,
        status=worker.status.value,
        gpu=worker.gpu.name,
        gpus=worker.gpu.count,
        models=worker.models,
        running=worker.running,
        capacity=worker.capacity,
        busy_pct=round(100 * worker.running / max(worker.capacity, 1)),
        simulated=worker.simulated,
        tokens_per_s=round(worker.tokens_per_s),
        utilization_pct=round(100 * reading.utilization),
        power_w=round(reading.power_w),
        temperature_c=round(reading.temperature_c),
        vram_used_bytes=reading.vram_weights_bytes + reading.vram_kv_bytes,
        vram_total_bytes=total,
        weights_pct=_share_pct(reading.vram_weights_bytes, total),
        kv_pct=_share_pct(reading.vram_kv_bytes, total),
        heartbeat_at=round(taken_at_s - worker.heartbeat_age_s, 1),
    )


def _since(snapshot: ClusterSnapshot, waited_s: float) -> float:
    return round(snapshot.taken_at_s - waited_s, 1)


def _share_pct(part: int, whole: int) -> float:
    return min(100.0, round(100 * part / whole, 1)) if whole else 0.0


def _health(online: int, workers: int, oldest_wait_s: float) -> tuple[str, str]:
    if not online:
        return "no worker online", "offline"
    if oldest_wait_s > BACKLOG_S:
        return "backlogged", "busy"
    if online < workers:
        return "degraded", "suspect"
    return "healthy", "online"
