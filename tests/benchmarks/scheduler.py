"""What the scheduler costs: events per second, and how the cost grows.

    python -m tests.benchmarks.scheduler

The headline is a steady state with 1,000 workers, every slot taken, and 10,000 tasks in line: each
turn a task ends, the next in line takes its slot and starts, and another joins the line. The tables
vary one size at a time; a cost that grows no faster than log n is a column that hardly moves.

A run is recorded once and replayed on a fresh scheduler for the clock, so that what is timed is the
scheduler and not the making of events. It decides alike every time, for it has no clock or luck of
its own. Figures are CPU time, the median of several replays.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections import deque

from cluster.domain import Generation, GpuInfo, GpuReading, Message, ModelOffer, Task, Tier, WorkerSpec
from cluster.scheduler.commands import AssignTask
from cluster.scheduler.core import Scheduler, Settings
from cluster.scheduler.events import (
    AttemptFinished,
    AttemptStarted,
    Event,
    HeartbeatReceived,
    TaskSubmitted,
    WorkerJoined,
)

MODELS = ("llama-3-8b", "llama-3-70b", "mistral-7b", "mixtral-8x7b")
TENANTS = 50
CAPACITY = 8
KV_BYTES_PER_TOKEN = 131_072
KV_BYTES = 40 * 10**9
SETTINGS = Settings(queue_timeout_s=1e6, total_timeout_s=2e6, max_waiting=1_000_000, max_waiting_share=1.0)
STEP_S = 0.0002
"""Time that passes per event, so that the timers have their share of the work."""
GENERATION = Generation(messages=(Message("user", "hello"),), max_tokens=100, seed=1)
READING = GpuReading()
TURNS = 10_000
REPLAYS = 5

Script = list[tuple[Event, float]]


class Recorder:
    """Plays the world around a scheduler and writes down what it told it, and when."""

    def __init__(self, *, workers: int) -> None:
        self.script: Script = []
        self.running: deque[AssignTask] = deque()
        self._random = random.Random(1)
        self._scheduler = _scheduler()
        self._tasks = 0
        self._workers = [_worker(number) for number in range(workers)]
        for worker in self._workers:
            self._tell(WorkerJoined(worker, "node-1", "lnk_1"))

    def fill(self, *, queued: int) -> None:
        """Take every slot and let `queued` tasks wait."""
        for _ in range(len(self._workers) * CAPACITY + queued):
            self._submit()

    def turn(self) -> None:
        """Let the oldest attempt end, the next task start, and another one join the line."""
        done = self.running.popleft()
        self._tell(AttemptFinished(done.task.id, done.attempt, done.worker_id))
        started = self.running[-1]
        self._tell(AttemptStarted(started.task.id, started.attempt))
        self._submit()

    def visit(self) -> None:
        """Let a task come to an idle cluster and go."""
        self._submit()
        task = self.running.pop()
        self._tell(AttemptStarted(task.task.id, task.attempt))
        self._tell(AttemptFinished(task.task.id, task.attempt, task.worker_id))

    def _submit(self) -> None:
        self._tasks += 1
        task = Task(
            id=f"req_{self._tasks}",
            model=self._random.choice(MODELS),
            tenant=f"tenant-{self._random.randrange(TENANTS)}",
            tenant_label="",
            tier=self._random.choice((Tier.DEFAULT, Tier.FLEX)),
            node="node-1",
            prompt_tokens=self._random.randrange(10, 400),
            generation=GENERATION,
        )
        self._tell(TaskSubmitted(task))

    def _tell(self, event: Event) -> None:
        if self.script and len(self.script) % 25_000 == 0:
            # Often enough in scripted time for nobody to fall silent.
            for worker in self._workers:
                self._note(HeartbeatReceived(worker.id, "lnk_1", READING))
        self._note(event)

    def _note(self, event: Event) -> None:
        now = len(self.script) * STEP_S
        self.script.append((event, now))
        commands = self._scheduler.handle(event, now)
        self.running += [command for command in commands if isinstance(command, AssignTask)]


def main() -> None:
    """Print the headline and the tables."""
    print(f"scheduler events/s: {1 / _steady_s(workers=1_000, queued=10_000):,.0f}  (1,000 workers, 10,000 in line)")
    print(f"a task on an idle worker, three events: {3 * _idle_s() * 1e6:.1f} µs")
    print("µs per event by tasks in line, 100 workers:")
    for queued in (100, 1_000, 10_000):
        print(f"  {queued:>6,}  {_steady_s(workers=100, queued=queued) * 1e6:6.2f}")
    print("µs per event by workers, 1,000 tasks in line:")
    for workers in (10, 100, 1_000):
        print(f"  {workers:>6,}  {_steady_s(workers=workers, queued=1_000) * 1e6:6.2f}")


def _steady_s(*, workers: int, queued: int) -> float:
    recorder = Recorder(workers=workers)
    recorder.fill(queued=queued)
    filled = len(recorder.script)
    for _ in range(TURNS):
        recorder.turn()
    return _replay_s(recorder.script, filled)


def _idle_s() -> float:
    recorder = Recorder(workers=10)
    joined = len(recorder.script)
    for _ in range(TURNS):
        recorder.visit()
    return _replay_s(recorder.script, joined)


def _replay_s(script: Script, setup: int) -> float:
    """Return the CPU seconds per event of the script after its first `setup` events."""
    return statistics.median(_replay_once_s(script, setup) for _ in range(REPLAYS))


def _replay_once_s(script: Script, setup: int) -> float:
    scheduler = _scheduler()
    for event, now in script[:setup]:
        scheduler.handle(event, now)
    timed = script[setup:]
    gc.collect()
    gc.freeze()
    started = time.process_time()
    for event, now in timed:
        scheduler.handle(event, now)
        scheduler.next_deadline()
    spent_s = time.process_time() - started
    gc.unfreeze()
    return spent_s / len(timed)


def _scheduler() -> Scheduler:
    return Scheduler(SETTINGS, random.Random(1), now=0.0)


def _worker(number: int) -> WorkerSpec:
    """Return a worker; every other one serves two of the models only."""
    models = MODELS if number % 2 else MODELS[:2]
    return WorkerSpec(
        id=f"wrk_{number}",
        name=f"worker-{number}",
        instance="i-1",
        gpu=GpuInfo(name="H100"),
        models=tuple(ModelOffer(id=m, context_tokens=8192, kv_bytes_per_token=KV_BYTES_PER_TOKEN) for m in models),
        capacity=CAPACITY,
        kv_bytes=KV_BYTES,
    )


if __name__ == "__main__":
    main()
