"""What the scheduler costs: events per second, and how the cost grows.

    python -m tests.benchmarks.scheduler

The headline is a steady state with 1,000 workers, every slot taken, and 10,000 tasks in line: each
turn a task ends, the next in line takes its slot and starts, and another joins the line. The tables
vary one size at a time; a cost that grows no faster than log n is a column that hardly moves. Then come
the single events that could be dear: an end on a worker whose free KV cache is too small for most who
wait, and the loss of a worker. Last, memory over a million tasks of ever new tenants.

A run is recorded once and replayed on a fresh scheduler for the clock, so that what is timed is the
scheduler and not the making of events. It decides alike every time, for it has no clock or luck of
its own. Figures are CPU time, the median of several replays.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import time
from collections import deque

import msgspec

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
    WorkerLost,
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
    """Print the headline, the tables, the dear events and the memory."""
    print(f"scheduler events/s: {1 / _steady_s(workers=1_000, queued=10_000):,.0f}  (1,000 workers, 10,000 in line)")
    print(f"a task on an idle worker, three events: {3 * _idle_s() * 1e6:.1f} µs")
    print("µs per event by tasks in line, 100 workers:")
    for queued in (100, 1_000, 10_000):
        print(f"  {queued:>6,}  {_steady_s(workers=100, queued=queued) * 1e6:6.2f}")
    print("µs per event by workers, 1,000 tasks in line:")
    for workers in (10, 100, 1_000):
        print(f"  {workers:>6,}  {_steady_s(workers=workers, queued=1_000) * 1e6:6.2f}")
    print("µs for an end on a worker with little KV free, by tenants in line; none fits, the last fits:")
    for tenants in (100, 1_000, 10_000):
        none, last = _tight_end_s(tenants, fits=False), _tight_end_s(tenants, fits=True)
        print(f"  {tenants:>6,}  {none * 1e6:6.1f} {last * 1e6:6.1f}")
    print(f"µs for the loss of a worker, 10,000 in line from 500 tenants: {_loss_s() * 1e6:.1f}")
    early, late = _memory_bytes(1_000_000)
    print(f"memory after 100,000 tasks and after 1,000,000: {early / 2**20:.1f} MiB, {late / 2**20:.1f} MiB")


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


def _tight_end_s(tenants: int, *, fits: bool) -> float:
    """Return the seconds that an end takes where most who wait need more KV cache than there is."""
    times = []
    for _ in range(REPLAYS):
        scheduler = _scheduler()
        scheduler.handle(WorkerJoined(_worker(0, kv_tokens=1_000), "node-1", "lnk_1"), 0.0)
        for name, tokens in (("long", 800), ("short", 100)):
            scheduler.handle(TaskSubmitted(_task(name, name, tokens)), 0.0)
        for number in range(tenants):
            small = fits and number == tenants - 1
            scheduler.handle(TaskSubmitted(_task(f"req_{number}", f"tenant-{number}", 150 if small else 300)), 0.0)
        started = time.perf_counter()
        scheduler.handle(AttemptFinished("short", 1, "wrk_0", 50), 1.0)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _loss_s() -> float:
    """Return the seconds that the loss of one of a hundred workers takes, beside a long queue."""
    times = []
    for _ in range(REPLAYS):
        scheduler = _scheduler()
        for number in range(100):
            scheduler.handle(WorkerJoined(_worker(number), "node-1", "lnk_1"), 0.0)
        for number in range(10_000 + 100 * CAPACITY):
            task = _task(f"req_{number}", f"tenant-{number % 500}", 100, model=MODELS[number % 2])
            scheduler.handle(TaskSubmitted(task), 0.0)
        started = time.perf_counter()
        scheduler.handle(WorkerLost("wrk_0", "lnk_1", "closed"), 1.0)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _memory_bytes(tasks: int) -> tuple[int, int]:
    """Return the process's memory after a tenth of so many tasks, and after all of them."""
    scheduler = _scheduler()
    for number in range(10):
        scheduler.handle(WorkerJoined(_worker(number), "node-1", "lnk_1"), 0.0)
    running: deque[AssignTask] = deque()
    early = 0
    for number in range(tasks):
        now = number * STEP_S
        event = TaskSubmitted(_task(f"req_{number}", f"tenant-{number // 10}", 100, model=MODELS[number % 2]))
        running += [command for command in scheduler.handle(event, now) if isinstance(command, AssignTask)]
        if len(scheduler.tasks) > 200:
            done = running.popleft()
            ended = AttemptFinished(done.task.id, done.attempt, done.worker_id, 60)
            running += [command for command in scheduler.handle(ended, now) if isinstance(command, AssignTask)]
        if number % 5_000 == 0:
            for worker in range(10):
                scheduler.handle(HeartbeatReceived(f"wrk_{worker}", "lnk_1", READING), now)
        if number == tasks // 10:
            early = _resident_bytes()
    return early, _resident_bytes()


def _resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _task(name: str, tenant: str, tokens: int, *, model: str = MODELS[0]) -> Task:
    return Task(
        id=name,
        model=model,
        tenant=tenant,
        tenant_label="",
        tier=Tier.DEFAULT,
        node="node-1",
        prompt_tokens=tokens - GENERATION.max_tokens // 2,
        generation=msgspec.structs.replace(GENERATION, max_tokens=GENERATION.max_tokens // 2),
    )


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


def _worker(number: int, *, kv_tokens: int = KV_BYTES // KV_BYTES_PER_TOKEN) -> WorkerSpec:
    """Return a worker; every other one serves two of the models only."""
    models = MODELS if number % 2 else MODELS[:2]
    return WorkerSpec(
        id=f"wrk_{number}",
        name=f"worker-{number}",
        instance="i-1",
        gpu=GpuInfo(name="H100"),
        models=tuple(ModelOffer(id=m, context_tokens=8192, kv_bytes_per_token=KV_BYTES_PER_TOKEN) for m in models),
        capacity=CAPACITY,
        kv_bytes=kv_tokens * KV_BYTES_PER_TOKEN,
    )


if __name__ == "__main__":
    main()
