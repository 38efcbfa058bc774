"""One simulated world: the product's data plane and engine in the middle, scripted workers and
clients around them, and a seed that decides all that happens.

A run has two phases. In the first, what `vocabulary` knows happens at random. In the second nothing
goes wrong any more, and within a bound everything that was begun must end. What must hold on the
way is checked here and where it shows; what must hold at the end is in `verdicts`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accounts.identity import Identity
from accounts.limiter import MemoryLimitStore
from cluster import consumers
from cluster.engine.gateway import Gateway
from cluster.engine.runtime import Runtime, RuntimeSettings
from cluster.engine.streams import TokenStream
from cluster.protocol.messages import Assign
from cluster.scheduler import events
from cluster.scheduler.commands import AnnounceAttempt, AssignTask, Command, FailTask
from cluster.scheduler.core import Scheduler
from cluster.scheduler.core import Settings as SchedulerSettings
from cluster.scheduler.events import Event
from cluster.services import WorkerCredential
from inference.completions import Completions
from inference.openai.endpoints import Endpoints
from inference.openai.routing import DataPlane
from inference.requestlog import RequestLog
from tests.simulation import vocabulary
from tests.simulation.clients import SimClient
from tests.simulation.ledger import COMMIT_S, SimLedger
from tests.simulation.loop import VirtualLoop
from tests.simulation.plan import Plan
from tests.simulation.wires import LATENCY_S, Wire
from tests.simulation.workers import POISON, PROBE, SimWorker, is_farewell

T = TypeVar("T")

HEARTBEAT_S = 1.0
SETTINGS = SchedulerSettings(
    queue_timeout_s=6.0,
    no_worker_grace_s=2.0,
    total_timeout_s=25.0,
    worker_stale_s=HEARTBEAT_S * 1.5,
    worker_silent_s=HEARTBEAT_S * 3.2,
    cancel_ack_s=0.5,
    max_waiting=60,
    aged_after_s=2.0,
    return_s=4.0,
    probe_after_s=1.0,
    probe_timeout_s=2.0,
    flap_window_s=12.0,
    quarantine_s=1.0,
    quarantine_longest_s=4.0,
)
"""The product's time-outs and bounds, cut down to the length of a run."""
STUCK_S = 8.0
CANCEL_S = 0.25
"""How long it may take from a client's departure until the cancel is on its way."""
SETTLE_S = 2 * SETTINGS.cancel_ack_s + 4 * HEARTBEAT_S
ROUTINE_UNCHECKED = 4
ROUTINE = (events.Tick, events.HeartbeatReceived)
"""What happens by itself, and is not counted as an event of a run."""


class WatchedScheduler(Scheduler):
    """The product's scheduler, looked at after every event."""

    world: World

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        self.world.on_handled(event, commands)
        return commands


class World:
    """All there is in a run."""

    def __init__(self, plan: Plan, *, log: list[str] | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.rng_of_product = random.Random(f"product {plan.seed}")
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(lambda _, context: self.violation(f"unhandled: {context}"))
        self.violations: list[str] = []
        self.faults: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        """What the scheduler has asked for, by kind."""
        self.events = 0
        self.faulty = True
        """Whether things may go wrong."""
        self.clients: list[SimClient] = []
        self.workers: list[SimWorker] = []
        self.refused: set[str] = set()
        """Tasks that may not be tried again: their worker has said so, or the budget for that was spent."""
        self.unanswered: set[tuple[str, int]] = set()
        """Cancels that a worker chose not to hear."""
        self.stalled: Counter[str] = Counter()
        """How many of a task's attempts were given up for want of progress: they may still be on their way."""
        self.poisoned: Counter[str] = Counter()
        """How many workers a task has killed."""
        self.ledger: Any = SimLedger(self)
        self._log = log
        self._fenced: dict[str, int] = {}
        self._unchecked = 0
        self._sockets: dict[asyncio.Task[None], None] = {}
        self._requests: dict[asyncio.Task[None], None] = {}

    async def run(self) -> None:
        """Play both phases."""
        self._build()
        await self.runtime.start()
        for number in range(self.plan.workers):
            self.workers.append(
                SimWorker(
                    self,
                    f"w{number}",
                    models=self.plan.models[number % 2 :] or self.plan.models,
                    capacity=self.rng.randint(1, 4),
                    kv_bytes=self.rng.choice((0, 100, 400)),
                )
            )
        await asyncio.sleep(0.1)
        while self.events < self.plan.events and not self.violations:
            self._happen()
            await asyncio.sleep(self.rng.expovariate(self.plan.pace_per_s))
        if not self.violations:
            await self._recover()

    async def stop(self) -> None:
        """Take the world apart; what was left in it has been looked at by now."""
        await self.runtime.stop()
        left = [*self._sockets, *self._requests]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    @property
    def gateway(self) -> Gateway:
        """The product's gateway."""
        return self.runtime.gateway

    @property
    def scheduler(self) -> Scheduler:
        """The product's scheduler."""
        return self.runtime.dispatcher.scheduler

    @property
    def present(self) -> list[SimClient]:
        """Clients that are there and not answered yet."""
        return [client for client in self.clients if not client.over and client.gone_at_s is None]

    def submit(self) -> None:
        """Let a client come."""
        number = len(self.clients) + 1
        poisonous = self.faulty and "crashes" in self.plan.kinds and self.rng.random() < 0.03
        body = {
            "model": self.rng.choice(self.plan.models),
            "messages": [{"role": "user", "content": f"{POISON if poisonous else ''}{number}"}],
            "max_tokens": self.rng.randint(1, 24),
            "seed": self.rng.randrange(1_000),
            "stream": self.rng.random() < 0.7,
            "service_tier": self.rng.choice(("auto", "auto", "default", "flex", "priority")),
        }
        client = SimClient(self, number, body, key=f"{self.rng.choice('aab')}-key")
        self.clients.append(client)
        self.note(client.id, f"comes: {body}")
        task = self.loop.create_task(client.run(), name=str(number))
        _keep(task, self._requests)

    def connect(self, worker: SimWorker) -> Wire:
        """Let a worker dial in; the far end of its wire is the product's own consumer."""
        wire = Wire(
            self.loop,
            on_frame=worker.on_frame,
            on_close=worker.on_close,
            on_hang_up=lambda wire, code, reason: self._on_hang_up(worker, wire, code, reason),
        )
        consumer = consumers.WorkerConsumer(gateway=self.gateway, authenticate=_let_in, hello_timeout_s=1.0)
        task = self.loop.create_task(consumer(wire.scope, wire.receive, wire.send))
        _keep(task, self._sockets)
        self.note(worker.name, "dials")
        return wire

    def pick(self, things: Sequence[T]) -> T | None:
        """Return one of them, or None if there is none."""
        return self.rng.choice(things) if things else None

    def pick_linked(self) -> SimWorker | None:
        """Return a worker that is at the gateway's service."""
        return self.pick([worker for worker in self.workers if worker.linked and not worker.frozen])

    def pick_busy(self) -> SimWorker | None:
        """Return a worker that has work and can speak."""
        return self.pick([worker for worker in self.workers if worker.jobs and worker.linked and not worker.frozen])

    def streams_served_by_others(self, worker: SimWorker) -> list[TokenStream]:
        """Return the streams that wait for tokens of somebody else."""
        streams = self.gateway.streams.values()
        return [stream for stream in streams if stream.worker_name not in ("", worker.name) and not stream.ended]

    def later(self, delay_s: float, call: Callable[[], Any]) -> None:
        """Have something happen after a while."""
        self.loop.call_later(delay_s, call)

    def mend_ledger(self) -> None:
        """Let commits be as fast as ever."""
        self.ledger.delay_s, self.ledger.healthy = COMMIT_S, True

    def tell(self, event: Event) -> None:
        """Publish an event of the product."""
        self.runtime.broker.publish_event(event)

    def note(self, who: str, what: str | Callable[[], str]) -> None:
        """Write a line of the run's log, if somebody wants to read it."""
        if self._log is not None:
            self._log.append(f"{self.loop.now - 1_000:9.4f}  {who:<8} {what if isinstance(what, str) else what()}")

    def violation(self, what: str) -> None:
        """Note that something happened which must not."""
        self.violations.append(what)
        self.note("!!!", what)

    def on_handled(self, event: Event, commands: list[Command]) -> None:
        """Look at the scheduler after an event, and at what it wants."""
        if not isinstance(event, ROUTINE):
            self.events += 1
            self.note("event", lambda: repr(event))
        for command in commands:
            self.commands[type(command).__name__] += 1
            self.note("command", command.__repr__)
            if isinstance(command, AssignTask) and command.resume_from:
                self.commands["AssignTask to resume"] += 1
            elif isinstance(command, FailTask) and self._budget_is_spent():
                self.refused.add(command.task_id)
        if not isinstance(event, ROUTINE):
            self._unchecked = 0
        elif not commands:
            self._unchecked += 1
        # What happens by itself and has no consequence is most of all, and looked at now and then.
        if self._unchecked % ROUTINE_UNCHECKED == 0:
            try:
                self.scheduler.check_invariants()
            except AssertionError as error:
                self.violation(f"after {type(event).__name__}: {error}")
        if isinstance(event, events.AttemptStalled):
            self.stalled[event.task_id] += 1
        if isinstance(event, events.AttemptFenced):
            self._fenced[event.task_id] = event.next_seq
        for command in commands:
            if isinstance(command, AnnounceAttempt):
                self._check_fence(command)

    def on_assigned(self, worker: SimWorker, assign: Assign) -> None:
        """Look at an assignment that a worker has begun."""
        if not worker.prompt:
            return
        attempts = [task for task, _ in worker.jobs if not task.startswith(PROBE)]
        if len(attempts) > worker.capacity:
            self.violation(f"{worker.name} was given {len(attempts)} attempts, it takes {worker.capacity}")
        # A cancel for another worker may be on its way as long as this assignment was.
        self.later(LATENCY_S, lambda: self._check_alone(assign.task))

    def on_left(self, client: SimClient) -> None:
        """Have it checked that the work for a client stops when it goes."""
        self.note(client.id, "leaves")
        self.later(CANCEL_S + LATENCY_S + 0.01, lambda: self._check_cancelled(client))

    def _budget_is_spent(self) -> bool:
        scheduler = self.scheduler
        return scheduler.retrying >= max(SETTINGS.retry_floor, SETTINGS.retry_share * scheduler.running)

    def _build(self) -> None:
        self.runtime = Runtime(
            RuntimeSettings(
                node="node-1",
                heartbeat_s=HEARTBEAT_S,
                hello_timeout_s=1.0,
                scheduler=SETTINGS,
                first_token_s=6.0,
                next_token_s=4.0,
                paused_s=1.0,
            )
        )
        self.scheduler.world = self  # type: ignore[attr-defined]
        completions = Completions(self.gateway, self.ledger, self.runtime.board, MemoryLimitStore())
        endpoints = Endpoints(
            completions, max_body_bytes=10_000, body_timeout_s=1.0, early_headers_s=1.0, stuck_s=STUCK_S
        )
        self.data_plane = DataPlane(endpoints, _Keyring(), RequestLog(enabled=False), lag_s=self.runtime.lag_s)  # type: ignore[arg-type]

    def _happen(self) -> None:
        """Let one thing happen."""
        if not self.plan.kinds or self.rng.random() < self.plan.calm_share:
            action: vocabulary.Action = vocabulary.submit
        else:
            kind = self.rng.choice(self.plan.kinds)
            action = self.rng.choice(vocabulary.FAULTS[kind])
        if action(self):
            name = action.__name__
            if action is not vocabulary.submit:
                self.faults[name] += 1
            self.note("world", name)

    async def _recover(self) -> None:
        """End all faults, and give what was begun the time it may take to end."""
        self.faulty = False
        self.note("world", "no more faults")
        self.mend_ledger()
        vocabulary.withdraw_intents(self)
        for client in self.clients:
            client.read_on()
            client.leave_after_tokens = None
        for worker in self.workers:
            worker.thaw()
            worker.stalled = worker.deaf = False
            worker.slowness = 1.0
            if (wire := worker.wire) is not None:
                if wire.half_open or wire.down or wire.latency_s > HEARTBEAT_S:
                    worker.lose_link()
                wire.latency_s, wire.duplicate_next, wire.delay_next_s = LATENCY_S, False, 0.0
        if self._requests:
            await asyncio.wait(self._requests, timeout=SETTINGS.total_timeout_s + SETTLE_S)
        await asyncio.sleep(SETTLE_S)

    def _check_fence(self, announced: AnnounceAttempt) -> None:
        """What a stream has said when it was fenced must still be true when the next attempt begins."""
        said = self._fenced.pop(announced.task_id, None)
        stream = self.gateway.streams.get(announced.task_id)
        if said is not None and stream is not None and not stream.ended and stream.next_seq != said:
            self.violation(f"{announced.task_id} took tokens of a fenced attempt: {said} became {stream.next_seq}")

    def _check_alone(self, task_id: str) -> None:
        busy = [worker.name for worker in self.workers if worker.prompt and any(id == task_id for id, _ in worker.jobs)]
        if len(busy) > 1:
            self.violation(f"{task_id} runs on {' and '.join(busy)} at once")

    def _check_cancelled(self, client: SimClient) -> None:
        if self.runtime.lag_s() > CANCEL_S:
            # The server was paused meanwhile and has only just woken up: it is owed its time.
            self.later(CANCEL_S + LATENCY_S + 0.01, lambda: self._check_cancelled(client))
            return
        for worker in self.workers:
            if worker.prompt and any(task == client.id for task, _ in worker.jobs):
                self.violation(f"{worker.name} still works for {client.id}, whose client is gone")

    def _on_hang_up(self, worker: SimWorker, wire: Wire, code: int, reason: str) -> None:
        self.note("gateway", f"hangs up on {worker.name}: {code} {reason}")
        if wire.honest and not is_farewell(code):
            self.violation(f"{worker.name} did nothing wrong and was hung up on: {code} {reason}")


class _Keyring:
    """Knows every key: its first letter is the tenant."""

    def peek(self, secret: bytes, now: float) -> Identity:
        name = secret.decode()[0]
        return Identity(
            key_id=1,
            user_id=1,
            tenant=f"usr_{name}",
            tenant_label=name,
            key_label=name,
            prefix="sk",
            tier="default",
            highest_tier="priority",
        )


def _keep(task: asyncio.Task[None], running: dict[asyncio.Task[None], None]) -> None:
    """Hold a task while it runs. A dict: a set of tasks has another order every time."""
    running[task] = None
    task.add_done_callback(lambda task: running.pop(task, None))


async def _let_in(secret: str) -> WorkerCredential:
    return WorkerCredential(token_id=None, name="simulated", models=())
