"""The shell around the Scheduler: it stamps time, keeps the timer, sends the commands.

The Scheduler decides and returns; this file only carries out. A command may cause an event in the
same stack (a fenced stream answers at once), so events wait in line until the commands of the one
before them are sent: the Scheduler is never entered twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from cluster.brokers.base import Broker
from cluster.scheduler.core import Scheduler
from cluster.scheduler.events import Event, LoopPaused, Tick

log = logging.getLogger(__name__)

MAX_SLEEP_S = 0.25
"""The timer never sleeps longer, so a deadline that was mis-stated costs this much at most."""
SNAPSHOT_DELAY_S = 0.05
SNAPSHOT_INTERVAL_S = 0.5
SNAPSHOT_IDLE_S = 2.0
PAUSED_S = 2.5
"""A tick that comes so late means that this process did not run."""


class Dispatcher:
    """Owns the Scheduler of the cluster while it is the active dispatcher."""

    def __init__(self, scheduler: Scheduler, broker: Broker, *, paused_s: float = PAUSED_S) -> None:
        self.scheduler = scheduler
        self._paused_s = paused_s
        self.last_tick_at_s = 0.0
        """When the last tick was (monotonic): how `/readyz` knows that the loop turns."""
        self.lag_s = 0.0
        """How late the last tick was: how busy the loop is."""
        self._due_at_s = float("inf")
        self._broker = broker
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._snapshot_timer: asyncio.TimerHandle | None = None
        self._snapshot_at_s = float("-inf")
        self._changed = False
        self._version = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to tick on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._tick()

    def stop(self) -> None:
        """Stop ticking; events are still handled, but nothing is due any more."""
        for timer in (self._timer, self._snapshot_timer):
            if timer is not None:
                timer.cancel()
        self._loop = None

    def receive(self, event: Event) -> None:
        """Handle an event and send what follows from it."""
        if self._busy:
            self._inbox.append(event)
        else:
            self._handle(event)
            if not self._changed:
                self._note_change()

    def _handle(self, event: Event) -> bool:
        """Handle an event and all that come of it; return whether anything came of it."""
        acted = False
        inbox = self._inbox
        self._busy = True
        try:
            while True:
                if commands := self.scheduler.handle(event, time.monotonic()):
                    self._broker.publish_commands(commands)
                    acted = True
                if not inbox:
                    return acted
                event = inbox.popleft()
        finally:
            self._busy = False

    def _tick(self) -> None:
        if self._loop is None:
            return
        now = time.monotonic()
        self.lag_s = max(0.0, now - self._due_at_s)
        # Timers come before sockets when a process wakes up. What workers sent meanwhile is still
        # unread, so nobody may be judged by how long ago they were heard.
        paused = self.lag_s > self._paused_s
        if paused:
            log.warning("this process was paused for %.1f s: heartbeat windows begin anew", self.lag_s)
        try:
            if self._handle(LoopPaused(self.lag_s) if paused else Tick()):
                self._note_change()
        except Exception:
            # A bug in one decision must not stop time for everybody else.
            log.exception("the scheduler failed on a tick")
        now = time.monotonic()
        self.last_tick_at_s = now
        if self._snapshot_timer is None:
            # Silence is news too: a worker may have turned suspect since the last snapshot.
            self._schedule_snapshot(SNAPSHOT_IDLE_S)
        deadline = self.scheduler.next_deadline()
        delay_s = MAX_SLEEP_S if deadline is None else min(MAX_SLEEP_S, max(0.001, deadline - now))
        self._due_at_s = now + delay_s
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _note_change(self) -> None:
        if not self._changed:
            self._changed = True
            self._schedule_snapshot(SNAPSHOT_DELAY_S)

    def _schedule_snapshot(self, delay_s: float) -> None:
        if self._loop is None:
            return
        if self._snapshot_timer is not None:
            self._snapshot_timer.cancel()
        due = max(self._loop.time() + delay_s, self._snapshot_at_s + SNAPSHOT_INTERVAL_S)
        self._snapshot_timer = self._loop.call_at(due, self._publish_snapshot)

    def _publish_snapshot(self) -> None:
        if self._loop is None:
            return
        self._snapshot_timer = None
        self._changed = False
        self._snapshot_at_s = self._loop.time()
        self._version += 1
        snapshot = self.scheduler.snapshot(time.monotonic(), version=self._version, wall_s=time.time())
        self._broker.publish_snapshot(snapshot)
